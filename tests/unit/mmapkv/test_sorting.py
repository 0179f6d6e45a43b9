"""The sort that lets other threads go on is the one that does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmapkv.sorting import sorted_keys

# Few letters, and zeros among them, so that keys share beginnings, are such, or differ behind a long one.
_letters = st.sampled_from([b"\x00", b"a", b"\x80", b"\xff", b"\x00" * 8, b"shared " * 3])
_keys = st.lists(st.lists(_letters, max_size=6).map(b"".join), max_size=60)


@given(keys=_keys, prefix=st.sampled_from([b"", b"\x00", b"a common beginning/"]))
def test_it_sorts_as_python_does(keys: list[bytes], prefix: bytes) -> None:
    """By unsigned bytes, and of two keys one of which begins with the other, the shorter one first."""
    made = {prefix + key: None for key in keys}
    assert sorted_keys(made) == sorted(made)


def test_what_is_no_key_is_refused() -> None:
    with pytest.raises(TypeError, match="Expected bytes, got str"):
        sorted_keys({b"a": 1, "b": 2})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        sorted_keys([b"a"])  # type: ignore[arg-type]
