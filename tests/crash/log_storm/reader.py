"""A process that follows the log while writers come, are killed, and are replaced."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from zlib import crc32

from mmaplog import Log
from mmaplog.errors import TooOld
from tests.crash.child import Child

REPLY_SECONDS_MAX = 300
# So long a follower sleeps at a time before it looks at its orders.
FOLLOW_SECONDS = 0.002
REST_SECONDS = 0.002


class ReaderFailed(Exception):
    """The reader died or raised."""


class Reader:
    """A log opened for reading in a process of its own. It remembers checksums of what it has seen."""

    def __init__(self, path: Path, start: int, is_stale: bool = False) -> None:
        """Start it at a number. `is_stale`, the planted defect, makes it look once and never again."""
        self._orders, orders = Pipe()
        self.start = start

        def body(started: Callable[[], None]) -> None:
            self._orders.close()
            self.serve(path, start, orders, is_stale, started)

        self._child = Child(body)
        orders.close()
        self._child.wait_started()

    @staticmethod
    def serve(
        path: Path, start: int, orders: Connection, is_stale: bool, started: Callable[[], None]
    ) -> None:
        """The body of the process."""
        _follow(path, start, orders, is_stale, started)

    def seen(self, since: int) -> list[int]:
        """Checksums of the records from `since` to the last one committed, as it met them."""
        try:
            self._orders.send(since)
            if not self._orders.poll(REPLY_SECONDS_MAX):
                raise ReaderFailed(f"no answer in {REPLY_SECONDS_MAX} s")
            return list(self._orders.recv())
        except (EOFError, OSError) as error:
            raise ReaderFailed(self._last_words()) from error

    def _last_words(self) -> str:
        ended = os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        how = "died of signal" if ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED) else "ended with"
        return self.close() or f"it {how} {ended.si_status}"

    def close(self) -> str:
        """End it; its traceback if it had failed."""
        self._orders.close()
        return self._child.kill()


def _follow(path: Path, start: int, orders: Connection, is_stale: bool, started: Callable[[], None]) -> None:
    log = Log.open(path, "r")
    sums = array("L")
    started()
    while True:
        if not is_stale or not sums:
            # Asleep in between, so that the writer has to wake it.
            for entry in log.follow(start + len(sums), timeout=FOLLOW_SECONDS):
                _note(sums, start, entry.seq, entry.payload)
                if orders.poll(0):
                    break
        if not orders.poll(0):
            continue
        try:
            since = orders.recv()
        except EOFError:
            return
        if not is_stale:
            for entry in log.replay(start + len(sums), log.committed):
                _note(sums, start, entry.seq, entry.payload)
        orders.send(sums[since - start :])


class RereadingReader(Reader):
    """One that reads the whole log again and again: what it has seen may be dropped from the log later."""

    def records(self) -> dict[int, int]:
        """Checksums of all records, by number."""
        numbers = self.seen(0)
        return dict(zip(numbers[::2], numbers[1::2], strict=True))

    @staticmethod
    def serve(
        path: Path, start: int, orders: Connection, is_stale: bool, started: Callable[[], None]
    ) -> None:
        """The body of the process."""
        log = Log.open(path, "r")
        started()
        while True:
            read = _reread(log)
            if orders.poll(REST_SECONDS):
                try:
                    orders.recv()
                except EOFError:
                    return
                read = _reread(log)
                orders.send([number for pair in read.items() for number in pair])


def _reread(log: Log) -> dict[int, int]:
    while True:
        # What is dropped meanwhile is said to be gone, and nothing else may be said of it.
        with contextlib.suppress(TooOld):
            return {entry.seq: crc32(entry.payload) for entry in log.replay()}


def _note(sums: array[int], start: int, seq: int, payload: memoryview) -> None:
    if seq != start + len(sums):
        raise ReaderFailed(f"record {seq} came where {start + len(sums)} was to come")
    sums.append(crc32(payload))
