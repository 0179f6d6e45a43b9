"""Who opens a log while its last writer ends goes by what that one left, not by what was there before."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mmaplog import Log, attach
from tests.unit.mmaplog.keeping import content, opened


def begun(path: Path, does: str) -> tuple[int, int]:
    """A process that writes the log and, once told to, changes what counts of it or begins to, and is killed.

    Its id, and where to tell it.
    """
    ready, is_ready = os.pipe()
    wait, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            log = Log.open(path, segment_bytes=65536, shared=True)
            log.append_many([b"x" * 1000] * 300)
            os.write(is_ready, b"x")
            os.read(wait, 1)
            if does == "compacts":
                log.compact(lambda entry: entry.seq % 3 == 0)
            elif does == "appends":
                with log.reserve(1000) as room:
                    room[0:100] = bytes(range(100))
                    os.kill(os.getpid(), signal.SIGKILL)
            else:
                log.truncate_before(200)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(is_ready)
    assert os.read(ready, 1) == b"x"
    for each in (ready, wait):
        os.close(each)
    return child, go


@pytest.mark.parametrize("mode", ["w", "r"])
@pytest.mark.parametrize("does", ["compacts", "truncates", "appends"])
def test_a_writer_that_ends_once_manifest_was_read(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, mode: str
) -> None:
    """What he has replaced MANIFEST for is no stray, what he has dropped is not missing.

    And what he has not appended is settled before the next record is.
    """
    path = memory_path / "log"
    child, go = begun(path, does)
    real = attach._identify
    ended = []

    def identify(*arguments: Any, **others: Any) -> Any:
        found = real(*arguments, **others)
        if not ended:
            os.write(go, b"x")
            ended.append(os.waitpid(child, 0))
        return found

    monkeypatch.setattr(attach, "_identify", identify)
    with Log.open(path, mode, shared=mode == "w") as log:
        assert ended
        found = content(log)
        if does == "compacts":
            assert set(range(0, 200, 3)) <= set(found)
            assert 1 not in found
        elif does == "appends":
            assert set(found) == set(range(300))
        else:
            assert 0 < log.first_seq <= 200
        assert log.committed == 300
        if mode == "w":
            found[log.append(b"next")] = b"next"
    os.close(go)
    with opened(path) as log:
        assert content(log) == found
        assert log.verify().damages == ()
