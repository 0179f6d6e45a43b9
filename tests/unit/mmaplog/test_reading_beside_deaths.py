"""Who reads a log that others cut, or die writing, is never told of damage that is not there."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapio import _os
from mmaplog import Entry, Log
from mmaplog.errors import TooOld
from tests.unit.mmapio.processes import killed_after
from tests.unit.mmaplog.keeping import (
    at_moment,
    content,
    died_at,
    fill,
    filled,
    one_of,
    opened,
    payload,
    segment_starts,
)


def die_in_a_roll(log: Log) -> None:
    """Kill this process when the next segment has its name and nobody has been told of it."""
    real = _os.replace_file

    def call(*arguments: Any) -> None:
        real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    vars(_os)["replace_file"] = call
    log.roll_tail()


@pytest.mark.parametrize("read", [1, 2])
def test_reading_on_where_the_log_was_cut_and_has_rolled_since(memory_path: Path, read: int) -> None:
    """The segment that it was in was the last, but not the one that had been when the replay began."""
    path = memory_path / "log"
    filled(path, 8, 40_000)
    with opened(path) as log, opened(path, "r") as reader:
        entries = reader.replay()
        assert [next(entries).seq for _ in range(read)] == list(range(read))
        log.truncate_after(read)
        fill(log, 1, "new", 100)
        # What comes is what the log has now, and nothing that was read is missing from it.
        assert bytes(next(entries).payload) == payload(read, "new", 100)
        fill(log, 10, "new", 40_000)
        assert [bytes(entry.payload) for entry in entries] == [
            payload(seq, "new", 40_000) for seq in range(read + 1, 8)
        ]


def test_reading_what_is_appended_that_moment_where_the_log_was_cut(memory_path: Path) -> None:
    """It is not there yet when it is read, and committed when it is asked whether it should be."""
    path = memory_path / "log"
    filled(path, 8, 40_000)
    with opened(path) as log, opened(path, "r") as reader:
        entries = reader.replay()
        assert [next(entries).seq for _ in range(2)] == [0, 1]
        log.truncate_after(2)
        fill(log, 1, "new")
        assert next(entries).seq == 2
        with at_moment(1, lambda: fill(log, 1, "new")):
            assert bytes(next(entries).payload) == payload(3, "new")
        with pytest.raises(TooOld, match="truncated"):
            next(entries)


def read_on(entries: Iterator[Entry], found: dict[int, bytes]) -> bool:
    """Add to what was found, and tell whether that was all: not where some are gone meanwhile."""
    try:
        found.update((entry.seq, bytes(entry.payload)) for entry in entries)
    except TooOld:
        return False
    return True


def test_a_truncation_killed_at_any_call(memory_path: Path) -> None:
    """Beside what it left, a reader has the records before or after, or is told that some are going.

    One that looked at the directory was told that a compacted segment was missing, which MANIFEST did not
    name any more. One that met the new segment while old ones were there did not see it grow, and called
    what others appended to it damaged.
    """
    path = memory_path / "log"
    with opened(path, segment_bytes=1 << 17) as log:
        for _ in range(2):
            # Each full segment is compacted by itself: two are more than fit into one.
            fill(log, 80)
            log.compact(lambda entry: entry.seq % 12 != 3)
        model = content(log)
    assert len(list(path.glob("*.compact.seg"))) > 4
    after = {seq: data for seq, data in model.items() if seq < 60}
    for moment in itertools.count(1):
        copy = memory_path / str(moment)
        shutil.copytree(path, copy)
        # As it is while a writer is at work.
        killed_after(lambda copy=copy: opened(copy))  # type: ignore[misc]
        with opened(copy, "r") as reader:
            begun = reader.replay()
            early = {entry.seq: bytes(entry.payload) for entry in itertools.islice(begun, 5)}
            died = died_at(moment, lambda copy=copy: opened(copy, "w").truncate_after(60))  # type: ignore[misc]
            read_on(begun, early)
            assert after.items() <= early.items() <= model.items()
            for _ in range(2):
                found: dict[int, bytes] = {}
                if read_on(reader.replay(), found):
                    one_of(found, [model, after])
                assert after.items() <= found.items() <= model.items()
                assert reader.verify().damages == ()
                assert len(reader) in (len(model), len(after))
                reader.segments.relist()
            with opened(copy, "w") as log:
                one_of(content(log), [model, after])
                fill(log, 20, "later")
                assert content(reader) == content(log)
        shutil.rmtree(copy)
        if not died:
            break
    assert moment > 20


def test_a_successor_that_does_not_come_to_count(memory_path: Path) -> None:
    """A killed writer left the file of one.

    Who met it took the segment before for one that does not grow any more.
    """
    path = memory_path / "log"
    with opened(path, segment_bytes=1 << 20) as log:
        fill(log, 2)
        log.roll_tail()
        fill(log, 10)
    with opened(path, "r") as reader:
        entries = reader.replay()
        assert next(entries).seq == 0

        def work() -> None:
            log = opened(path, "w")
            log.truncate_after(2)
            fill(log, 1, "new")
            die_in_a_roll(log)

        killed_after(work)
        assert segment_starts(path) == [0, 2, 3]
        assert [entry.seq for entry in (next(entries), next(entries))] == [1, 2]
        with opened(path, "w") as log:
            assert segment_starts(path) == [0, 2]
            fill(log, 5, "new", 100_000)
            assert content(reader) == content(log)


def test_a_roll_killed_in_a_log_without_records(memory_path: Path) -> None:
    """The segment that CONTROL names counts, though another one begins where the log does."""
    path = memory_path / "log"
    filled(path)
    with opened(path) as log:
        log.truncate_before(40)

    def work() -> None:
        die_in_a_roll(opened(path, "w"))

    with opened(path, "r") as reader:
        killed_after(work)
        assert segment_starts(path) == [36, 40]
        with opened(path, "w") as log:
            assert not log.recovered
            fill(log, 5)
            assert content(reader) == content(log)
