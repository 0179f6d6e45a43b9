"""The thread that removes from a cache's log what was evicted."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from mmapio.errors import Closed
from mmapkv.worker import Worker

if TYPE_CHECKING:
    from mmapkv.store import KVStore

logger = logging.getLogger("mmapkv")

#: How long a put waits for it at the most, and how often it looks again.
WAIT_SECONDS_MAX = 10.0
WAIT_STEP_SECONDS = 0.0005


class Remover(Worker):
    """Removes segments of one handle's log, whenever it is woken."""

    thread_name = "mmapkv-remover"
    work = "the removal of what was evicted"

    # Whether there is something to do.
    _busy = False

    def _note(self, called: bool) -> None:
        self._busy = called

    def wait(self, store: KVStore) -> None:
        """Wait until it is through, for a bounded time; not for a compaction or close that it waits for.

        Nor where this thread is what it waits for: a destructor that interrupted it.
        """
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while self._busy and store._caring in (0, thread.ident) and time.monotonic() < deadline:
            time.sleep(WAIT_STEP_SECONDS)

    def _work(self) -> None:
        store = self._store()
        if store is None:
            self._ending = True
            return
        with store._careful("removing what was evicted"):
            eviction = store._eviction
            if eviction is not None and not self._ending:
                eviction.remove(store)

    def _serve(self) -> None:
        try:
            while not self._ending:
                self._told.get()
                try:
                    self._work()
                except Closed:
                    return
                except (OSError, MemoryError) as error:
                    self._nobody_heard(error)
                    # With the next segment, then.
                    logger.warning("what was evicted could not be removed yet: %s", error)
                self._busy = False
        finally:
            self._busy = False

    def _after_fork_in_child(self) -> None:
        super()._after_fork_in_child()
        self._busy = False
