"""One handle, many threads. Each case runs in a process of its own: what goes wrong here may be a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.mmapio.processes import run_python

COMMON = """
import sys, threading, time
from mmapio import Closed, FlushPolicy
from mmaplog import Log
sys.setswitchinterval(1e-5)
path, policy = arguments[0], eval(arguments[1])

def together(*works):
    errors = []
    start = threading.Barrier(len(works))
    def run(work):
        start.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return errors
"""
POLICIES = ["FlushPolicy.NEVER", "FlushPolicy.MANUAL", "FlushPolicy.ALWAYS", "FlushPolicy.every_millis(1)"]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_append_of_every_thread_is_there_once(tmp_path: Path, policy: str) -> None:
    """Two threads that both think a place is theirs lose a record, or mix two."""
    code = (
        COMMON
        + """
log = Log.open(path, flush_policy=policy, segment_bytes=64 << 10)
seqs = {}
count = 60 if "ALWAYS" in arguments[1] else 2000
def appender(name):
    def work():
        for number in range(count):
            record = b"%d %d " % (name, number)
            seqs[log.append(record * (number % 40 + 1))] = record
    return work
def flusher():
    for _ in range(30):
        log.flush()
errors = together(*(appender(name) for name in range(4)), flusher)
assert not errors, errors
assert sorted(seqs) == list(range(4 * count))
for entry in log.replay():
    record = seqs[entry.seq]
    assert bytes(entry.payload) == record * (int(record.split()[1]) % 40 + 1)
log.flush()
assert log.durable == len(log) == 4 * count
log.close()
answer(len(Log.open(path, "r")))
"""
    )
    assert run_python(code, tmp_path / "log", policy) == (240 if "ALWAYS" in policy else 8000)


@pytest.mark.parametrize("policy", POLICIES)
def test_closing_while_others_use_the_log(tmp_path: Path, policy: str) -> None:
    """They get Closed. A flush that came back from the disk to a log that was gone crashed the process."""
    code = (
        COMMON
        + """
committed = 0
for round_ in range(8):
    log = Log.open(f"{path}{round_}", flush_policy=policy, segment_bytes=64 << 10)
    acknowledged = []
    def append():
        while True:
            acknowledged.append(log.append(b"x" * 500))
    def flush():
        while True:
            log.flush()
    def replay():
        while True:
            for entry in log.replay(max(0, len(log) - 5)): len(entry.payload)
    def close():
        while len(acknowledged) < 20: time.sleep(0)
        log.close()
    errors = together(append, append, flush, replay, close)
    assert len(errors) == 4 and all(type(error) is Closed for error in errors), errors
    with Log.open(f"{path}{round_}", "r") as reader:
        assert len(reader) >= len(acknowledged)
        committed += len(list(reader.replay()))
answer(committed)
"""
    )
    assert run_python(code, tmp_path / "log", policy) >= 160


def test_closing_from_several_threads(tmp_path: Path) -> None:
    """Each of them may think that it is the one."""
    code = (
        COMMON
        + """
for round_ in range(10):
    log = Log.open(f"{path}{round_}", flush_policy=policy)
    log.append(b"x")
    errors = together(*[log.close] * 6)
    assert not errors, errors
    assert log.closed
answer(True)
"""
    )
    for number, policy in enumerate(["FlushPolicy.MANUAL", "FlushPolicy.every_millis(1)"]):
        assert run_python(code, tmp_path / f"log{number}", policy)


def test_reading_while_the_log_rolls(tmp_path: Path) -> None:
    """The table of segments grows below a replay."""
    code = (
        COMMON
        + """
log = Log.open(path, flush_policy=policy, segment_bytes=64 << 10)
done = []
def append():
    for number in range(3000):
        log.append(b"%d " % number * 30)
    done.append(True)
def replay():
    rounds = 0
    while not done or rounds == 0:
        rounds += 1
        for number, entry in enumerate(log.replay()):
            assert entry.seq == number and bytes(entry.payload) == b"%d " % number * 30
errors = together(append, replay, replay)
assert not errors, errors
answer(len(list(log.replay())))
"""
    )
    assert run_python(code, tmp_path / "log", "FlushPolicy.NEVER") == 3000
