"""A log whose beginning is dropped while others open it, or read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmapio import FlushPolicy
from mmaplog import Log, attach
from mmaplog.errors import TooOld
from tests.unit.mmaplog.segment_file import segment_paths

FOOTERS = 1536, 2560


def filled(path: Path, records: int) -> Log:
    """A log with a record in each segment."""
    log = Log.open(path, segment_bytes=65536, flush_policy=FlushPolicy.MANUAL)
    for number in range(records):
        log.append(b"%d" % number * 40_000)
    log.flush()
    return log


def test_opening_while_segments_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opened the log read where it begins, then looked which segments there are.

    If the first ones were dropped in
    between, it said that records were missing.
    """
    with filled(tmp_path / "log", 5) as log:
        real = attach.SegmentSet

        def later(*arguments: object) -> object:
            log.truncate_before(3)
            return real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(attach, "SegmentSet", later)
        with Log.open(tmp_path / "log", "r") as reader:
            assert reader.first_seq == 3
            assert [entry.seq for entry in reader.replay()] == [3, 4]


def test_following_out_of_a_segment_that_is_dropped_and_has_no_footer(tmp_path: Path) -> None:
    """A writer that was killed between a sync and the footers leaves segments without one.

    A follower at the end of such a segment, which was dropped before he went on, did not see that it had an
    end, and said that the next record was damaged.
    """
    with filled(tmp_path / "log", 2) as log, Log.open(tmp_path / "log", "r") as reader:
        follower = reader.follow(0, timeout=0)
        assert [entry.seq for entry in follower] == [0, 1]
        log.append(bytes(60_000))
        log.append(bytes(60_000))
        log.flush()
        for path in segment_paths(tmp_path / "log"):
            with path.open("r+b") as file:
                file.seek(FOOTERS[0])
                file.write(bytes(FOOTERS[1] - FOOTERS[0]))
        log.truncate_before(2)
        assert [entry.seq for entry in reader.follow(2, timeout=0)] == [2, 3]
        assert [entry.seq for entry in follower] == [2, 3]


def test_reading_on_where_the_end_was_dropped(tmp_path: Path) -> None:
    """Who was reading when the end of the log was dropped was told of damage.

    He came to a segment in which the record was not that he was to find
    there.
    """
    with filled(tmp_path / "log", 5) as log, Log.open(tmp_path / "log", "r") as reader:
        reading = reader.replay()
        assert next(reading).seq == 0
        log.truncate_after(1)
        with pytest.raises(TooOld, match="truncated"):
            next(reading)
        again = reader.replay(0, 1)
        log.append(b"again")
        assert [bytes(entry.payload[:5]) for entry in again] == [b"00000"]
        assert [entry.seq for entry in reader.replay()] == [0, 1]


def test_reading_a_segment_that_was_replaced_a_moment_ago(tmp_path: Path) -> None:
    """It is found, and its file goes before its length is looked at: what is mapped is all there."""
    path = tmp_path / "log"
    with Log.open(path, segment_bytes=1 << 20, flush_policy=FlushPolicy.MANUAL) as log:
        log.roll_after(100_000)
        everything = [b"%d" % number * 60_000 for number in range(9)]
        for payload in everything:
            log.append(payload)
        log.flush()
        second = segment_paths(path)[1]
        assert second.stat().st_size < 1 << 20, "such a one may grow"
        entries = log.replay()
        assert bytes(next(entries).payload) == everything[0]
        second.unlink()
        assert [bytes(entry.payload) for entry in entries] == everything[1:]


def test_following_out_of_a_segment_that_was_removed_before_it_was_sealed(tmp_path: Path) -> None:
    """Rolled past when all of it was durable, it has no footer to tell how long it was."""
    path = tmp_path / "log"
    with Log.open(path, segment_bytes=1 << 20, flush_policy=FlushPolicy.NEVER) as log:
        log.append(b"x" * 1000)
        with Log.open(path, "r") as reader:
            follower = reader.follow(0, timeout=0)
            assert next(follower).seq == 0
            log.flush()
            log.append(b"y" * (1 << 20))
            log.truncate_before(1)
            assert len(segment_paths(path)) == 1
            assert [entry.seq for entry in follower] == [1]
