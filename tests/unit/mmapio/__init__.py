"""Tests of the mapping layer, and what the tests of the layers above share with them."""
