"""A snapshot is the store as it was, whatever happens to the store."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmapio import Closed
from mmapkv import CorruptionError, Snapshot, compaction
from mmapkv.frozen import Frozen
from mmapkv.pins import Pin, Pins
from mmaplog import Log
from tests.unit.mmapio.processes import run_python
from tests.unit.mmapkv.colliding_keys import HashInverter, seed_of
from tests.unit.mmapkv.stores import MANUAL, SEGMENT, opened
from tests.unit.mmaplog.damage import first, overwrite


def same(snapshot: Snapshot, model: dict[bytes, bytes]) -> None:
    """In every way that there is to read it."""
    assert list(snapshot.items()) == list(model.items())
    assert list(snapshot) == list(model)
    assert list(snapshot.values()) == list(model.values())
    assert len(snapshot) == len(model)
    assert snapshot == model
    for key, value in model.items():
        assert snapshot[key] == snapshot.get(key) == value
        assert key in snapshot
    assert snapshot.get(b"never") is None
    assert snapshot.get(b"", b"default") == b"default"
    assert b"never" not in snapshot
    with pytest.raises(KeyError):
        snapshot[b"never"]


def test_it_stays_as_it_was(tmp_path: Path) -> None:
    """Through many changes of the same keys, rolled segments, splits, and an index that was built anew."""
    rng = random.Random(5)
    taken: list[tuple[Snapshot, dict[bytes, bytes]]] = []
    with opened(tmp_path / "kv") as kv, opened(tmp_path / "kv", "r") as reader:
        model: dict[bytes, bytes] = {}
        for step in range(900):
            key = b"%d" % rng.randrange(60)
            model.pop(key, None)
            if rng.random() < 0.3:
                kv.pop(key, None)
            else:
                kv[key] = model[key] = rng.randbytes(rng.randrange(500))
            if step % 100 == 50:
                taken += [(kv.snapshot(), dict(model)), (reader.snapshot(), dict(model))]
            if step == 600:
                for twin in HashInverter(seed_of(tmp_path / "kv")).twins(5, 24, 7, 70):
                    kv[twin] = model[twin] = b"twin"
        assert kv.stats()["snapshots"] == 9
        for snapshot, content in taken:
            same(snapshot, content)
            snapshot.close()
        assert kv.stats()["snapshots"] == 0


def test_closing(tmp_path: Path) -> None:
    kv = opened(tmp_path / "kv")
    kv["a"] = "1"
    with kv.snapshot() as snapshot:
        assert snapshot["a"] == b"1"
        assert "before record 1" in repr(snapshot)
    snapshot.close()
    for use in (lambda: snapshot["a"], lambda: list(snapshot), lambda: len(snapshot), snapshot.__enter__):
        with pytest.raises(Closed, match="the snapshot is closed"):
            use()
    left = kv.snapshot()
    kv.close()
    for use in (lambda: left["a"], lambda: list(left), lambda: len(left)):
        with pytest.raises(Closed, match="the store is closed"):
            use()
    left.close()


def test_one_that_is_forgotten_is_none(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as kv:
        kept = kv.snapshot()
        kv.snapshot()
        assert kv.stats()["snapshots"] == 1
        kept.close()


def test_it_is_read_only(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as kv, pytest.raises(TypeError):
        kv.snapshot()["a"] = b"1"  # type: ignore[index]


def test_a_damaged_older_version_is_found_out(tmp_path: Path) -> None:
    """A look-up verifies what it returns, and that is not what the index leads to."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv["a"] = b"first" * 20
        with kv.snapshot() as snapshot:
            kv["a"] = b"second"
            segment = first(path)
            overwrite(segment, b"F", segment.read_bytes().index(b"first"))
            for read in (lambda: snapshot["a"], lambda: list(snapshot.items())):
                with pytest.raises(CorruptionError):
                    read()
            assert kv["a"] == b"second"


def test_a_version_before_that_is_of_another_key_is_found_out(tmp_path: Path) -> None:
    """The record of that number was believed without a look at its key, and looked for again without end."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv["b"] = b"of b"
        kv["a"] = b"of a"
    # A put of `a` that names record 0, which is about `b`, at a position that holds neither.
    payload = struct.pack("<HBBIQQ", 1, 1, 2, 5, 0, 1).ljust(24, b"\0") + b"a".ljust(8, b"\0") + b"wrong"
    with Log.open(path, "w", flush_policy=MANUAL) as log:
        log.append(payload)
    with opened(path) as kv:
        assert kv["a"] == b"wrong"
        before = Frozen(kv, 2, 2, 0, None)
        assert before["b"] == b"of b"
        with pytest.raises(CorruptionError, match="record 2 names record 0"):
            before["a"]


def test_a_key_that_expires_and_is_put_while_it_is_compacted_away(tmp_path: Path) -> None:
    """What the new version names as the one before is gone then. It was over when the snapshot was taken: it
    was SnapshotTooOld."""
    with opened(tmp_path / "kv") as kv, opened(tmp_path / "kv", "r") as reader:
        kv.update({b"k": b"older", b"stays": b"1"})
        kv.put(b"k", b"1", ttl=1e-9)
        for _ in range(3):
            kv[b"fill"] = bytes(SEGMENT // 2)
        found: list[Snapshot] = []
        walks: list[Iterator[bytes]] = []

        def between() -> None:
            if not found:
                found.extend(each.snapshot() for each in (kv, reader))
                walks.extend(iter(each) for each in (kv, reader))
                kv[b"k"] = b"2"

        with kv._careful("a compaction"):
            assert compaction.compact(kv, kv._pins, between).records_removed >= 2
        for snapshot, walk in zip(found, walks, strict=True):
            assert b"k" not in snapshot
            assert list(snapshot) == list(walk) == [b"stays", b"fill"]
            snapshot.close()
        assert reader[b"k"] == b"2"
        assert not kv.verify().damages


def test_a_snapshot_that_is_dropped_while_another_is_taken(tmp_path: Path) -> None:
    """Of the same moment, by a destructor: the lock that tells others is of both."""
    held: list[int] = []

    class Locks:
        def hold_past(self, seq: int) -> None:
            held.append(seq)
            dropped.clear()

        def let_past(self, seq: int) -> None:
            held.clear()

    dropped: list[Pin] = []
    pins = Pins(Locks())  # type: ignore[arg-type]
    dropped.append(pins.hold(7))
    kept = pins.hold(7)
    assert held
    kept.release()
    assert not held


@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_version_that_is_moved_while_it_is_searched_for(tmp_path: Path, mode: str) -> None:
    """By its number, in a segment that is replaced just then. Who reads takes no slot of the index for it."""
    code = """
import os
from mmapio import FlushPolicy
from mmapkv import KVStore
from mmaplog import segment_set

def opened(mode="c"):
    shared = arguments[1] == "w"
    options = dict(segment_bytes=64 << 10, compaction=False, flush_policy=FlushPolicy.MANUAL)
    return KVStore.open(arguments[0], mode, shared=shared and mode != "r", **options)

kv = opened()
kv.put_many([(b"k", b"old")] + [(b"a%d" % number, b"x" * 1000) for number in range(40)])
kv.delete_many(b"a%d" % number for number in range(10))
# Keeps some of it for the second time.
first = kv.snapshot()
kv.delete_many(b"a%d" % number for number in range(10, 20))
other = opened(arguments[1])
snapshot = other.snapshot()
for value in (b"new", b"newer"):
    kv[b"k"] = value
    for number in range(100):
        kv[value + b"%d" % number] = b"x" * 1000
kv.flush()
assert kv.compact().segments_replaced == 1
first.close()

real, moved = segment_set.open_segment, []
def meanwhile(directory, name, *rest):
    found = real(directory, name, *rest)
    if ".compact" in name and not moved:
        moved.append(name)
        assert kv.compact().segments_replaced == 1
    return found
segment_set.open_segment = meanwhile
assert snapshot[b"k"] == b"old"
assert moved
assert dict(snapshot)[b"k"] == b"old" and len(dict(snapshot)) == len(snapshot) == 21
assert kv[b"k"] == other[b"k"] == b"newer"
assert kv.verify().damages == ()
before = os.stat(arguments[0] + "/INDEX").st_ino
other.close()
kv.close()
answer(before)
"""
    path = tmp_path / "kv"
    before = run_python(code, path, mode)
    with opened(path) as kv:
        assert kv[b"k"] == b"newer"
    # An index that names a segment which is gone would have been built anew.
    assert (path / "INDEX").stat().st_ino == before
