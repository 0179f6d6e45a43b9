"""A compaction that is killed once it counts, and before those who read have been told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmapio import FlushPolicy
from mmaplog import Log, manifest
from tests.crash.child import Child


def test_a_reader_that_was_there_is_told_by_the_next_writer(tmp_path: Path) -> None:
    """MANIFEST said that a segment had been replaced, and CONTROL did not say so yet.

    The next writer removed what was replaced, and did not say so either: a reader that had been there went
    on with the old segments, and saw records that were no longer in the log.
    """
    path = tmp_path / "log"
    with Log.open(path, segment_bytes=65536, flush_policy=FlushPolicy.MANUAL) as log:
        log.append_many([b"%d" % number * 5_000 for number in range(40)])
    with Log.open(path, "r") as reader:
        assert len(list(reader.replay())) == 40

        def body(started: Callable[[], None]) -> None:
            killed = Log.open(path, "w", flush_policy=FlushPolicy.MANUAL)
            real = manifest.write

            def write(*arguments: Any) -> None:
                real(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)

            vars(manifest)["write"] = write
            started()
            killed.compact(lambda entry: entry.seq % 2 == 0)

        child = Child(body)
        child.wait_started()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert child.kill() == ""
        with Log.open(path, "w", flush_policy=FlushPolicy.MANUAL) as log:
            left = [entry.seq for entry in log.replay()]
            assert 20 <= len(left) < 40
            assert [entry.seq for entry in reader.replay()] == left
            assert (len(log), len(reader)) == (len(left), len(left))
