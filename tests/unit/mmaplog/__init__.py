"""Tests of the log, and the helpers that make damaged ones."""
