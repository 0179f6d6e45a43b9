"""An iterator that several threads go on with, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from mmapio import _fork

T = TypeVar("T")


def in_turn(lock: _fork.Lock, steps: Iterator[T]) -> Iterator[T]:
    """What `steps`, of which none is None, has still to give: to each who calls this what no other one gets.

    The lock is held for a step at a time, and not while something is done with it.
    """
    while True:
        with lock:
            step = next(steps, None)
        if step is None:
            return
        yield step
