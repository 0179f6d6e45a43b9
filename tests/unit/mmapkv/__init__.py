"""Tests of the modules of mmapkv."""
