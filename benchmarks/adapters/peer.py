"""What a peer of the mapping layer has to offer: statements as its user writes them, and what they name."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

Statements = Mapping[str, tuple[str, ...]]

FLUSHES = ("flush", "flush-bytes", "flush-small", "flush-small-bytes")
"""Workloads that run the same statements, and differ in what is measured and in the file."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a stage is set for: a workload, its file, and the operands that all peers are given."""

    workload: str
    path: Path
    """A file that the workload has made; if there is none, the peer makes one of `size` allocated bytes."""

    size: int
    operands: Mapping[str, object]


def _nothing() -> int:
    return 0


def _no_note() -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Stage:
    """An open file, word, lock or pipe, ready for the statements of one workload."""

    names: Mapping[str, object]
    """What the statements name besides the operands."""

    state: Callable[[], int] = _nothing
    """What can be counted of their effect; each workload says what."""

    note: Callable[[], str] = _no_note
    """What the figure does not tell, after a sample."""


class Peer(ABC):
    """Something that does what mmapio does. The statements are timed as they stand, in a loop of `timeit`."""

    name: ClassVar[str]
    settings: ClassVar[str]
    """How it was set up, printed with the results."""

    statements: ClassVar[Statements]
    """By workload that it takes part in, how a user writes the operation, the main form first."""

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Return the version that matters."""

    @abstractmethod
    def stage(self, task: Task) -> AbstractContextManager[Stage]:
        """Set the stage for a task, and strike it at the end."""


def make_allocated(path: Path, size: int) -> None:
    """Make a file of `size` zero bytes with every block allocated, as `create_rw` does."""
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
