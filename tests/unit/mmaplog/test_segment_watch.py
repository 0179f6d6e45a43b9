"""Segment files that come and go, told to whoever wants to keep a copy of them."""

from __future__ import annotations

import queue
import shutil
from pathlib import Path

import pytest

from mmaplog import FlushPolicy, Log, SegmentChange
from tests.support.waiting import PATIENCE_SECONDS

pytest.importorskip("watchfiles", reason="NOT TESTED that changes of segments are told")

MANUAL = FlushPolicy.MANUAL
SEGMENT = 64 << 10


def test_rolls_compaction_and_retention_are_told(tmp_path: Path) -> None:
    """By a reader's watch of what a writer does; each file once."""
    changes: queue.SimpleQueue[SegmentChange] = queue.SimpleQueue()
    path = tmp_path / "log"
    with Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT) as log:
        known = {name for _, _, name in log.segments.listing()}
        with Log.open(path, "r") as reader, reader.watch_segments(changes.put):
            log.append_many([b"x" * 1000] * 300)
            log.flush()
            told = reached(known, changes, log)
            assert len(told) == 5
            log.compact(lambda entry: entry.seq % 3 == 0)
            assert len(reached(told, changes, log)) == 3
            log.truncate_before(250)
            assert len(reached(told, changes, log)) == 1


def reached(known: set[str], changes: queue.SimpleQueue[SegmentChange], log: Log) -> set[str]:
    """The files as they are told, once they are those of the log."""
    while known != {name for _, _, name in log.segments.listing()}:
        change = changes.get(timeout=PATIENCE_SECONDS)
        assert not known & set(change.added)
        assert known.issuperset(change.removed)
        known |= set(change.added)
        known -= set(change.removed)
    return known


def test_an_archive_of_what_is_full(tmp_path: Path) -> None:
    """A file that has a successor is not written to again, so that a copy of it is whole."""
    path, archive = tmp_path / "log", tmp_path / "archive"
    archive.mkdir()
    full: queue.SimpleQueue[str] = queue.SimpleQueue()
    with Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT) as log:
        names = [name for _, _, name in log.segments.listing()]

        def keep(change: SegmentChange) -> None:
            names.extend(change.added)
            for name in names[: len(change.added)]:
                shutil.copy(path / name, archive)
                full.put(names.pop(0))

        with log.watch_segments(keep):
            log.append_many([b"x" * 1000] * 200)
            copies = [full.get(timeout=PATIENCE_SECONDS) for _ in range(3)]
        log.append_many([b"y" * 1000] * 10, durable=True)
        assert copies == sorted(copies)
        for name in copies:
            size = 4096 + 1016 * (SEGMENT // 1016 - 4)
            assert (archive / name).read_bytes()[4096:size] == (path / name).read_bytes()[4096:size]
