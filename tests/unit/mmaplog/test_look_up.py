"""Single records, by number and by time, and the way back."""

from __future__ import annotations

import random
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmapio import Closed
from mmaplog import CorruptionError, FlushPolicy, Log, LogError
from tests.unit.mmapio.processes import run_python
from tests.unit.mmapio.tracing import calls_between
from tests.unit.mmaplog.segment_file import HEADER_SIZE, RECORD, SegmentFile, segment_paths

COUNT = 5000


def payload(number: int) -> bytes:
    """Of no fixed size."""
    return b"%d" % number * (number % 7)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """A log of several segments."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=FlushPolicy.NEVER, segment_bytes=64 << 10, timestamps=True) as made:
        made.append_many([payload(number) for number in range(COUNT)])
        yield made


def test_every_record_is_found(log: Log, tmp_path: Path) -> None:
    """In any order, by the writer and by a reader that has walked nothing yet."""
    assert len(segment_paths(tmp_path / "log")) > 3
    numbers = list(range(COUNT))
    random.Random(1).shuffle(numbers)
    with Log.open(tmp_path / "log", "r") as reader:
        for number in numbers:
            for each in (log, reader):
                entry = each[number]
                assert (entry.seq, bytes(entry.payload)) == (number, payload(number))


def test_negative_numbers_count_from_the_end(log: Log) -> None:
    """As of a list."""
    assert log[-1].seq == COUNT - 1
    assert log[-COUNT].seq == 0


@pytest.mark.parametrize("number", [COUNT, -COUNT - 1, 1 << 64, -(1 << 64)])
def test_what_is_not_there_is_an_index_error(log: Log, number: int) -> None:
    """With the range that is."""
    with pytest.raises(IndexError, match=rf"record {number} is not in the log, which holds \[0, {COUNT}\)"):
        log[number]


def test_what_is_no_number(log: Log) -> None:
    """A slice is what replay is for."""
    for wrong in (slice(0, 3), "1", 1.0, None):
        with pytest.raises(TypeError):
            log[wrong]  # type: ignore[index]


def test_a_closed_log(tmp_path: Path) -> None:
    """Typed, like everything else."""
    log = Log.open(tmp_path / "log")
    log.append(b"x")
    log.close()
    for use in (lambda: log[0], lambda: log.read_many([0]), lambda: log.seek_time(0), log.batch):
        with pytest.raises(Closed):
            use()


def test_read_many_keeps_the_order(log: Log) -> None:
    """Of what it was given, twice the same included."""
    wanted = [4000, 3, 3, -1]
    assert [entry.seq for entry in log.read_many(wanted)] == [4000, 3, 3, COUNT - 1]
    assert log.read_many([]) == []


def test_a_record_appended_since_is_found(log: Log) -> None:
    """What was learnt of a segment goes on being right while it grows, and after it was left."""
    for number in range(COUNT, 2 * COUNT):
        log.append(payload(number))
        if number % 97 == 0:
            assert bytes(log[number].payload) == payload(number)
            assert bytes(log[number - 50].payload) == payload(number - 50)


@pytest.mark.parametrize(
    ("start", "stop"), [(0, COUNT), (0, 0), (1, 2), (255, 256), (100, 4321), (COUNT, COUNT)]
)
def test_the_way_back(log: Log, start: int, stop: int) -> None:
    """The same records, the other way round."""
    entries = list(log.replay(start, stop, reverse=True))
    assert [entry.seq for entry in entries] == list(range(start, stop))[::-1]
    assert all(bytes(entry.payload) == payload(entry.seq) for entry in entries)


def test_damage_on_the_way_is_told(log: Log, tmp_path: Path) -> None:
    """Both ways, and by number; not when it is not asked."""
    log.close()
    segment = SegmentFile(segment_paths(tmp_path / "log")[0])
    record = list(segment.records())[10]
    segment.data[record.offset + 16] ^= 1
    segment.save()
    with Log.open(tmp_path / "log", "r") as reader:
        for use in (
            lambda: list(reader.replay(0, 20)),
            lambda: list(reader.replay(0, 20, reverse=True)),
            lambda: reader[10],
        ):
            with pytest.raises(CorruptionError, match="record 10"):
                use()
        assert reader[11].seq == 11
        assert len(list(reader.replay(0, 20, verify=False, reverse=True))) == 20


def test_a_look_up_does_not_look_at_the_directory(log: Log, tmp_path: Path) -> None:
    """CONTROL says which segment is the last; listing the files each time cost thirty times the look-up."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("no strace: NOT TESTED what a look-up asks of the system")
    code = """
from mmaplog import Log
log = Log.open(arguments[0], "r")
numbers = [0, 1, 2500, 4998, 4999]
log.read_many(numbers)
list(log.replay(4000, 4010, reverse=True))
print("begin", flush=True)
for _ in range(100):
    log.read_many(numbers)
    list(log.replay(4000, 4010, reverse=True))
print("end", flush=True)
answer(len(log))
"""
    trace = tmp_path / "trace"
    command = (strace, "-qq", "-o", str(trace), "-e", "trace=write,getdents64,openat")
    assert run_python(code, tmp_path / "log", prefix=command) == COUNT
    assert calls_between(trace) == []


# By time.


def test_the_first_record_that_is_not_older(log: Log) -> None:
    """For every time there is in the log, the one before, and the one after."""
    times = [entry.timestamp or 0 for entry in log.replay()]
    assert times == sorted(times)
    for number in [0, 1, 2, 700, COUNT // 2, COUNT - 1]:
        for wanted in (times[number] - 1, times[number], times[number] + 1):
            expected = next((at for at, each in enumerate(times) if each >= wanted), COUNT)
            assert log.seek_time(wanted) == expected


def test_before_and_after_everything(log: Log) -> None:
    """The ends."""
    assert log.seek_time(0) == 0
    assert log.seek_time(time.time_ns() + 10**12) == COUNT


def test_an_empty_log_has_no_time(tmp_path: Path) -> None:
    """The next record is the first that is not older."""
    with Log.open(tmp_path / "log", timestamps=True) as log:
        assert log.seek_time(0) == 0


def test_a_log_without_times_says_so(tmp_path: Path) -> None:
    """A number that means nothing would be worse."""
    with Log.open(tmp_path / "log") as log:
        log.append(b"x")
        with pytest.raises(LogError, match="timestamps=True"):
            log.seek_time(0)


def test_times_never_go_back(tmp_path: Path) -> None:
    """A clock that is set back must not break the search; here the log comes from the future."""
    path = tmp_path / "log"
    with Log.open(path, timestamps=True) as log:
        log.append(b"x")
        now = log[0].timestamp
    assert now is not None
    segment = SegmentFile(segment_paths(path)[0])
    ahead = now + 10**12
    struct.pack_into("<Q", segment.data, HEADER_SIZE + RECORD.size, ahead)
    segment.reseal(HEADER_SIZE)
    segment.save()
    (path / "CONTROL").unlink()
    with Log.open(path, timestamps=True) as log:
        log.append(b"y")
        log.append_many([b"z"])
        assert [entry.timestamp for entry in log.replay()] == [ahead] * 3
