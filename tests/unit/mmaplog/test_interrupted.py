"""Destructors and signal handlers run in the middle of everything: refused they may be, hang or crash never.

Each case runs in a process of its own, which is ended by a signal if it hangs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmapio import _os
from mmaplog import FlushPolicy, Log, manifest
from tests.unit.mmapio.processes import run_python

#: `within(place, work)` has `work` done at the collection number `place`, between two steps of what follows.
PRELUDE = """
import gc, os, threading, time
from mmapio import Closed, FlushPolicy, MemoryMappedFile
from mmaplog import Log, LogError
me, outcomes = threading.get_ident(), []

def outcome(work):
    try:
        return work()
    except Exception as error:
        return type(error).__name__

def within(place, work):
    counted = 0
    def callback(phase, info):
        nonlocal counted
        if phase == "start" and threading.get_ident() == me:
            counted += 1
            if counted == place:
                outcomes.append(outcome(work))
    gc.callbacks[:] = [callback]
    gc.set_threshold(1)

def after():
    gc.callbacks.clear()
    gc.set_threshold(700)

def made(name, policy=FlushPolicy.NEVER, **options):
    return Log.open(f"{arguments[0]}.{name}", flush_policy=policy, segment_bytes=65536, **options)
"""


def test_closing_within_a_sync_is_refused(tmp_path: Path) -> None:
    """It took the words away that the sync was about to store to, which was the end of the process."""
    code = (
        PRELUDE
        + """
for place in range(1, 40):
    log = made(place)
    log.append_many([b"x" * 100] * 3000)
    within(place, log.close)
    outcome(log.flush)
    after()
    assert log.closed or (log.append(b"goes on"), log.flush(), log.durable) == (3000, None, 3001)
answer(sorted(set(map(str, outcomes))))
"""
    )
    assert set(run_python(code, tmp_path / "log")) <= {"None", "LogError"}


def test_closing_while_the_flusher_waits_for_its_turn(tmp_path: Path) -> None:
    """The thread was waited for by who had what it waited for."""
    code = (
        PRELUDE
        + """
log = made("log", FlushPolicy.every_millis(1))
log.append_many([b"x" * 1000] * 400)
within(3, lambda: (time.sleep(0.1), log.close()))
outcome(log.flush)
after()
answer(len(outcomes))
"""
    )
    assert run_python(code, tmp_path / "log") <= 1


def test_a_close_that_is_refused_stops_nothing(tmp_path: Path) -> None:
    """The flusher was ended first, and the log was never again flushed as its policy says."""
    code = (
        PRELUDE
        + """
for place in range(1, 30):
    log = made(place, FlushPolicy.every_millis(5))
    within(place, log.close)
    outcome(lambda: log.append_many([b"x" * 1000] * 200))
    after()
    if not log.closed:
        log.append(b"y")
        with Log.open(log.path, "r") as reader:
            assert reader.wait_durable(reader.committed - 1, timeout=300)
answer("LogError" in outcomes)
"""
    )
    assert run_python(code, tmp_path / "log") is True


def test_an_append_within_a_sync_takes_no_lock_that_waits_for_it(tmp_path: Path) -> None:
    """One thread had the sync and wanted to append, the other was appending and wanted a sync."""
    code = (
        PRELUDE
        + """
log = made("log", FlushPolicy.every_bytes(100_000))
log.append_many([b"x" * 1000] * 95)
inside = threading.Event()
def append():
    inside.set()
    time.sleep(0.2)
    return log.append(b"from a destructor" * 3000)
other = threading.Thread(target=lambda: (inside.wait(300), log.append_many([b"y" * 1000] * 500)))
other.start()
within(4, append)
log.flush()
after()
inside.set()
other.join()
answer(log.committed >= 595)
"""
    )
    assert run_python(code, tmp_path / "log") is True


def test_numbers_that_close_the_log(tmp_path: Path) -> None:
    """A number's own code runs between the check and the use."""
    code = (
        PRELUDE
        + """
class Closing:
    def __init__(self, log): self.log = log
    def __index__(self): self.log.close(); return 0
    def __radd__(self, other): self.log.close(); return other
    __add__ = __radd__
found = []
for use in ("follow(each)", "wait_durable(each)", "wait_durable(0, each)", "replay(each)", "replay(0, each)",
            "seek_time(each)", "read_many([each])", "append_many(b'xy', [each, each])"):
    for mode in ("c", "r"):
        writer = made(use.partition("(")[0] + mode)
        writer.append(b"x")
        log = writer if mode == "c" else Log.open(writer.path, "r")
        each = Closing(log)
        found.append(outcome(lambda: eval("log." + use)))
        writer.close()
answer(sorted(set(map(str, found))))
"""
    )
    assert set(run_python(code, tmp_path / "log")) <= {"Closed", "TypeError", "InvalidMode"}


def test_a_fault_elsewhere_while_appending_is_held_off(tmp_path: Path) -> None:
    """The room was not given back: the next append looked for it for ever, and nobody else could run."""
    code = (
        PRELUDE
        + """
log = made("log")
log.append(b"a")
other = MemoryMappedFile.create_rw(arguments[0] + ".other", 1 << 20)
os.truncate(other.path, 4096)
log.pause()
outcomes.append(outcome(lambda: other.read_bytes(500_000, 10)))
log.unpause()
answer([*outcomes, log.append(b"b"), log.append_many([b"c"]).start])
"""
    )
    assert run_python(code, tmp_path / "log") == ["MappingFault", 1, 2]


@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_log_that_was_being_emptied_is_not_opened_as_it_was(tmp_path: Path, mode: Any) -> None:
    """The refusal was taken for a missing manifest, and what was left of the segments was opened."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=FlushPolicy.MANUAL) as log:
        log.append(b"to be removed")
    directory = _os.open_directory(str(path))
    found = manifest.read(directory, str(path))
    manifest.write(directory, replace(found, erasing=True))
    with pytest.raises(FileNotFoundError, match="was being replaced"):
        Log.open(path, mode)
    with Log.open(path, "c") as log:
        assert len(log) == 0
