"""After most keys were deleted, compaction makes the index anew, as small as it can be."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mmapkv import KVStore
from tests.support.plain_reader import check_store
from tests.unit.mmapio.processes import in_child
from tests.unit.mmapkv.stores import agreeing, opened

KEYS = 20_000
LEFT = 500


def fill(kv: KVStore) -> None:
    """More index segments than one."""
    for number in range(KEYS):
        kv[b"%d" % number] = b""
    assert kv.stats()["index_segments"] >= 8


def test_it_shrinks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And that is no reason to warn of anything."""
    path = tmp_path / "kv"
    caplog.set_level(logging.WARNING)
    with opened(path) as kv, opened(path, "r") as reader:
        fill(kv)
        before = kv.stats()
        kv.delete_many([b"%d" % number for number in range(LEFT, KEYS)])
        assert kv.stats()["index_bytes"] == before["index_bytes"]
        kv.compact()
        after = kv.stats()
        assert after["index_segments"] == 1
        assert after["index_bytes"] < before["index_bytes"] / 2
        assert after["index_allocated"] <= before["index_allocated"]
        expected = {b"%d" % number: b"" for number in range(LEFT)}
        assert agreeing(kv) == agreeing(reader) == expected
        assert kv.verify().damages == ()
        fill(kv)
        assert len(reader) == KEYS
    assert caplog.records == []
    with opened(path) as kv:
        assert len(agreeing(kv)) == KEYS
    assert len(check_store(path)) == KEYS


def test_one_that_is_in_use_stays(tmp_path: Path) -> None:
    """Half of the keys do not make it so much too large."""
    with opened(tmp_path / "kv") as kv:
        fill(kv)
        before = kv.stats()["index_bytes"]
        kv.delete_many([b"%d" % number for number in range(KEYS // 2)])
        kv.compact()
        assert kv.stats()["index_bytes"] == before


def test_a_clear_leaves_none_that_is_large(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as kv:
        fill(kv)
        kv.clear()
        kv.compact()
        assert kv.stats()["index_segments"] == 1
        assert agreeing(kv) == {}
        assert kv.verify().damages == ()


def test_a_snapshot_sees_what_was_deleted(tmp_path: Path) -> None:
    """Its keys are found by way of the deletions, which stay for its sake."""
    with opened(tmp_path / "kv") as kv:
        fill(kv)
        with kv.snapshot() as held:
            kv.delete_many([b"%d" % number for number in range(LEFT, KEYS)])
            kv.compact()
            assert len(held) == len(list(held)) == KEYS
            assert all(held[b"%d" % number] == b"" for number in range(0, KEYS, 97))
            assert len(kv) == LEFT
        kv.compact()
        assert kv.stats()["index_segments"] == 1
        assert len(agreeing(kv)) == LEFT


def test_every_process_has_the_new_one(tmp_path: Path) -> None:
    """Several that write, too."""
    path = tmp_path / "kv"
    with KVStore.open(path, shared=True) as kv, KVStore.open(path, "w", shared=True) as other:
        fill(kv)
        kv.delete_many([b"%d" % number for number in range(LEFT, KEYS)])

        def compact() -> int:
            with KVStore.open(path, "w", shared=True) as third:
                third.compact()
                return third.stats()["index_segments"]

        assert in_child(compact) == 1
        other[b"new"] = b"1"
        assert kv[b"new"] == b"1"
        assert len(agreeing(kv)) == len(agreeing(other)) == LEFT + 1
        assert kv.verify().damages == ()


@pytest.mark.parametrize("by", ["deletions", "a clear"])
def test_it_stays_for_what_a_snapshot_holds(tmp_path: Path, by: str) -> None:
    """What has to stay would take its room in a new one, too."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        fill(kv)
        with kv.snapshot():
            if by == "deletions":
                kv.delete_many([b"%d" % number for number in range(LEFT, KEYS)])
            else:
                kv.clear()
            _, made = kv._open_parts()
            for _ in range(2):
                kv.compact()
                assert kv._open_parts()[1] is made
        kv.compact()
        assert kv.stats()["index_segments"] == 1
