"""A log whose beginning is dropped while others open it, or read it."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest

from mmapio import FlushPolicy
from mmaplog import Consumer, Follower, GroupMember, Log, attach, truncation
from mmaplog import manifest as manifest_file
from mmaplog.errors import TooOld
from mmaplog.verify import verify_log
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


def reads_by(reader: Log, kind: str) -> Follower | Consumer | GroupMember:
    """Somebody who follows a log from its beginning, in one of three ways."""
    if kind == "follower":
        return reader.follow(0, timeout=0)
    if kind == "consumer":
        return reader.consumer("c", timeout=0, too_old="skip")
    return reader.group("g", timeout=0, batch=1, too_old="skip")


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("kind", ["follower", "consumer", "member"])
def test_what_is_being_dropped_is_there_until_control_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, early: bool, compacted: bool
) -> None:
    """Who looked at the directory meanwhile went into the new segment, and was told that it was too old.

    A consumer that was to pass over such records began again and again with the first one. `early`: he has
    read `MANIFEST` before it said so.
    """
    held, onward = threading.Event(), threading.Event()
    publish, read = truncation.publish_segment, manifest_file.read
    with filled(tmp_path / "log", 1) as log, Log.open(tmp_path / "log", "r") as reader:
        reading = reads_by(reader, kind)
        assert next(reading).seq == 0
        expected = [1, 2, 3, 4]
        for number in expected:
            log.append(b"%d" % number * 40_000)
        log.flush()
        if compacted:
            # From there on MANIFEST lists it no more.
            log.compact(lambda entry: entry.seq != 3)
            assert len(reader) == 4
            log.append(b"5" * 40_000)
            log.append(b"6" * 40_000)
            expected = [1, 2, 4, 5, 6]

        def publish_and_wait(*arguments: Any) -> None:
            publish(*arguments)
            held.set()
            onward.wait()

        cutting = threading.Thread(target=log.truncate_after, args=(2,))

        def read_then_cut(*arguments: Any) -> Any:
            found = read(*arguments)
            if early and cutting.ident is None:
                cutting.start()
                held.wait()
            return found

        monkeypatch.setattr(truncation, "publish_segment", publish_and_wait)
        monkeypatch.setattr(manifest_file, "read", read_then_cut)
        if not early:
            cutting.start()
            held.wait()
        try:
            assert [entry.seq for entry in itertools.islice(reading, 10)] == expected
        finally:
            onward.set()
            cutting.join()
        log.append(b"new")
        if kind == "follower":
            with pytest.raises(TooOld, match="after they had been read"):
                next(reading)
        else:
            assert [(entry.seq, bytes(entry.payload)) for entry in reading] == [(2, b"new")]


def test_cut_through_a_segment_with_gaps_that_is_being_read(tmp_path: Path) -> None:
    """Its footer then says that another one follows earlier: who knew of a later one missed a segment."""
    with (
        Log.open(tmp_path / "log", segment_bytes=65536, flush_policy=FlushPolicy.MANUAL) as log,
        Log.open(tmp_path / "log", "r") as reader,
    ):
        log.append_many([b"x" * 1000] * 200)
        log.flush()
        log.compact(lambda entry: entry.seq % 10 == 0)
        reading = reader.replay()
        assert next(reading).seq == 0
        log.truncate_after(45)
        log.append_many([b"y" * 1000] * 200)
        with pytest.raises(TooOld, match="truncated"):
            list(reading)


def test_reading_on_into_a_new_end_that_others_go_on_from(tmp_path: Path) -> None:
    """Who came to it when it was the last segment took it for the last, and what followed for damaged."""
    with filled(tmp_path / "log", 5) as log, Log.open(tmp_path / "log", "r") as reader:
        reading = reader.replay()
        assert next(reading).seq == 0
        log.truncate_after(1)
        log.append(b"new 1")
        assert bytes(next(reading).payload) == b"new 1"
        for number in range(2, 6):
            log.append(b"new %d" % number * 12_000)
        assert [(entry.seq, bytes(entry.payload[:5])) for entry in reading] == [
            (number, b"new %d" % number) for number in range(2, 5)
        ]


def test_verifying_what_is_cut_and_written_anew(tmp_path: Path) -> None:
    """Between a look at the end and one at the generation, it looked for the old end in the new log."""
    with filled(tmp_path / "log", 5) as log, Log.open(tmp_path / "log", "r") as reader:

        class Cut:
            first_seq = 0
            control = reader.control
            segments = reader.segments
            looks = 0

            @property
            def committed(self) -> int:
                self.looks += 1
                if self.looks > 1:
                    log.append_many([b"new"] * 3)
                    return reader.committed
                found = reader.committed
                log.truncate_after(2)
                return found

        assert verify_log(Cut()).damages == ()
