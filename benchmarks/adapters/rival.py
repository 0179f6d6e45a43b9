"""What a rival has to offer, so that one loop can time them all."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar


class Form(enum.Enum):
    """How a workload spells an operation."""

    CALL = "call"  # f(k), with f bound before the loop
    OPERATOR = "operator"  # m[k], m[k] = v, del m[k]
    STATEMENT = "statement"  # a peer's, as it stands in the row


Spellings = Mapping[str, Mapping[Form, str]]


@dataclass(frozen=True, slots=True)
class Session:
    """The operations of a store between the start and the end of one transaction, or of one use of it.

    Each is what the rival's user would bind. A wrapper of ours would be timed too, so there is none.
    `get` returns a `bytes`, or `None` for a key that is not there.
    """

    get: Callable[[bytes], object]
    put: Callable[[bytes, bytes], object]
    delete: Callable[[bytes], object]
    items: Callable[[], Iterable[tuple[bytes, bytes]]]
    mapping: MutableMapping[bytes, bytes] | None = None


class Rival(ABC):
    """A store as the benchmarks see it: a directory, opened, used in sessions, closed."""

    name: ClassVar[str]
    settings: ClassVar[str]
    """What it was opened with, as its own documentation spells it; printed with the results."""

    spellings: ClassVar[Spellings]
    """How a user writes the operation, by workload it takes part in and by form, the main form first."""

    def __init__(self, bytes_expected: int) -> None:
        """`bytes_expected` is what will be stored, keys and values, for rivals that must be told a size."""
        self.bytes_expected = bytes_expected

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Return the versions that matter, the engine's below the binding's included."""

    @abstractmethod
    def open(self, directory: Path) -> None:
        """Open the store in the directory, which exists; create the store if the directory is empty."""

    @abstractmethod
    def close(self) -> None:
        """Close it. Does nothing when it is not open."""

    @abstractmethod
    def flush(self) -> None:
        """Have everything on the device, so that no write-back runs beside the next workload."""

    @abstractmethod
    def count(self) -> int:
        """Return how many pairs are stored."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Session]:
        """Begin reading: the transaction that look-ups run in, where the rival has transactions."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[Session]:
        """Begin writing; leaving it commits. Begin and commit are part of what is timed."""


def installed_version(distribution: str) -> str:
    """Return `distribution 1.2.3`, as installed."""
    return f"{distribution} {metadata.version(distribution)}"
