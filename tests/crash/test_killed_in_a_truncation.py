"""A truncation that is killed once MANIFEST says that the end is to go, and who opens the log next."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from mmapio import FlushPolicy, _os
from mmaplog import Log, truncation
from tests.crash.child import Child


@pytest.mark.parametrize("at", ["the beginning", "the removal of segments"])
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("mode", ["r", "w"])
def test_whoever_opens_the_log_next_finishes_it(
    tmp_path: Path, mode: Literal["r", "w"], lost: bool, at: str
) -> None:
    """A reader did so too, through words that it had mapped for reading alone, and died of it.

    When it lived, it looked for the segments that it had just removed.
    """
    path = tmp_path / "log"
    with Log.open(path, segment_bytes=65536, flush_policy=FlushPolicy.MANUAL) as log:
        log.append_many([b"%d" % number * 5_000 for number in range(40)])

    def truncate(started: Callable[[], None]) -> None:
        def die(*arguments: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        killed = Log.open(path, "w", flush_policy=FlushPolicy.MANUAL)
        if at == "the beginning":
            vars(truncation)["finish_cut"] = die
        else:
            vars(_os)["remove_file"] = die
        started()
        killed.truncate_after(4)

    child = Child(truncate)
    child.wait_started()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert child.kill() == ""
    if lost:
        (path / "CONTROL").unlink()

    def look(started: Callable[[], None]) -> None:
        with Log.open(path, mode) as log:
            assert (log.committed, len(list(log.replay()))) == (4, 4)
        started()
        os._exit(0)

    child = Child(look)
    ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child.wait_started()
    assert child.kill() == ""
    assert ended is not None
    assert (ended.si_code, ended.si_status) == (os.CLD_EXITED, 0)
    with Log.open(path, "w", flush_policy=FlushPolicy.MANUAL) as log:
        assert log.append(b"next") == 4
        assert [entry.seq for entry in log.replay()] == [0, 1, 2, 3, 4]
