"""Child processes that do one thing, tell what went wrong, and never return."""

from __future__ import annotations

import gc
import os
import signal
import traceback
import warnings
from collections.abc import Callable

FAILED = b"!"
STARTED = b"+"


class Child:
    """A forked process with a pipe to its parent: a byte when it has started, a traceback if it fails."""

    def __init__(self, body: Callable[[Callable[[], None]], None]) -> None:
        """Fork, and run `body` in the child. It gets a function that says that it has started."""
        self._pipe, writing = os.pipe()
        with warnings.catch_warnings():
            # Python warns when there are other threads, whose locks the child must not need. Ours needs none.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid:
            os.close(writing)
            return
        # Nothing of the parent's may run here: no handler, no exit function, no test after this one.
        try:
            os.close(self._pipe)
            # A collection would copy every page that it looks at.
            gc.disable()
            body(lambda: _tell(writing, STARTED))
        except BaseException:
            _tell(writing, FAILED + traceback.format_exc().encode())
        finally:
            os._exit(1)

    def wait_started(self) -> None:
        """Block until the child has started, or has ended."""
        self._first = os.read(self._pipe, 1)

    def kill(self) -> str:
        """SIGKILL it, wait for its end, and return the traceback if it had failed before."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        said = getattr(self, "_first", b"")
        while more := os.read(self._pipe, 1 << 16):
            said += more
        os.close(self._pipe)
        return said.partition(FAILED)[2].decode()


def _tell(pipe: int, what: bytes) -> None:
    os.write(pipe, what)
