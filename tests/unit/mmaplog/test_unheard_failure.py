"""A sync that failed, and a process that was killed before it could say so."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import pytest

from mmapio import FlushPolicy
from mmaplog import Log
from tests.unit.mmapio.processes import in_child
from tests.unit.mmaplog.segment_file import segment_paths

PAGE = 4096
# Of CONTROL's words, as the format pages have them.
SYNC_INFLIGHT = PAGE + 72
SYNCING = 1
DURABLE = 10


def killed_in_a_failed_sync(path: Path) -> int:
    """Leave a log of which a page is gone that was not durable."""
    log = Log.open(path, segment_bytes=1 << 20, flush_policy=FlushPolicy.NEVER)
    log.append_many([b"d" * 1000] * DURABLE, durable=True)
    log.append_many([b"n" * 5000] * 10)
    _, end = log.end_of_tail
    with segment_paths(path)[0].open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
        start = (end - 2 * PAGE) // PAGE * PAGE
        mapped[start : start + PAGE] = bytes(PAGE)
    with (path / "CONTROL").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
        mapped[SYNC_INFLIGHT : SYNC_INFLIGHT + 8] = struct.pack("<Q", SYNCING)
    return log.durable


def test_what_is_left_is_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log"
    # Without closing it: it is as if it were killed.
    assert in_child(lambda: killed_in_a_failed_sync(path)) == DURABLE
    with Log.open(path, "w") as log:
        assert DURABLE <= log.committed < DURABLE + 10
        assert [bytes(entry.payload) for entry in log.replay(0, DURABLE)] == [b"d" * 1000] * DURABLE
        assert log.durable == log.committed
        log.append(b"more", durable=True)
    assert "a sync had failed" in caplog.text
