"""Writers of one log of which one is killed, at moments that the storm meets by chance."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmapio import FlushPolicy, _os
from mmaplog import Log
from tests.crash.child import Child

SEGMENT_BYTES = 64 << 10


def shared(path: Path) -> Log:
    """Open the log as one of several writers."""
    return Log.open(path, "c", shared=True, flush_policy=FlushPolicy.NEVER, segment_bytes=SEGMENT_BYTES)


def die_at(name: str, after: bool) -> None:
    """Have this process killed before or after the next call of a function of the boundary."""
    real: Callable[..., object] = vars(_os)[name]

    def call(*arguments: Any, **named: Any) -> None:
        if after:
            real(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    vars(_os)[name] = call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["open_file", "grow", "write_at", "sync", "replace_file"])
def test_the_segment_of_a_roll_that_was_not_finished_is_no_part_of_the_log(
    tmp_path: Path, name: str, after: bool
) -> None:
    """A writer was killed in a roll, when the new segment had its name.

    The others went on in the old one, for their records were smaller, and rolled later. They had not heard of
    the first segment and left it there: from then on it stood where the log was said to go on, without a
    record in it, and everything behind it could not be read.
    """
    path = tmp_path / "log"
    with shared(path) as log:
        log.append(bytes(50_000))

        def body(started: Callable[[], None]) -> None:
            other = shared(path)
            die_at(name, after)
            started()
            other.append(bytes(20_000))

        child = Child(body)
        child.wait_started()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert child.kill() == ""
        sizes = [50_000, 1_000, 30_000, 40_000]
        for size in sizes[1:]:
            log.append(bytes(size))
        assert [len(entry.payload) for entry in log.replay()] == sizes
    with Log.open(path, "r") as reader:
        assert [len(entry.payload) for entry in reader.replay()] == sizes
        assert reader.verify().damages == ()
