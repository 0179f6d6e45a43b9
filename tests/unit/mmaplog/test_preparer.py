"""The thread that has the next window ready: it changes how long an append takes, and nothing else."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import struct
import threading
from pathlib import Path

import pytest

from mmapio.errors import MappingFault
from mmaplog import FlushPolicy, Log
from tests.support.waiting import PATIENCE_SECONDS, until
from tests.unit.mmapio.processes import killed_after, run_python
from tests.unit.mmapio.tracing import traced

MANUAL = FlushPolicy.MANUAL
RECORD = b"x" * 4000


def preparers() -> list[threading.Thread]:
    """Those of this process."""
    return [thread for thread in threading.enumerate() if thread.name == "mmaplog-preparer"]


FIEMAP, SYNC_FIRST, UNWRITTEN = 0xC020660B, 0x1, 0x800
EXTENTS_MAX = 2000


def written_blocks(path: Path) -> int:
    """How many blocks of 4 KiB the file system has data for, not only set aside."""
    request = struct.pack("=QQIIII", 0, (1 << 64) - 1, SYNC_FIRST, 0, EXTENTS_MAX, 0)
    found = bytearray(request + bytes(EXTENTS_MAX * 56))
    with path.open("rb") as file:
        try:
            fcntl.ioctl(file, FIEMAP, found)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
                pytest.skip("this file system does not tell: NOT TESTED that blocks are written ahead")
            raise
    count = struct.unpack_from("=I", found, 20)[0]
    extents = (struct.unpack_from("=QQQQQIIII", found, 32 + 56 * at) for at in range(count))
    return sum(length // 4096 for _, _, length, _, _, flags, *_ in extents if not flags & UNWRITTEN)


def append(log: Log, size: int) -> int:
    """So many bytes, record by record; how many records."""
    for _ in range(size // len(RECORD)):
        log.append(RECORD)
    return size // len(RECORD)


def test_it_comes_with_speed_and_goes_with_the_log(tmp_path: Path) -> None:
    """A log that is written slowly has no use for it."""
    log = Log.open(tmp_path / "log", flush_policy=MANUAL, segment_bytes=16 << 20)
    for _ in range(8):
        append(log, 200 << 10)
        log.flush()
    assert preparers() == []
    count = append(log, 40 << 20)
    (thread,) = preparers()
    assert [bytes(entry.payload) for entry in log.replay(log.committed - count)] == [RECORD] * count
    log.close()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_a_log_that_is_dropped_takes_it_along(tmp_path: Path) -> None:
    """Without close(), too."""
    log = Log.open(tmp_path / "log", flush_policy=MANUAL)
    append(log, 12 << 20)
    (thread,) = preparers()
    del log
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_truncating_while_it_works(tmp_path: Path) -> None:
    """It works on a file that is no longer the last."""
    with Log.open(tmp_path / "log", flush_policy=MANUAL, segment_bytes=32 << 20) as log:
        for _ in range(3):
            append(log, 10 << 20)
            log.truncate_after(log.committed - 5)
            log.truncate_before(log.committed - 100)
        append(log, 10 << 20)
        assert log.verify().damages == ()
        assert all(entry.payload == RECORD for entry in log.replay(log.first_seq))


def test_a_forked_child_has_none(tmp_path: Path) -> None:
    """It would wait for ever for a thread that it does not have."""
    log = Log.open(tmp_path / "log", flush_policy=MANUAL)
    append(log, 12 << 20)
    pid = os.fork()
    if pid == 0:
        log.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    append(log, 12 << 20)
    log.close()


def test_a_kill_leaves_what_was_committed(tmp_path: Path) -> None:
    """Whatever it was at."""
    path = tmp_path / "log"
    killed_after(lambda: append(Log.open(path, flush_policy=MANUAL), 14 << 20))
    with Log.open(path) as log:
        assert len(log) == (14 << 20) // len(RECORD)
        assert log.verify().damages == ()


def test_the_interpreter_ends_with_it_asleep(tmp_path: Path) -> None:
    """A thread that never comes back to Python must not be waited for."""
    code = """
from mmaplog import FlushPolicy, Log
log = Log.open(arguments[0], flush_policy=FlushPolicy.MANUAL)
for _ in range(3000):
    log.append(b"x" * 4000)
answer(log.committed)
"""
    assert run_python(code, tmp_path / "log") == 3000


def test_pages_are_made_ready_by_another_thread(tmp_path: Path) -> None:
    """Seen from the kernel: the calls that allocate and fault in are not made by the thread that appends."""
    code = """
import threading
from mmaplog import FlushPolicy, Log
log = Log.open(arguments[0], flush_policy=FlushPolicy.MANUAL)
for _ in range(8000):
    log.append(b"x" * 4000)
answer(threading.get_native_id())
"""
    trace = tmp_path / "trace"
    main, _ = traced(
        code,
        tmp_path / "log",
        events="madvise,fallocate",
        trace=trace,
        lacking="who prepares the next window",
    )
    lines = [line.split(maxsplit=1) for line in trace.read_text().splitlines()]
    ready = [int(thread) for thread, call in lines if "MADV_POPULATE_WRITE" in call or ", 23" in call]
    assert len(ready) >= 16
    # It makes the first small pieces ready itself, rather than wait for a thread.
    assert ready.count(main) <= 4


def test_a_fast_writer_meets_no_fault(tmp_path: Path) -> None:
    """A fault for each page would cost as much as its records."""

    def faults(number: int) -> int:
        with Log.open(tmp_path / f"log{number}", flush_policy=MANUAL) as log:
            append(log, 1 << 20)
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            append(log, 16 << 20)
            return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    # What the kernel writes out meanwhile, for whatever reason, it has to be told of again.
    assert any(faults(number) < (16 << 20) // mmap.PAGESIZE // 8 for number in range(20))


def test_where_each_record_is_synced_blocks_are_written_ahead(tmp_path: Path) -> None:
    """A first sync of data in blocks only set aside would wait for the file system's journal."""
    with Log.open(tmp_path / "log", flush_policy=MANUAL) as log:
        for _ in range(400):
            append(log, 8000)
            log.flush()
        (segment,) = (tmp_path / "log").glob("*.seg")
        # The window ahead may be under way.
        until(lambda: written_blocks(segment) * 4096 >= 400 * 8000 + (64 << 10))


def test_what_was_made_ready_for_many_is_not_written_with_each(tmp_path: Path) -> None:
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
    for _ in range(30000):
        log.append(b"x" * 100)
    log.flush()
    many = written() - before
    log.append(b"y" * 100, durable=True)
    before = written()
    for _ in range(20):
        log.append(b"y" * 100, durable=True)
    return many, written() - before, log.verify().damages == ()
# The kernel does not take apart what it has in use for a moment.
answer(list(zip(*map(attempt, range(5)))))
"""
    many, few, sound = run_python(code, tmp_path / "log")
    if min(many) == 0:
        pytest.skip("this file system is in memory: NOT TESTED what a durable append writes to the device")
    assert min(few) <= 20 * 3 * 4096
    assert all(sound)


def test_what_was_cut_is_not_filled_with_zeros(tmp_path: Path) -> None:
    """Making room behind the end that the file has now would hide that records are gone."""
    log = Log.open(tmp_path / "log", flush_policy=MANUAL)
    (segment,) = (tmp_path / "log").glob("*.seg")
    for _ in range(31):
        log.append(RECORD)
    # The next one needs more room.
    assert segment.stat().st_size == 128 << 10
    os.truncate(segment, 8192)
    with pytest.raises(MappingFault):
        log.append(RECORD)
    assert segment.stat().st_size == 8192
    with pytest.raises(MappingFault):
        log.close()
