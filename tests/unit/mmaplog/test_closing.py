"""A close is the last call of a handle: what it leaves undone it says, and nobody else will."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mmapio import FlushPolicy, _os
from mmapio.flusher import Flusher
from mmaplog import Log
from tests.support.waiting import until
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import run_python
from tests.unit.mmaplog.keeping import fill, opened


def test_a_failed_sync_of_which_nobody_heard_is_told_by_the_close(tmp_path: Path, interposer: Path) -> None:
    """It was the flusher's, or another process's: every call had succeeded, the close too, and records that
    it should have made durable could be lost. Who was told before, or asked for no sync, closes in peace.
    """
    code = (
        PRELUDE
        + """
import logging
from mmapio import FlushPolicy
from mmapkv import KVStore
from mmaplog import Log
logging.disable()
def background(opened, write):
    handle = opened(flush_policy=FlushPolicy.every_millis(1))
    write(handle)
    handle.flush()
    flusher, = [each for each in threading.enumerate() if each.name == "mmaplog-flusher"]
    fail(FDATASYNC, 1, errno.EIO)
    write(handle)
    flusher.join()
    return handle
def another(opened, write, policy=FlushPolicy.MANUAL):
    handle, other = (opened(flush_policy=each, shared=True) for each in (policy, FlushPolicy.MANUAL))
    write(handle)
    fail(FDATASYNC, 1, errno.EIO)
    assert outcome(other.flush) == "FlushFailed"
    assert outcome(other.close) == ""
    return handle
def told(opened, write):
    handle = another(opened, write)
    assert outcome(lambda: write(handle)) == "Poisoned"
    return handle
def asked_for_none(opened, write):
    return another(opened, write, FlushPolicy.NEVER)
found = []
for kind, write in ((Log, lambda log: log.append(b"x")), (KVStore, lambda kv: kv.put(b"key", b"value"))):
    for case in (background, another, told, asked_for_none):
        path = f"{arguments[0]}/{kind.__name__}-{case.__name__}"
        handle = case(lambda **options: kind.open(path, **options), write)
        found.append([outcome(handle.close), handle.closed, outcome(handle.close)])
        kind.open(path).close()
answer(found)
"""
    )
    case = [["Poisoned", True, ""], ["Poisoned", True, ""], ["", True, ""], ["", True, ""]]
    assert run_python(code, tmp_path, preload=interposer) == [*case, *case]


def test_a_close_that_is_interrupted_has_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had let go of everything, and what was not yet synced was nobody's business any more; closing again
    did nothing.
    """
    path = tmp_path / "log"
    log = opened(path)
    # More than a segment holds: the sync of the directory is the second half of it.
    fill(log, 20)
    real, interrupted = _os.sync, []

    def interrupt(*arguments: object) -> None:
        if not interrupted:
            interrupted.append(None)
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(_os, "sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        log.close()
    assert log.closed
    with opened(path, "r") as reader:
        assert reader.durable == reader.committed == 20


def test_a_handle_whose_close_was_interrupted_keeps_its_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waited for the thread that flushes: that was gone then, the handle was not, and what was
    appended later never became durable.
    """
    before = set(threading.enumerate())
    log = Log.open(tmp_path / "log", flush_policy=FlushPolicy.every_millis(1))
    log.append(b"before")
    stop = Flusher.stop

    def interrupt(flusher: Flusher) -> None:
        stop(flusher)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Flusher, "stop", interrupt)
        with pytest.raises(KeyboardInterrupt):
            log.close()
    assert not log.closed
    assert len(set(threading.enumerate()) - before) == 1
    seq = log.append(b"after")
    until(lambda: log.durable > seq)
    log.close()
    assert set(threading.enumerate()) <= before
