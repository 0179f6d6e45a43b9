"""The thread behind ``FlushPolicy.every_millis``: makes what was written durable within the bound."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from typing import Protocol

logger = logging.getLogger("mmaplog")


class Flushable(Protocol):
    """What the flusher needs of a log."""

    def needs_flush(self) -> bool: ...
    def flush(self) -> None: ...


# The thread ends with the interpreter, which may be before the bound is reached.
_flushed: weakref.WeakSet[Flushable] = weakref.WeakSet()


@atexit.register
def _flush_at_exit() -> None:
    for log in list(_flushed):
        _flush(log)


class Flusher:
    """Flushes a log in the background until stopped, or until nobody else holds the log."""

    def __init__(self, log: Flushable, milliseconds: int) -> None:
        self._stop = threading.Event()
        _flushed.add(log)
        # Weak, so that a log that was dropped without close() can go.
        self._thread = threading.Thread(
            target=_run,
            args=(weakref.ref(log), milliseconds / 1000, self._stop),
            name="mmaplog-flusher",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it. The second time does nothing."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()


def _run(reference: weakref.ref[Flushable], seconds: float, stop: threading.Event) -> None:
    while not stop.wait(seconds):
        log = reference()
        if log is None:
            return
        if not _flush(log):
            return
        del log


def _flush(log: Flushable) -> bool:
    try:
        if log.needs_flush():
            log.flush()
    except OSError as error:
        # The log is poisoned now: the next call of its user raises, with the traceback that matters.
        logger.error("background flush failed: %s", error)  # noqa: TRY400
        return False
    return True
