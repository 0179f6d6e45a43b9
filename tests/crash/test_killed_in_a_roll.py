"""A roll to a segment that was made ahead, killed at each of its calls, and who opens the log next."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import FlushPolicy
from mmaplog import Log
from tests.crash.child import Child
from tests.crash.moments import die, watch

# What a roll calls once the file has its first name. Before that there is nothing that a kill could leave.
CALLS = ("name_file", "write_at", "sync", "replace_file")
RECORD = b"x" * 60_000


def written_until(path: Path, deadly: Callable[[str], bool]) -> Child:
    """Have records appended by a process that kills itself at a deadly moment of a roll to a spare."""

    def write(started: Callable[[], None]) -> None:
        spare = False

        def at(moment: str) -> None:
            nonlocal spare
            if moment == "before name_file":
                spare = True
                started()
            if spare and deadly(moment):
                die()

        watch(at, CALLS, afterwards=CALLS)
        log = Log.open(path, "n", flush_policy=FlushPolicy.MANUAL, segment_bytes=2 << 20)
        for number in range(400):
            log.append(b"%d" % number + RECORD)
        os._exit(0)

    return Child(write)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_nothing_is_lost_and_nothing_is_left(tmp_path: Path, when: str, name: str) -> None:
    path = tmp_path / "log"
    child = written_until(path, lambda moment: moment == f"{when} {name}")
    child.wait_started()
    ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert child.kill() == ""
    assert ended is not None
    if (ended.si_code, ended.si_status) == (os.CLD_EXITED, 0):
        pytest.skip("the file system has no files without a name: NOT TESTED")
    assert ended.si_code == os.CLD_KILLED
    with Log.open(path, "w", flush_policy=FlushPolicy.MANUAL) as log:
        numbers = [int(bytes(entry.payload).rstrip(b"x")) for entry in log.replay()]
        assert len(numbers) >= 30
        assert numbers == list(range(log.committed))
        log.append(b"next")
        assert not [each for each in path.iterdir() if each.suffix == ".tmp"]
        assert len(list(log.replay())) == len(numbers) + 1
