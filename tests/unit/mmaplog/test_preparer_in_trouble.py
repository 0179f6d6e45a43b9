"""The thread that has the next window ready, met at work by what else may happen: it harms no records."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.mmapio.gate import PRELUDE as GATE
from tests.unit.mmapio.gate import gate  # noqa: F401
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import run_python

# A log where each append was synced, so that the thread writes the window ahead page by page and syncs it.
LOG = """
import gc, os, pathlib
from mmaplog import FlushPolicy, Log
path = pathlib.Path(arguments[0])
RECORD = b"x" * 4000
def opened():
    log = Log.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=1 << 20)
    for _ in range(10):
        log.append(RECORD, durable=True)
    return log
def size():
    return sum(each.stat().st_size for each in path.glob("*.seg"))
def append_until_more_room(log):
    before = size()
    while size() == before:
        log.append(RECORD)
"""
AT_WORK = PRELUDE + LOG

# Another process that wants to write: how large the segment is once it may.
NEXT_WRITER = """
import pathlib, sys, time
sys.path.append(sys.argv[1])
from mmaplog import Locked, Log
told = False
while True:
    try:
        log = Log.open(sys.argv[2], "w")
        break
    except Locked:
        if not told:
            print("locked", flush=True)
        told = True
        time.sleep(0.01)
(segment,) = pathlib.Path(sys.argv[2]).glob("*.seg")
print(segment.stat().st_size)
"""


def test_a_log_that_is_closed_is_given_away_once_it_is_through(tmp_path: Path, interposer: Path) -> None:
    """Zeros that it has yet to write would hit what the next writer appends."""
    code = (
        AT_WORK
        + """
log = opened()
library.interposer_hold(PWRITE, 1)
append_until_more_room(log)
wait_until_held()
closing = threading.Thread(target=log.close)
closing.start()
closing.join(0.3)
found = [closing.is_alive(), outcome(lambda: Log.open(path))]
library.interposer_let_on()
closing.join()
answer([*found, outcome(lambda: Log.open(path).close())])
"""
    )
    assert run_python(code, tmp_path / "log", preload=interposer) == [True, "Locked", ""]


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_a_log_that_is_dropped_is_given_away_once_it_is_through(
    tmp_path: Path, interposer: Path, in_a_cycle: bool
) -> None:
    """Whatever the order in which it is taken apart, descriptors and lock stay until then."""
    code = (
        AT_WORK
        + """
import subprocess, sys
NEXT = """
        + repr(NEXT_WRITER)
        + """
class Service:
    def __init__(self, log, in_a_cycle):
        self.log, self.service = log, self if in_a_cycle else None
gc.disable()
service = Service(opened(), arguments[1])
library.interposer_hold(PWRITE, 1)
append_until_more_room(service.log)
wait_until_held()
before = size()
other = subprocess.Popen([sys.executable, "-c", NEXT, sys.path[-1], path], stdout=subprocess.PIPE, text=True)
assert other.stdout.readline().strip() == "locked"
assert library.interposer_let_on_later() == 0
del service
gc.collect()
answer([before, int(other.communicate()[0])])
"""
    )
    before, met = run_python(code, tmp_path / "log", in_a_cycle, preload=interposer)
    assert met >= before + (128 << 10)


def test_a_sync_of_its_own_that_fails_poisons_the_log(tmp_path: Path, interposer: Path) -> None:
    """It covers records, and a descriptor that is opened later, as after a roll, hears of it no more."""
    code = (
        AT_WORK
        + """
log = opened()
fail(FDATASYNC, 1, errno.EIO)
library.interposer_hold(FDATASYNC, 1)
append_until_more_room(log)
wait_until_held()
durable = log.durable
library.interposer_let_on()
first = outcome(lambda: [log.append(RECORD) for _ in range(1000)])
answer([first, outcome(log.flush), log.durable == durable, log.stats()["poison"] == errno.EIO])
"""
    )
    assert run_python(code, tmp_path / "log", preload=interposer) == ["Poisoned", "Poisoned", True, True]


def test_what_was_cut_under_it_stays_cut(tmp_path: Path, interposer: Path) -> None:
    """Zeros up to where it was to come would hide that records are gone, and a sync would succeed."""
    code = (
        AT_WORK
        + """
log = opened()
library.interposer_hold(PWRITE, 1)
append_until_more_room(log)
wait_until_held()
(segment,) = path.glob("*.seg")
os.truncate(segment, 8192)
library.interposer_let_on()
found = outcome(log.flush)
answer([found, segment.stat().st_size])
"""
    )
    assert run_python(code, tmp_path / "log", preload=interposer) == ["MappingFault", 8192]


def test_what_is_cut_right_before_it_writes_stays_cut(tmp_path: Path, gate: Path) -> None:  # noqa: F811
    """It has seen where the file ends; what it writes goes where that is by then."""
    code = (
        GATE
        + LOG
        + """
log = opened()
library.gate_stop_next(PWRITEV2, 0)
append_until_more_room(log)
library.gate_wait_until_reached()
(segment,) = path.glob("*.seg")
os.truncate(segment, 8192)
library.gate_let_on()
more = lambda: [log.append(RECORD) for _ in range(100)]
answer([outcome(log.flush), outcome(more), outcome(log.flush), segment.stat().st_size])
"""
    )
    *found, size = run_python(code, tmp_path / "log", preload=gate)
    assert found == ["MappingFault"] * 3
    # One page, which was on its way.
    assert size <= 8192 + 4096


@pytest.mark.parametrize("missing", ["descriptors", "threads"])
def test_appends_need_neither_a_thread_nor_a_descriptor(tmp_path: Path, missing: str) -> None:
    """It makes them faster, and nothing else."""
    code = """
import resource, threading
from mmaplog import FlushPolicy, Log
log = Log.open(arguments[0], flush_policy=FlushPolicy.MANUAL, segment_bytes=16 << 20)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
def refuse(*_):
    raise RuntimeError("can't start new thread")
if arguments[1] == "threads":
    threading.Thread.start = refuse
else:
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
for _ in range(400):
    log.append(b"x" * 4000, durable=True)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
answer([log.committed, log.durable])
"""
    assert run_python(code, tmp_path / "log", missing) == [400, 400]


def test_blocks_that_cannot_be_had_again_are_a_full_disk(tmp_path: Path, interposer: Path) -> None:
    """Where zeroing takes other blocks, a disk full by then leaves a hole, which no store may meet."""
    code = (
        PRELUDE
        + """
from mmaplog import FlushPolicy, Log
log = Log.open(arguments[0], flush_policy=FlushPolicy.MANUAL)
for _ in range(30000):
    log.append(b"x" * 100)
log.flush()
log.append(b"y" * 100, durable=True)
count = log.committed
fail(FALLOCATE, 1, errno.ENOSPC, 1000)
refused = [outcome(lambda: log.append(b"z" * 100)) for _ in range(2)]
unchanged = log.committed == count
fail(FALLOCATE, 0, 0)
answer([refused, unchanged, log.append(b"z", durable=True) == count, log.verify().damages == ()])
"""
    )
    found = run_python(code, tmp_path / "log", preload=interposer)
    assert found == [["OSError", "OSError"], True, True, True]
