"""The thread behind ``FlushPolicy.every_millis``: makes what was written durable within the bound."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import sys
import threading
import weakref
from typing import Protocol

from mmapio.errors import FlushFailed, MappingFault

logger = logging.getLogger("mmapio")

#: What says nothing of the file: it is tried again when the time has come.
PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EDEADLK})


class Flushable(Protocol):
    """What the flusher needs of a handle."""

    def needs_flush(self) -> bool: ...
    def flush(self) -> None: ...
    def _nobody_heard(self) -> None: ...


_running: weakref.WeakSet[Flusher] = weakref.WeakSet()


@atexit.register
def _flush_at_exit() -> None:
    """What the end leaves no time for; and no thread is to be frozen with a lock in its hands."""
    for flusher in list(_running):
        flusher.stop()
        handle = flusher.handle()
        if handle is not None:
            _flush(handle)


class Flusher:
    """Flushes a handle in the background from `start` on, until stopped or nobody else holds the handle."""

    def __init__(self, handle: Flushable, milliseconds: int, name: str) -> None:
        self._stop = threading.Event()
        self._pid = os.getpid()
        # Weak, so that a handle that was dropped without close() can go.
        self.handle = weakref.ref(handle)
        self._thread = threading.Thread(
            target=_run,
            args=(self.handle, milliseconds / 1000, self._stop),
            name=name,
            daemon=True,
        )

    def start(self) -> None:
        """Start the thread, unless it was. RuntimeError when there is none to be had."""
        if self._thread.ident is None:
            self._thread.start()
        _running.add(self)

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End the thread and wait for it. The second time does nothing."""
        # The thread is frozen by then, and a forked child never had it: the wait would be for ever.
        if sys.is_finalizing() or os.getpid() != self._pid:
            return
        self._stop.set()
        # One that a signal kept from starting, or is about to start, ends at once.
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()


def _run(reference: weakref.ref[Flushable], seconds: float, stop: threading.Event) -> None:
    while not stop.wait(seconds):
        handle = reference()
        if handle is None:
            return
        if not _flush(handle):
            return
        del handle


def _flush(handle: Flushable) -> bool:
    try:
        if handle.needs_flush():
            handle.flush()
    except MappingFault:
        # Every call of the user's says so, until refresh() mends it.
        return True
    except (OSError, MemoryError) as error:
        if isinstance(error, MemoryError) or (error.errno in PASSING and not isinstance(error, FlushFailed)):
            logger.warning("background flush put off: %s", error)
            return True
        # The handle is poisoned now: the next call of its user raises, with the traceback that matters.
        handle._nobody_heard()
        logger.error("background flush failed: %s", error)  # noqa: TRY400
        return False
    return True
