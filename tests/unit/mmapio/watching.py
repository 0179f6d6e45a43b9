"""For the tests of watches: ways to change a file, and waiting for what other threads do."""

from __future__ import annotations

import gc
import mmap
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from mmapio.watch import ChangeEvent, ChangeKind
from tests.support.waiting import PATIENCE_SECONDS

T = TypeVar("T")

DEADLINE_SECONDS = PATIENCE_SECONDS

#: An interval that no test outlasts: what is reported was notified of.
NEVER_SECONDS = 86_400
OFTEN_SECONDS = 0.01

SIZE = 4096

MODIFIED = ChangeEvent(None, None, ChangeKind.MODIFIED)
METADATA = ChangeEvent(None, None, ChangeKind.METADATA)
REMOVED = ChangeEvent(None, None, ChangeKind.REMOVED)


class Inbox(Generic[T]):
    """What other threads put in, in order."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[T] = queue.SimpleQueue()

    def put(self, item: T) -> None:
        self._queue.put(item)

    def next(self) -> T:
        """The next item; an AssertionError when none comes."""
        try:
            return self._queue.get(timeout=DEADLINE_SECONDS)
        except queue.Empty:
            raise AssertionError("nothing came") from None

    def is_empty(self) -> bool:
        return self._queue.empty()

    def clear(self) -> None:
        while not self.is_empty():
            self.next()


def wait_until_ended() -> None:
    """Wait until no watch has a thread, its own or the notifier's."""
    for thread in threading.enumerate():
        if thread.name == "mmapio-watch":
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive(), "a watch has not ended"


def _native_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail when the block leaves a thread behind."""
    before = _native_threads()
    yield
    gc.collect()
    wait_until_ended()
    # The notifier does not wait for its thread.
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (now := _native_threads()) > before:
        if time.monotonic() > deadline:
            raise AssertionError(f"{now} threads are left where there were {before}")
        time.sleep(0.001)


def overwrite(path: Path, data: bytes = b"x") -> None:
    """One write through a descriptor of its own, and no other change."""
    opened = os.open(path, os.O_RDWR)
    try:
        assert os.pwrite(opened, data, 0) == len(data)
    finally:
        os.close(opened)


def store(path: Path, data: bytes = b"stored") -> None:
    """One store through a mapping of its own, and no write."""
    with path.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped[: len(data)] = data


def append(path: Path) -> None:
    with path.open("ab") as opened:
        opened.write(b"grown")


def save(path: Path, data: bytes = bytes(SIZE)) -> None:
    """Replace the file as editors do."""
    new = path.with_name("new")
    new.write_bytes(data)
    new.replace(path)
