"""What a forked child may do with handles that it inherited: read, and forget them.

A writer that goes on in two processes would write the same bytes twice, and a lock that a child holds
open outlives the parent. Each handle that can write or lock registers here; in the child, before any
of its Python code runs, the handle is told, closes what it must and refuses further use.
"""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType
from typing import Protocol


class Inheritable(Protocol):
    """A handle that wants to know that it woke up in a child."""

    def _after_fork_in_child(self) -> None: ...


_handles: weakref.WeakSet[Inheritable] = weakref.WeakSet()


def register(handle: Inheritable) -> None:
    """Have `handle` told in every child forked while it lives. Costs a dictionary entry."""
    _handles.add(handle)


class Lock:
    """A reentrant lock that no thread of the parent holds in a forked child, where it would hold it for ever.

    For what is whole whenever the GIL is let go. Costs what :class:`threading.RLock` does.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        register(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        # The thread that forked is the one that goes on: what it holds it gives back.
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._lock = threading.RLock()


def _tell() -> None:
    for handle in list(_handles):
        handle._after_fork_in_child()


os.register_at_fork(after_in_child=_tell)
