"""Many bytes in one call: records made in memory and written by the piece, the same as any other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmaplog import FlushPolicy, Log
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import run_python
from tests.unit.mmaplog.segment_file import segment_paths

MANUAL = FlushPolicy.MANUAL
PIECE = 256 << 10
SEGMENT = 4 << 20


def records_of(seed: int, sizes: tuple[int, ...], total: int) -> list[bytes]:
    """Records of these sizes in random order, some `total` bytes with their headers."""
    chance = random.Random(seed)
    made, size = [], 0
    while size < total:
        made.append(chance.randbytes(chance.choice(sizes)))
        size += (len(made[-1]) + 16 + 7) & ~7
    return made


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """A log that flushes only when told."""
    with Log.open(tmp_path / "log", flush_policy=MANUAL, segment_bytes=SEGMENT) as made:
        yield made


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [(100,), (0, 1, 7, 8, 9), (112,), (5_000, 60_000, 3), (65_000, 66_000, 200_000)],
    ids=["equal", "tiny", "ending at pieces", "large and small", "too large for a piece"],
)
def test_the_records_are_all_there(
    tmp_path: Path, sizes: tuple[int, ...], timestamps: bool, atomic: bool
) -> None:
    """Wherever pieces, windows and segments end; also when recovery reads them."""
    path = tmp_path / "log"
    expected = []
    with Log.open(path, flush_policy=MANUAL, timestamps=timestamps, segment_bytes=SEGMENT) as log:
        for seed in range(3):
            records = [b"between", *records_of(seed, sizes, 2 * SEGMENT if seed == 1 else 3 * PIECE)]
            expected += records
            log.append(records[0])
            assert log.append_many(records[1:], atomic=atomic).stop == len(expected)
        assert [bytes(entry.payload) for entry in log.replay()] == expected
        assert log.verify().damages == ()
    (path / "CONTROL").unlink()
    with Log.open(path) as log:
        assert log.recovered
        assert [bytes(entry.payload) for entry in log.replay()] == expected


def test_what_follows_the_end_is_zeros(log: Log, tmp_path: Path) -> None:
    """The record that goes beyond a piece lies in memory for a while: nothing of it may be written twice."""
    for _ in range(3):
        log.append_many(records_of(1, (1000, 30_000), 5 * PIECE))
        end = log.end_of_tail[1]
        assert not any(segment_paths(tmp_path / "log")[-1].read_bytes()[end:])


def test_other_processes_see_them_as_they_are_published(log: Log, tmp_path: Path) -> None:
    """They are written to the file and read from memory: the same pages."""
    expected = records_of(2, (100, 3000), 6 * PIECE)
    with Log.open(tmp_path / "log", "r") as reader:
        log.append_many(expected)
        assert [bytes(entry.payload) for entry in reader.replay()] == expected


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("nth", [1, 2, 5])
def test_a_write_that_fails_leaves_a_prefix(tmp_path: Path, interposer: Path, nth: int, atomic: bool) -> None:
    """What was published stays, of a batch nothing; and the next records take the place of the rest."""
    code = (
        PRELUDE
        + """
from mmaplog import FlushPolicy, Log
nth, atomic = arguments[1:]
log = Log.open(arguments[0], flush_policy=FlushPolicy.MANUAL)
log.append(b"before")
records = [b"%07d" % number * 30 for number in range(8000)]
fail(PWRITE, nth, errno.EIO)
told = outcome(lambda: log.append_many(records, atomic=bool(atomic)))
count = log.committed
assert [bytes(entry.payload) for entry in log.replay(1)] == records[: count - 1]
assert log.append(b"after") == count and log.append_many(records).start == count + 1
log.close()
answer([told, count])
"""
    )
    told, count = run_python(code, tmp_path / "log", nth, atomic, preload=interposer)
    assert told == "OSError"
    # The first windows of a log are too small for pieces.
    assert (count == 1) == atomic
    (tmp_path / "log" / "CONTROL").unlink()
    with Log.open(tmp_path / "log") as log:
        assert len(log) == count + 1 + 8000
        assert log.verify().damages == ()
        assert bytes(log[count].payload) == b"after"


def test_a_cut_file_is_not_extended(tmp_path: Path, interposer: Path) -> None:
    """Writing behind its end would make it whole again, with holes in place of what was committed."""
    code = (
        PRELUDE
        + """
import os, pathlib, threading
from mmaplog import FlushPolicy, Log
def refuse(*_):
    raise RuntimeError("can't start new thread")
# What the thread does that goes ahead is told in test_preparer_in_trouble.
threading.Thread.start = refuse
log = Log.open(arguments[0], flush_policy=FlushPolicy.MANUAL)
# After a flush the file grows by as much as it holds: there is room for more than a piece.
log.append_many([b"x" * 100] * 5000, atomic=True, durable=True)
log.append(b"x" * 100)
(segment,) = pathlib.Path(arguments[0]).glob("*.seg")
os.truncate(segment, 8192)
told = outcome(lambda: log.append_many([b"y" * 100] * 5000))
answer([told, outcome(log.flush), segment.stat().st_size])
"""
    )
    assert run_python(code, tmp_path / "log", preload=interposer) == ["MappingFault", "MappingFault", 8192]


def test_a_durable_append_after_many_writes_little(tmp_path: Path) -> None:
    """The kernel keeps together what was written in one go, and writes all of it again for one record."""
    code = """
import pathlib
from mmaplog import FlushPolicy, Log
def written():
    lines = pathlib.Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])
def attempt(number):
    log = Log.open(arguments[0] + str(number), flush_policy=FlushPolicy.MANUAL)
    before = written()
    log.append_many([b"x" * 100] * 20000, durable=True)
    many = written() - before
    before = written()
    for _ in range(20):
        log.append(b"y" * 100, durable=True)
    return many, written() - before
# The kernel does not take apart what it has in use for a moment.
answer(list(zip(*map(attempt, range(5)))))
"""
    every_many, every_few = run_python(code, tmp_path / "log")
    many, few = min(every_many), min(every_few)
    if many == 0:
        pytest.skip("this file system is in memory: NOT TESTED what a durable append writes to the device")
    assert many >= 20_000 * 120
    assert few <= 20 * 3 * 4096
