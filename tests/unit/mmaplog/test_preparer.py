"""The thread that has the next window ready: it changes how long an append takes, and nothing else."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from mmaplog import FlushPolicy, Log
from tests.unit.mmapio.processes import killed_after, run_python
from tests.unit.mmapio.tracing import traced

MANUAL = FlushPolicy.MANUAL
RECORD = b"x" * 4000


def preparers() -> list[threading.Thread]:
    """Those of this process."""
    return [thread for thread in threading.enumerate() if thread.name == "mmaplog-preparer"]


def append(log: Log, size: int) -> int:
    """So many bytes, record by record; how many records."""
    for _ in range(size // len(RECORD)):
        log.append(RECORD)
    return size // len(RECORD)


def test_it_comes_with_speed_and_goes_with_the_log(tmp_path: Path) -> None:
    """A log that is written slowly, or often synced, has no use for it."""
    log = Log.open(tmp_path / "log", flush_policy=MANUAL, segment_bytes=16 << 20)
    for _ in range(4):
        append(log, 2 << 20)
        log.flush()
    assert preparers() == []
    count = append(log, 40 << 20)
    (thread,) = preparers()
    assert [bytes(entry.payload) for entry in log.replay(log.committed - count)] == [RECORD] * count
    log.close()
    thread.join(10)
    assert not thread.is_alive()


def test_a_log_that_is_dropped_takes_it_along(tmp_path: Path) -> None:
    """Without close(), too."""
    log = Log.open(tmp_path / "log", flush_policy=MANUAL)
    append(log, 12 << 20)
    (thread,) = preparers()
    del log
    thread.join(10)
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
    assert main not in ready
