"""A copy that is made while the store is written is the store of one moment."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from mmapkv import KVStore, verify
from mmaplog import CorruptionError
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import living_child
from tests.unit.mmapkv.stores import NEVER, agreeing, contents, opened
from tests.unit.mmaplog.damage import overwrite
from tests.unit.mmaplog.segment_file import SegmentFile, segment_paths


def fill(path: Path) -> KVStore:
    """Some segments."""
    kv = opened(path)
    for number in range(2000):
        kv[b"key %d" % number] = b"%d" % number * 20
    del kv[b"key 7"]
    return kv


@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_copy_is_a_store_of_its_own(tmp_path: Path, mode: str) -> None:
    """With an index that is believed; what is done to one does not show in the other."""
    fill(tmp_path / "kv").close()
    told: list[tuple[int, int]] = []
    with opened(tmp_path / "kv", mode) as kv:
        made = kv.backup(tmp_path / "copy", progress=lambda *done: told.append(done))
        expected = agreeing(kv)
    assert made.path == str(tmp_path / "copy")
    assert told[-1][0] == told[-1][1]
    assert contents(tmp_path / "copy") == expected
    found = verify(tmp_path / "copy")
    assert (found.damages, found.note, found.keys) == ((), None, len(expected))
    with opened(tmp_path / "copy") as copied:
        copied[b"copy"] = b"1"
    assert contents(tmp_path / "kv") == expected


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    """Nor is anything left of an attempt that failed."""
    with fill(tmp_path / "kv") as kv:
        (tmp_path / "copy").mkdir()
        with unchanged(tmp_path / "copy"), pytest.raises(FileExistsError):
            kv.backup(tmp_path / "copy")
        with pytest.raises(OSError, match="within"):
            kv.backup(tmp_path / "kv" / "copy")
        segment = SegmentFile(segment_paths(tmp_path / "kv")[0])
        overwrite(segment.path, b"\xff", list(segment.records())[3].offset + 20)
        with pytest.raises(CorruptionError):
            kv.backup(tmp_path / "other")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy", "kv"]


def test_a_copy_beside_a_writer_is_of_one_moment(tmp_path: Path) -> None:
    """Each round writes its number under two keys, the second after the first."""
    path = tmp_path / "kv"
    fill(path).close()

    def work() -> object:
        import threading

        kv = KVStore.open(path, "w", flush_policy=NEVER)

        def rounds() -> None:
            for number in count():
                kv[b"first"] = kv[b"second"] = b"%d" % number

        threading.Thread(target=rounds).start()
        return kv

    with living_child(work), opened(path, "r") as kv:
        while b"second" not in kv:
            pass
        for attempt in range(3):
            before = int(kv[b"second"])
            kv.backup(tmp_path / f"copy {attempt}")
            with opened(tmp_path / f"copy {attempt}", "r") as copied:
                first, second = int(copied[b"first"]), int(copied[b"second"])
                assert len(copied) == 2001
            assert before <= second <= first <= second + 1
            assert int(kv[b"first"]) >= first
