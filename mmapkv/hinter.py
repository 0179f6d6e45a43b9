"""Who makes the hints of a store that is written: a thread, or where the policy wants none, who flushes."""

from __future__ import annotations

import logging
import queue
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from mmapio import _fork
from mmapio.errors import Closed
from mmapkv import hints
from mmapkv.worker import Worker
from mmaplog.errors import CorruptionError

if TYPE_CHECKING:
    from mmapkv.index import Index
    from mmapkv.store import KVStore
    from mmaplog.log import Log

logger = logging.getLogger("mmapkv")

# So many at a time: a store that has none yet is not read as a whole because one segment was filled.
MADE_MAX = 4
# A segment is sealed some time after it was filled: by the sync that makes it durable.
DELAYS_SECONDS = (0.5, 1.5, 4.0, 10.0)


class Hinter(Worker):
    """Makes what hints are missing once segments are sealed. One that cannot be made is left out."""

    thread_name = "mmapkv-hinter"
    work = "the making of hints"

    def __init__(self, store: KVStore, *, threaded: bool) -> None:
        super().__init__(store)
        self._threaded = threaded
        # Whether the thread was called and has not looked since.
        self._called = False
        self._making = _fork.Lock()
        # Names of segments that have one, or for which none can be made.
        self._known: set[str] = set()

    def segment_filled(self) -> None:
        """Another segment is written to now. For the native half."""
        # Who writes fast fills segments sooner than they are sealed: to wake the thread for each costs the
        # writer the GIL, and finds nothing.
        if self._threaded and not self._called:
            self.wake()

    def _note(self, called: bool) -> None:
        self._called = called

    def flushed(self, log: Log, index: Index) -> None:
        """What was filled may be sealed now."""
        if not self._threaded:
            self.make(log, index)

    def close(self, log: Log, index: Index) -> None:
        """End the thread, and make what is still missing, within bounds."""
        self.stop()
        self.make(log, index)

    def make(self, log: Log, index: Index) -> bool:
        """Make some that are missing, of the newest segments; whether each full segment has one then."""
        with self._making:
            try:
                return self._make(log, index)
            except Closed:
                return True
            except (OSError, MemoryError) as error:
                # Nothing needs it: without a hint the segment itself is read.
                logger.warning("%s: no hint was made: %s", log.path, error)
                return False

    def _make(self, log: Log, index: Index) -> bool:
        made = 0
        listing = log.segments.listing()
        # What was replaced or removed comes no more.
        self._known &= {name for _, _, name in listing}
        for _, segment_id, name in reversed(listing[:-1]):
            if name in self._known:
                continue
            if hints.exists(log, name, segment_id, index.seed):
                self._known.add(name)
                continue
            try:
                segment = log.segments.get(segment_id)
            except CorruptionError:
                if _is_listed(log, segment_id):
                    raise
                return False  # compaction has just replaced it; there will be another look
            if made == MADE_MAX or segment.footer() is None:
                return False
            try:
                hints.write(log, segment, index.seed)
            except CorruptionError as error:
                logger.warning("%s: no hint was made: %s", log.path, error)
            except (FileNotFoundError, FileExistsError):
                if not _is_listed(log, segment_id):
                    return False  # likewise, and has swept up what goes with it
                if not log.shared:
                    raise
                # Another process makes it too, or has swept it up when it opened the store.
                continue
            made += 1
            self._known.add(name)
        return True

    def _serve(self) -> None:
        while not self._ending:
            self._told.get()
            for delay in DELAYS_SECONDS:
                self._rest(delay)
                # Before the look: what is filled from here on calls again.
                self._called = False
                if self._ending or self._made_all():
                    break

    def _rest(self, seconds: float) -> None:
        # The end of the handle or of the store ends it, another call does not.
        until = time.monotonic() + seconds
        with suppress(queue.Empty):
            while not self._ending and self._store() is not None and (left := until - time.monotonic()) > 0:
                self._told.get(timeout=left)

    def _made_all(self) -> bool:
        store = self._store()
        if store is None:
            self._ending = True
            return True
        log, index = store._parts()
        return index is None or self.make(log, index)


def _is_listed(log: Log, segment_id: int) -> bool:
    return any(listed == segment_id for _, listed, _ in log.segments.listing())
