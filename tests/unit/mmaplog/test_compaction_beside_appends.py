"""Appends while a log is compacted by key: what a power cut may take is no reason for anything to go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmaplog import Entry, FlushPolicy, Log
from tests.unit.mmaplog.keeping import SEGMENT, fill


class Overtaken(Log):
    """A log to which others append while it is flushed, as a thread or another process may."""

    meanwhile: Callable[[], object] | None = None

    def flush(self) -> None:
        """Flush, and then be overtaken, once."""
        super().flush()
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()


@pytest.mark.parametrize("wait", [False, True], ids=["after the flush", "in the middle"])
def test_what_is_durable_stays_until_what_is_newer_is_durable(tmp_path: Path, wait: bool) -> None:
    """The newest of a key was one that a power cut may take, and then none of that key was left."""
    with Overtaken.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT) as log:
        log.append(b"key=old", durable=True)
        fill(log, 40)
        newer = lambda: log.append(b"key=new")  # noqa: E731
        if not wait:
            log.meanwhile = newer

        def key(entry: Entry) -> bytes | None:
            nonlocal wait
            if wait:
                wait = False
                newer()
            name, equals, _ = bytes(entry.payload).partition(b"=")
            return name if equals else None

        log.compact(key=key)
        assert any(b"key=" in bytes(entry.payload) for entry in log.replay(0, log.durable))
