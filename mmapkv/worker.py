"""A thread that serves a store handle: how it starts, ends, and is none in a forked child."""

from __future__ import annotations

import atexit
import errno
import logging
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, ClassVar

from mmapio import _fork
from mmapio.errors import FlushFailed
from mmapkv.errors import StoreError
from mmaplog.errors import Poisoned

if TYPE_CHECKING:
    from mmapkv.store import KVStore

logger = logging.getLogger("mmapkv")

#: How long a close waits for one to end, which it does within some writes to the disk.
JOIN_SECONDS_MAX = 60.0

_running: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _stop_at_exit() -> None:
    # No thread is to be frozen with a lock in its hands. The flushers come after.
    for worker in list(_running):
        worker.stop()


class Worker(ABC):
    """Does in the background what a handle's users do not wait for; the thread starts when first woken.

    It holds the store weakly, so that one that was dropped without close() can go: then, too, it is told.
    Destructors and signal handlers may use what it waits on and is told by.
    """

    #: What the thread is called, and what it does, in words for its user.
    thread_name: ClassVar[str]
    work: ClassVar[str]

    def __init__(self, store: KVStore) -> None:
        self._told: SimpleQueue[object] = SimpleQueue()
        told = self._told

        def is_gone(_: object) -> None:
            told.put(None)

        self._store = weakref.ref(store, is_gone)
        self._thread: threading.Thread | None = None
        # Empty once somebody has started the thread, or is about to.
        self._unstarted = [None]
        # Whether it is to end, or has.
        self._ending = False
        _fork.register(self)

    @abstractmethod
    def _serve(self) -> None:
        """Wait for `_told` and work, until `_ending`."""

    @abstractmethod
    def _note(self, called: bool) -> None:
        """Keep in mind that it was `called` and has not looked since; or, False, that there is no thread."""

    def wake(self) -> bool:
        """Have it look for something to do. Whether there is a thread for that."""
        if self._ending:
            return False
        self._note(True)
        self._told.put(None)
        with suppress(IndexError):
            # Several threads may write.
            self._unstarted.pop()
            if not self._start():
                self._unstarted.append(None)
                self._note(False)
                return False
        return True

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name=self.thread_name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # None to be had, or the interpreter is about to end: the next time perhaps.
            return False
        self._thread = thread
        _running.add(self)
        return True

    def _nobody_heard(self, error: BaseException) -> None:
        # Of a sync that failed: where no call of the handle comes to say so, its close does.
        store = self._store()
        if store is not None and isinstance(error, FlushFailed | Poisoned):
            store._log._nobody_heard()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception:
            logger.exception("%s ended", self.work)
        finally:
            self._ending = True

    def stop(self) -> None:
        """End the thread and wait for that, for a bounded time. The second time does nothing.

        StoreError where it does not end: what it is at waits for this thread.
        """
        thread, self._ending = self._thread, True
        # The thread is frozen by then, and a forked child never had it.
        if thread is None or sys.is_finalizing():
            return
        self._told.put(None)
        if thread is threading.current_thread():
            return
        thread.join(JOIN_SECONDS_MAX)
        if thread.is_alive():
            raise StoreError(
                errno.EDEADLK,
                f"{self.work} did not end within {JOIN_SECONDS_MAX:.0f} s; if this is a destructor or signal "
                "handler, let it leave a note instead, and close later",
            )

    def go_on(self) -> None:
        """Start again when woken next, after a stop, for a handle that was not closed after all."""
        if self._thread is None:
            # In a forked child there is nobody who may.
            self._ending = not self._unstarted
        elif not self._thread.is_alive():
            self._thread, self._ending, self._unstarted = None, False, [None]
            self._note(False)

    def _after_fork_in_child(self) -> None:
        self._thread, self._ending, self._unstarted = None, True, []
