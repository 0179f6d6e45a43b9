"""What compaction removes is superfluous after a power cut, too, and leaves nothing beside it."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

from mmapio import FlushPolicy
from mmapkv import KVStore, compaction, hints
from tests.unit.mmapkv.stores import SEGMENT, agreeing

VALUE = b"v" * 500
# Waited for is a part of a second on an idle machine.
PATIENCE_SECONDS = 60.0


def fill(kv: KVStore, keys: int) -> None:
    """Several segments."""
    for number in range(keys):
        kv[b"%d" % number] = VALUE


def first(segments: list[tuple[int, int, int, int, int]], _: int) -> SimpleNamespace:
    """Have the first segment rewritten, and nothing else."""
    segment_id = segments[0][2]
    return SimpleNamespace(
        segments=[segment_id], wanted=segment_id, sweepable=0, bytes_least=0, size_max=SEGMENT
    )


def test_what_supersedes_is_on_the_disk_before_the_old_one_goes(tmp_path: Path) -> None:
    """A power cut must not take the new value after compaction has taken the old one, which was durable."""
    with KVStore.open(
        tmp_path / "kv", flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT, compaction=False
    ) as kv:
        fill(kv, 600)
        kv.flush()
        fill(kv, 20)
        changed = kv._log.committed
        assert kv._log.durable < changed
        came = compaction.step(kv, kv._pins, first, None)
        assert came is not None
        assert came[2].records_removed == 20
        assert kv._log.durable >= changed


def test_the_thread_takes_hints_along(tmp_path: Path) -> None:
    """Not only who opens the store the next time."""
    with KVStore.open(tmp_path / "kv", flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT) as kv:
        fill(kv, 600)
        kv.flush()
        log, index = kv._open_parts()
        while not kv._hinter.make(log, index):
            pass
        before = set(Path(kv.path).glob("*.hint"))
        fill(kv, 600)
        compactor = kv._compactor
        assert compactor is not None
        kv.compact(background=True)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while compactor.done == 0 or compactor._busy:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        named = {hints.name_of(name) for _, _, name in log.segments.listing()}
        left = {entry.name for entry in Path(kv.path).glob("*.hint")}
        assert left <= named
        assert not before <= set(Path(kv.path).glob("*.hint"))
        assert len(agreeing(kv)) == 600
