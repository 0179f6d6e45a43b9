"""What counts as superfluous in each segment: old values, deletions, and ways back from what is current."""

from __future__ import annotations

import random
import struct
import threading
from collections import Counter
from pathlib import Path

import pytest

from mmapio import FlushPolicy
from mmapkv import KVStore
from mmapkv.compactor import Compactor
from tests.crash.moments import watch
from tests.support.plain_log import read_log
from tests.support.plain_reader import changes_of
from tests.support.waiting import until
from tests.unit.mmapkv.stores import agreeing, dead_bytes, lose, opened

KEYS = [b"key %d" % number for number in range(400)]
PREVIOUS = 16
"""Bytes in a record that lead to the version before."""


def expected(path: Path) -> dict[int, int]:
    """What is superfluous by the records of a closed store, in units of 8 bytes, by segment."""
    log = read_log(path)
    changes = changes_of(log)
    newest = {change.key: at for at, change in enumerate(changes)}
    found = dict.fromkeys((record.segment_id for record in log.records), 0)
    for at, (record, change) in enumerate(zip(log.records, changes, strict=True)):
        if change.value is None or newest[change.key] != at:
            found[record.segment_id] += -(-(16 + len(record.payload)) // 8)
        elif change.previous is not None:
            found[record.segment_id] += PREVIOUS // 8
    return found


def found_ways(path: Path) -> Counter[int]:
    """How many current values there are in each segment that lead to a version before."""
    log = read_log(path)
    changes = changes_of(log)
    newest = {change.key: at for at, change in enumerate(changes)}
    return Counter(log.records[at].segment_id for at in newest.values() if changes[at].previous is not None)


def scribble(kv: KVStore, chance: random.Random, count: int) -> dict[bytes, bytes]:
    """Change a store in all ways, and a dict."""
    model: dict[bytes, bytes] = {}
    for _ in range(count):
        key, value = chance.choice(KEYS), chance.randbytes(chance.choice((0, 8, 100, 700)))
        what = chance.random()
        if what < 0.3:
            kv.put(key, value, ttl=chance.choice((None, 1e6)))
            model[key] = value
        elif what < 0.4:
            assert kv.replace(key, value) == (key in model)
            model |= {key: value} if key in model else {}
        elif what < 0.6:
            assert kv.pop(key, None) == model.pop(key, None)
        elif what < 0.8:
            pairs = dict.fromkeys(chance.sample(KEYS, 5), value)
            kv.put_many(pairs)
            model.update(pairs)
        else:
            gone = chance.sample(KEYS, 3)
            kv.delete_many(gone)
            for each in gone:
                model.pop(each, None)
    return model


@pytest.mark.parametrize("seed", range(3))
def test_as_much_is_counted_as_there_is(tmp_path: Path, seed: int) -> None:
    """By who writes, and by an index that is built from hints, or from records."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        model = scribble(kv, random.Random(seed), 2500)
        assert agreeing(kv) == model
        kv.flush()
        log, index = kv._open_parts()
        while not kv._hinter.make(log, index):
            pass
    found = expected(path)
    assert len(found) > 5
    assert all(found.values())
    assert dead_bytes(path) == found
    with opened(lose(path, "INDEX")) as kv:
        assert agreeing(kv) == model
    assert dead_bytes(path) == found
    hints = [each.name for each in path.glob("*.hint")]
    assert hints
    with opened(lose(path, "INDEX", *hints)):
        pass
    assert dead_bytes(path) == found


def test_what_a_snapshot_goes_back_by_stays_and_counts(tmp_path: Path) -> None:
    """And leaves when that is closed, though each record stays."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv.update((key, b"1" * 1000) for key in KEYS)
        with kv.snapshot() as before:
            for key in KEYS:
                kv[key] = b"2" * 1000
            done = kv.compact()
            assert done.records_removed == 0
            assert kv.stats()["dead_bytes"] > len(KEYS) * 1000
            assert set(before.values()) == {b"1" * 1000}
        assert kv.compact().records_removed == len(KEYS)
        assert kv.stats()["dead_bytes"] == 0
        assert agreeing(kv) == dict.fromkeys(KEYS, b"2" * 1000)
        assert kv.verify().damages == ()
    assert not any(dead_bytes(path).values())
    assert not any(expected(path).values())


def test_a_copy_that_keeps_its_way_back_counts_that(tmp_path: Path) -> None:
    """Else the segment would never be looked at again for it."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv.update((key, b"1" * 100) for key in KEYS)
        snapshot = kv.snapshot()
        kv.update((key, b"2" * 100) for key in KEYS)
        kv.update((key, b"3" * 100) for key in KEYS[::2])
        kv.compact()
        held = kv.stats()["dead_bytes"]
        assert dict(snapshot) == dict.fromkeys(KEYS, b"1" * 100)
    found = expected(path)
    assert dead_bytes(path) == found
    assert 8 * sum(found.values()) == held
    with opened(path) as kv:
        # Of each key one record is left, which leads nowhere.
        assert kv.compact().records_removed == len(KEYS) + len(KEYS[::2])
        size = kv.stats()["live_bytes"]
        kv.update((key, b"4" * 100) for key in KEYS)
        before = kv.stats()
        assert before["dead_bytes"] == size + PREVIOUS * len(KEYS)
        # Nothing but the values of before, and the ways back to these.
        done = kv.compact()
        assert done.records_removed == len(KEYS)
        after = kv.stats()
        assert (after["live_bytes"], after["dead_bytes"]) == (size, 0)
        assert kv.compact().segments_replaced == 0


def test_a_store_from_before_that_counted_is_put_right(tmp_path: Path) -> None:
    """There, ways back did not count. A look at a segment tells what there is."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        for value in (b"1", b"2", b"3"):
            kv.update((key, value * 300) for key in KEYS[:: int(value)])
        found = expected(path)
        table = (path / "INDEX").read_bytes()[8192:]
        with (path / "INDEX").open("r+b", buffering=0) as index:
            for slot in range(len(found)):
                (segment_id,) = struct.unpack_from("<Q", table, 8 * slot)
                ways = PREVIOUS // 8 * found_ways(path)[segment_id]
                index.seek(139264 + 4 * slot)
                index.write(struct.pack("<I", found[segment_id] - ways))
        assert kv.stats()["dead_bytes"] < 8 * sum(found.values())
        for key in KEYS[::5]:
            kv[key] = b"5" * 300
        kv.compact()
        assert kv.stats()["dead_bytes"] == 0
        assert len(agreeing(kv)) == len(KEYS)
    assert not any(expected(path).values())


def test_what_is_about_to_go_is_dead(tmp_path: Path) -> None:
    """The index has forgotten segments whose files are still there: nothing in them is live."""
    seen: list[int] = []

    def at(moment: str) -> None:
        # Not when a hint gets its name.
        if threading.current_thread().name == Compactor.thread_name:
            seen.append(kv.stats()["live_bytes"])

    with KVStore.open(tmp_path / "kv", flush_policy=FlushPolicy.MANUAL, segment_bytes=64 << 10) as kv:
        for number in range(800):
            kv[b"%d" % number] = bytes(4000)
        end = watch(at, ["replace_file"])
        try:
            kv.clear()
            until(lambda: len(seen) > 0)
        finally:
            end()
    assert max(seen) < 4000
