"""The tests of mmapkv; `tests.support` holds what they share."""
