"""What is dead is counted once, and in the segment that holds it, whatever a compaction does meanwhile.

What was counted twice a cache would take for room, and hold more than its bound.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from mmapio import FlushPolicy
from mmapkv import KVStore, compaction, relocation

MAX = 512 << 10
SEGMENT = 64 << 10
VALUE = b"v" * 400


def key(number: int) -> bytes:
    return b"key-%d" % number


def cache(path: Path) -> KVStore:
    return KVStore.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT, max_bytes=MAX)


def assert_counted_right(kv: KVStore, ways_back: int = 0) -> None:
    # What leads to the version before is dead, within a record that is not, but for a cache.
    assert kv.stats()["live_bytes"] == kv.verify().live_bytes - 16 * ways_back


def test_what_is_evicted_while_entries_are_led_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entry may still lead to the segment that is replaced; its copy is counted when it is led to."""
    real = relocation.carry_out
    number = 0
    evicted = []

    def put(kv: KVStore) -> None:
        nonlocal number
        for _ in range(60):
            number += 1
            kv[key(number)] = VALUE

    with cache(tmp_path / "kv") as kv:

        def carry_out(*arguments: Any) -> bool:
            # The first is the oldest, in which the hand is.
            if not evicted:
                before = kv.stats()["evictions"]
                writer = threading.Thread(target=put, args=(kv,))
                writer.start()
                writer.join()
                evicted.append(kv.stats()["evictions"] - before)
            return real(*arguments)

        for _ in range(30):
            put(kv)
        # Something to compact in the oldest segments, which are about to be evicted.
        for each in list(kv)[:300:10]:
            kv[each] = b"short"
        with monkeypatch.context() as patched:
            patched.setattr(relocation, "carry_out", carry_out)
            kv.compact()
        assert evicted[0] > 40
        assert_counted_right(kv)
        assert kv.stats()["live_bytes"] <= MAX
        kv.compact()
        assert_counted_right(kv)


def test_what_is_evicted_behind_a_gap(tmp_path: Path) -> None:
    """Where the last numbers of a segment are missing, the next record is of another one."""
    with cache(tmp_path / "kv") as kv:
        for number in range(1000):
            kv[key(number)] = VALUE
            if number % 3 == 0:
                # In most segments what ends them is superseded.
                kv["again"] = b"%d" % number
        kv.compact()
        for number in range(1000, 2000):
            kv[key(number)] = VALUE
            if number % 10 == 0:
                assert_counted_right(kv)


def test_what_is_evicted_before_a_survey(tmp_path: Path) -> None:
    """The compaction has begun, and does not know that it was cleared."""
    with cache(tmp_path / "kv") as kv:
        for number in range(2000):
            kv[key(number)] = VALUE
        oldest = next(iter(kv))
        kv[oldest] = b"short"
        calls = 0

        def between() -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                # The oldest segment was looked at; what is evicted reaches into the next one.
                before = kv.stats()["evictions"]
                for number in range(2000, 2230):
                    kv[key(number)] = VALUE
                assert kv.stats()["evictions"] - before > SEGMENT // 450

        compaction.compact(kv, kv._pins, between)
        assert_counted_right(kv)


@pytest.mark.parametrize("when", ["before it is come to", "after"])
def test_what_is_superseded_during_a_survey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A compaction corrects the count of each segment that it looks at, by what it saw there."""
    keys = [b"%d" % number for number in range(105_000)]
    with KVStore.open(tmp_path / "kv", flush_policy=FlushPolicy.MANUAL, compaction=False) as kv:
        kv.put_many((each, b"") for each in keys)
        del kv[keys[0]]
        superseded = False

        def between() -> None:
            # 100,000 records were looked at.
            nonlocal superseded
            if not superseded:
                superseded = True
                some = keys[100_000:101_000] if when != "after" else keys[1:1_001]
                kv.put_many((each, b"") for each in some)

        rewrite = compaction.rewrite  # type: ignore[attr-defined]

        def surveyed(*arguments: Any) -> None:
            assert superseded
            assert_counted_right(kv, ways_back=1000)
            rewrite(*arguments)

        monkeypatch.setattr(compaction, "rewrite", surveyed)
        assert compaction.compact(kv, kv._pins, between).records_removed >= 2
        assert_counted_right(kv, ways_back=1000)
