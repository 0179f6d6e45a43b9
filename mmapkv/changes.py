"""The changes of a store, one by one, from its log: for replicas, caches, and whoever wants to be told."""

from __future__ import annotations

import operator
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, SupportsIndex

from mmapkv.decode import take_change
from mmaplog.errors import TooOld
from mmaplog.follow import deadline_after, wait_in_thread
from mmaplog.subscription import SKIP, checked_choice

if TYPE_CHECKING:
    from typing import Literal

    from mmapkv.store import KVStore
    from mmaplog.follow import Follower
    from mmaplog.log import Log

# How long to wait for the index entry of a record that is committed: the writer is between two stores. If it
# was killed there, the next writer makes the entry.
PAUSE_SECONDS = 0.001
PAUSE_SECONDS_MAX = 0.05
# A sleeper looks this often whether his store was closed.
SLICE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Change:
    """A put, a deletion, or a clear.

    `seq` is its number in the log, `kind` "put", "delete" or "clear", `value` None unless it is a put. With a
    clear every key is gone that was last put below number `below`: all of them, unless it is what a cache let
    go of; its key is empty, as no other is, and of those keys no deletion comes. `previous` is the
    number of the version of the key that it replaced, a deletion included, or None when there never was one.
    `expires_ns` is the time at which the value ceases to be there, in nanoseconds since 1970, or None.
    """

    seq: int
    kind: Literal["put", "delete", "clear"]
    key: bytes
    value: bytes | None
    previous: int | None
    expires_ns: int | None = None
    below: int | None = None


class Changes:
    """Iterates over the changes of a store in the order in which they were made. Made by ``KVStore.changes``.

    `seq` is the number to begin with next time: everything below was handed out. Also for ``async for``,
    which waits in a thread. For one thread or task at a time.
    """

    def __init__(
        self,
        store: KVStore,
        since: SupportsIndex | None,
        follow: bool,
        timeout: float | None,
        too_old: Literal["raise", "skip"],
    ) -> None:
        checked_choice(too_old)
        deadline_after(timeout)
        # Of a reader who may not write, what he goes by may be replaced first.
        visible, _, _, _ = store._pinned()
        log, _ = store._open_parts()
        begin = visible if since is None else operator.index(since)
        self._store = store
        self._log = log
        self._segments = log.segments
        self._skipping = too_old == SKIP
        self._epoch = log.epoch
        # Who begins with nothing misses nothing by what was removed before: what a key had last is there.
        self._sweeps = -1
        if not begin:
            log.segments.relist()
            self._sweeps = log.segments.manifest.sweeps
        self._gap: TooOld | None = None
        self._gap_at = 0
        self._complete = True
        try:
            self._follower = log.follow(begin) if begin else _from_first(log)
        except TooOld as error:
            self._follower = self._behind_cleared(begin, error)
        self._stop = None if follow else visible
        self._visible = visible
        self._timeout = timeout

    @property
    def seq(self) -> int:
        """The number that the next change has at least: where to go on, another day."""
        return self._follower.seq if self._gap is None else self._gap_at

    @property
    def complete(self) -> bool:
        """Whether every number since the beginning was there.

        False once one was missing that a compaction or repair removed. What supersedes that comes later, so a
        copy is right again when it has come to the end. Where nothing does, a deletion that is gone too,
        it is TooOld, unless that is to be skipped: then a copy must be made anew.
        """
        return self._complete

    def poll(self) -> Change | None:
        """The next change, or None when there is none yet. Costs reading a record and copying it.

        Raises TooOld for what was truncated and, unless that is skipped, for what a copy may miss of what was
        compacted, each time; CorruptionError, MappingFault, Closed.
        """
        self._store._open_parts()
        if self._gap is not None:
            raise self._gap
        expected = self._follower.seq
        if self._stop is None and expected >= self._visible:
            self._visible, _ = self._store._visible()
        try:
            found = take_change(self._follower, self._visible)
        except TooOld as error:
            self._follower = self._behind_cleared(expected, error)
            return self.poll()
        if found is None:
            self._pass(expected, self._follower.seq)
            return None
        seq, key, value, previous, expires_ns = found
        self._pass(expected, seq)
        if isinstance(value, int):
            return Change(seq, "clear", key, None, None, None, value)
        return Change(seq, "delete" if value is None else "put", key, value, previous, expires_ns)

    def _pass(self, expected: int, seq: int) -> None:
        # From what was expected next to what came.
        if seq == expected:
            return
        self._complete = False
        if self._skipping or not self._misses(expected):
            return
        self._gap_at = expected
        self._gap = TooOld(
            f"compaction has removed changes between {expected} and {seq}, and deletions below number "
            f"{self._segments.manifest.swept}; copy what the store holds now and go on from there, or pass "
            'them over with too_old="skip"',
            self._store.path,
        )
        raise self._gap

    def _misses(self, seq: int) -> bool:
        # Whether a copy that goes on from there may miss what was removed from the segments that are known.
        manifest = self._segments.manifest
        return seq < manifest.swept and manifest.sweeps != self._sweeps

    def _behind_cleared(self, seq: int, error: TooOld) -> Follower:
        # Where `seq` is too old: from the first number that there is, if all before that was cleared and was
        # taken off the beginning for it.
        log = self._log
        self._segments.relist()
        first = self._segments.first_seq
        missed = self._misses(seq) and not self._skipping
        if missed or not seq < first <= log.committed or log.epoch != self._epoch:
            raise error
        self._complete = False
        return _from_first(log)

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until there is a next change, at most `timeout` seconds. True when there is.

        The kernel wakes who sleeps, whichever process wrote. Raises Closed.
        """
        if self._gap is not None:
            return True
        deadline = deadline_after(timeout)
        pause = PAUSE_SECONDS
        while True:
            visible, _ = self._store._visible()
            if self._follower.seq < visible:
                return True
            left = SLICE_SECONDS if deadline is None else min(deadline - time.monotonic(), SLICE_SECONDS)
            try:
                committed = self._follower.wait(max(left, 0))
            except TooOld:
                # To be told, or passed over, by who asks for it.
                return True
            if committed:
                # About to be visible.
                time.sleep(max(min(pause, left), 0))
                pause = min(2 * pause, PAUSE_SECONDS_MAX)
            if left <= 0:
                return False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Change:
        change = self.poll()
        while change is None:
            if self._stop is not None or not self.wait(self._timeout):
                raise StopIteration
            change = self.poll()
        return change

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        change = self.poll()
        while change is None:
            if self._stop is not None or not await wait_in_thread(self, self._timeout):
                raise StopAsyncIteration
            change = self.poll()
        return change

    def __repr__(self) -> str:
        return f"<Changes of {self._store.path!r} from {self.seq} on>"


def _from_first(log: Log) -> Follower:
    # Wherever the log begins: that may move on meanwhile.
    while True:
        first = log.first_seq
        try:
            return log.follow(first)
        except TooOld:
            if log.first_seq == first:
                raise
