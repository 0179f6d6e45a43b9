"""Fresh processes at work on one file at the same time: spawned, so that they share nothing else."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Barrier
from typing import Any

from tests.unit.mmapio.processes import TIMEOUT_SECONDS

_SPAWN = multiprocessing.get_context("spawn")


class Hand:
    """One process of a crew."""

    def __init__(self, process: SpawnProcess, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe

    @property
    def pid(self) -> int:
        """Where signals go."""
        assert self._process.pid is not None
        return self._process.pid

    def answer(self) -> Any:
        """What the work returned. What it raised, or a signal that ended it, is an AssertionError."""
        assert self._pipe.poll(TIMEOUT_SECONDS), "the process hangs"
        try:
            result, error = self._pipe.recv()
        except EOFError:
            self._process.join(TIMEOUT_SECONDS)
            raise AssertionError(f"the process ended with {self._process.exitcode}") from None
        assert error is None, f"in the process:\n{error}"
        return result

    def dismiss(self) -> None:
        """End the process, whatever it is doing, and wait until it is gone."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()


@contextmanager
def crew(work: Callable[..., object], *calls: tuple[object, ...]) -> Iterator[list[Hand]]:
    """Call the module-level function `work` once for each of `calls`, each in a process of its own.

    They begin together, when all are up. Those that are still at work when the block ends are killed.
    """
    together = _SPAWN.Barrier(len(calls))
    hands: list[Hand] = []
    try:
        for arguments in calls:
            here, there = _SPAWN.Pipe()
            process = _SPAWN.Process(target=_begin, args=(there, together, work, arguments))
            process.start()
            there.close()
            hands.append(Hand(process, here))
        yield hands
    finally:
        for hand in hands:
            hand.dismiss()


def answers(work: Callable[..., object], *calls: tuple[object, ...]) -> list[Any]:
    """What each process of a `crew` returned."""
    with crew(work, *calls) as hands:
        return [hand.answer() for hand in hands]


def _begin(
    pipe: Connection, together: Barrier, work: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    signal.alarm(TIMEOUT_SECONDS)
    together.wait()
    try:
        pipe.send((work(*arguments), None))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
