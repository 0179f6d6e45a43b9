"""What a forked child may do with handles that it inherited: nothing but forget them.

A writer that goes on in two processes would write the same bytes twice, and a lock that a child holds
open outlives the parent. Each handle that can write or lock registers here; in the child, before any
of its Python code runs, the handle is told, closes what it must and refuses further use.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Inheritable(Protocol):
    """A handle that wants to know that it woke up in a child."""

    def _after_fork_in_child(self) -> None: ...


_handles: weakref.WeakSet[Inheritable] = weakref.WeakSet()


def register(handle: Inheritable) -> None:
    """Have `handle` told in every child forked while it lives. Costs a dictionary entry."""
    _handles.add(handle)


def _tell() -> None:
    for handle in list(_handles):
        handle._after_fork_in_child()


os.register_at_fork(after_in_child=_tell)
