"""What compaction removes is superfluous after a power cut, too, and leaves nothing beside it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mmapio import FlushPolicy
from mmapkv import KVStore, compaction, hints, victims
from mmapkv.victims import Choice
from tests.support.waiting import until
from tests.unit.mmapkv.stores import SEGMENT, agreeing, lose, opened

VALUE = b"v" * 500


def fill(kv: KVStore, keys: int) -> None:
    """Several segments."""
    for number in range(keys):
        kv[b"%d" % number] = VALUE


def test_what_goes_is_superfluous_after_a_power_cut_too(tmp_path: Path) -> None:
    """What superseded it is on the disk before it goes."""
    path = tmp_path / "kv"
    with KVStore.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT, compaction=False) as kv:
        fill(kv, 600)
        kv.flush()
        fill(kv, 20)
        changed = kv._log.committed
        assert kv._log.durable < changed

        def first(segments: list[tuple[int, int, int, int, int]], _: int) -> Choice:
            segment_id = segments[0][2]
            return Choice([segment_id], segment_id, 0, 0, SEGMENT)

        came = compaction.step(kv, kv._pins, first, None)
        assert came is not None
        assert came[2].records_removed == 20
        assert kv._log.durable >= changed
        fill(kv, 20)
        kv.clear()
        cleared = kv._log.committed
        assert kv._log.durable < cleared
        kv.compact()
        assert kv._log.durable >= cleared


def test_a_tombstone_stays_where_what_it_hides_is_left(tmp_path: Path) -> None:
    """A step was to take both segments, and could not: after a recovery another epoch begins."""
    path = tmp_path / "kv"
    with opened(path, policy=FlushPolicy.NEVER) as kv:
        fill(kv, 20)
    (path / "CONTROL").unlink()
    with opened(path) as kv:
        del kv[b"7"]
        kv._log.roll_tail()
        kv.flush()

        def both(segments: list[tuple[int, int, int, int, int]], needed: int) -> Choice:
            assert len(segments) == 2
            return Choice([each[2] for each in segments], segments[1][2], needed, 0, SEGMENT)

        came = compaction.step(kv, kv._pins, both, None)
        assert came is not None
        assert kv.verify().damages == ()
    lose(path, "INDEX")
    with opened(path) as kv:
        assert b"7" not in agreeing(kv)


def test_hints_of_what_was_rewritten_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when the store is opened the next time."""
    monkeypatch.setattr(victims, "SEGMENT_BYTES_MIN", SEGMENT)
    with KVStore.open(tmp_path / "kv", flush_policy=FlushPolicy.MANUAL) as kv:
        fill(kv, 2000)
        kv.flush()
        log, index = kv._open_parts()
        while not kv._hinter.make(log, index):
            pass
        before = {entry.name for entry in Path(kv.path).glob("*.hint")}
        chance = random.Random(1)
        for _ in range(4000):
            kv[b"%d" % chance.randrange(2000)] = VALUE
        compactor = kv._compactor
        assert compactor is not None
        until(lambda: compactor.done > 0 and not compactor._busy)
        named = {hints.name_of(name) for _, _, name in kv._log.segments.listing()}
        assert {entry.name for entry in Path(kv.path).glob("*.hint")} <= named
        assert not before <= named
        assert len(agreeing(kv)) == 2000
