"""A reader whose files are cut under it says so: it neither dies nor takes what is gone for absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmapio import MappingFault
from mmapkv import KVStore
from mmaplog import Log
from tests.unit.mmapio.processes import in_child

COUNT = 2000


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A closed store of some segments."""
    path = tmp_path / "store"
    with KVStore.open(path, segment_bytes=1 << 17) as kv:
        for number in range(COUNT):
            kv[b"%d" % number] = b"value %d" % number * 20
    return path


def outcomes(path: Path, cut: str) -> set[str]:
    """What looking up every key gave after the files named `cut` were emptied under a reader."""
    found = set()
    with KVStore.open(path, "r") as kv:
        assert all(kv[b"%d" % number] for number in range(COUNT))
        for file in path.glob(cut):
            os.truncate(file, 0)
        for number in range(COUNT):
            try:
                value = kv.get(b"%d" % number)
            except Exception as error:
                found.add(type(error).__name__)
            else:
                right = value is not None and b"value %d" % number in value
                found.add("absent" if value is None else "right" if right else "wrong")
    return found


@pytest.mark.parametrize("cut", ["*.seg", "INDEX*"])
def test_a_cut_file_is_never_a_missing_key(store: Path, cut: str) -> None:
    """The pages that are put in place of missing ones are zeros: an empty bucket, a key that differs."""
    found = in_child(lambda: outcomes(store, cut))
    assert found <= {"MappingFault", "right"}
    assert "MappingFault" in found


def test_iterating_says_so_too(store: Path) -> None:
    """A walk over zeros would end early, or be taken for damage on the disk."""

    def walk() -> str:
        with KVStore.open(store, "r") as kv:
            items = kv.items()
            assert len(list(items)) == COUNT
            for file in store.glob("INDEX*"):
                os.truncate(file, 0)
            with pytest.raises(MappingFault) as raised:
                list(items)
            return str(raised.value.filename)

    assert "INDEX" in in_child(walk)


def test_a_log_whose_segments_are_cut_says_so(store: Path) -> None:
    """An entry that was handed out reads as zeros then; the next one raises."""

    def replay() -> tuple[bytes, str]:
        with Log.open(store, "r") as log:
            entries = log.replay()
            first = next(entries)
            view = memoryview(first.payload)
            for file in store.glob("*.seg"):
                os.truncate(file, 0)
            held = bytes(view)
            with pytest.raises(MappingFault) as raised:
                next(entries)
            return held, type(raised.value).__name__

    held, name = in_child(replay)
    assert name == "MappingFault"
    assert held == bytes(len(held))
