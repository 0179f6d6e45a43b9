"""The thread that removes from a cache's log what was evicted."""

from __future__ import annotations

import atexit
import errno
import logging
import sys
import threading
import time
import weakref
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from mmapio import _fork
from mmapio.errors import Closed
from mmapkv.errors import StoreError

if TYPE_CHECKING:
    from mmapkv.store import KVStore

logger = logging.getLogger("mmapkv")

#: How long a put waits for it at the most, and how often it looks again.
WAIT_SECONDS_MAX = 10.0
WAIT_STEP_SECONDS = 0.0005
#: How long a close waits for it to end, which it does within some writes to the disk.
JOIN_SECONDS_MAX = 60.0

_running: weakref.WeakSet[Remover] = weakref.WeakSet()


@atexit.register
def _stop_at_exit() -> None:
    # No thread is to be frozen with a lock in its hands. The flushers come after.
    for remover in list(_running):
        remover.stop()


class Remover:
    """Removes segments of one handle's log, whenever it is woken.

    It holds the store weakly. Destructors and signal handlers may use what it waits on and is told by.
    """

    def __init__(self, store: KVStore) -> None:
        self._told: SimpleQueue[None] = SimpleQueue()
        told = self._told

        def is_gone(_: object) -> None:
            told.put(None)

        self._store = weakref.ref(store, is_gone)
        self._thread: threading.Thread | None = None
        # Empty once somebody has started the thread, or is about to.
        self._unstarted = [None]
        # Whether there is something to do; whether it is to end, or has.
        self._busy = False
        self._ending = False
        _fork.register(self)

    def wake(self) -> bool:
        """Have removed what can go. Whether there is a thread for it."""
        if self._ending:
            return False
        self._busy = True
        self._told.put(None)
        with suppress(IndexError):
            # Several threads may write.
            self._unstarted.pop()
            return self._start()
        return True

    def _start(self) -> bool:
        thread = threading.Thread(target=_run, args=(self,), name="mmapkv-remover", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # None to be had, or the interpreter is about to end: at the next segment perhaps.
            self._busy = False
            self._unstarted.append(None)
            return False
        self._thread = thread
        _running.add(self)
        return True

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

    def stop(self) -> None:
        """End the thread and wait for that. The second time does nothing."""
        thread, self._ending = self._thread, True
        # The thread is frozen by then, and a forked child never had it.
        if thread is None or sys.is_finalizing() or thread is threading.current_thread():
            return
        self._told.put(None)
        thread.join(JOIN_SECONDS_MAX)
        if thread.is_alive():
            raise StoreError(
                errno.EDEADLK,
                f"the removal of what was evicted did not end within {JOIN_SECONDS_MAX:.0f} s; if this is a "
                "destructor or signal handler, let it leave a note instead, and close later",
            )

    def _work(self) -> None:
        store = self._store()
        if store is None:
            self._ending = True
            return
        with store._careful("removing what was evicted"):
            eviction = store._eviction
            if eviction is not None and not self._ending:
                eviction.remove(store)

    def _after_fork_in_child(self) -> None:
        self._thread, self._ending, self._busy = None, True, False


def _run(remover: Remover) -> None:
    try:
        while not remover._ending:
            remover._told.get()
            try:
                remover._work()
            except Closed:
                return
            except (OSError, MemoryError) as error:
                # With the next segment, then.
                logger.warning("what was evicted could not be removed yet: %s", error)
            remover._busy = False
    except Exception:
        logger.exception("the removal of what was evicted ended")
    finally:
        remover._busy = False
        remover._ending = True
