"""What a rival has to offer, so that one loop can time them all."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar


class NotThere(Exception):
    """A rival cannot do what a workload asks for; the report says so, and the others are timed."""


class Form(enum.Enum):
    """How a workload spells an operation."""

    CALL = "call"  # f(k), with f bound before the loop
    OPERATOR = "operator"  # m[k], m[k] = v, del m[k]
    EACH = "each"  # f(k), for each of many
    STATEMENT = "statement"  # a peer's, as it stands in the row
    TWO = "two processes"
    ONE = "one process"


Spellings = Mapping[str, Mapping[Form, str]]
Pair = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Session:
    """The operations of a store between the start and the end of one transaction, or of one use of it.

    Each is what the rival's user would bind. A wrapper of ours would be timed too, so there is none but where
    the rival's own answer is a row or a cursor. `get` returns a `bytes`, or `None` for what is not there.
    """

    get: Callable[[bytes], object]
    put: Callable[[bytes, bytes], object]
    delete: Callable[[bytes], object]
    items: Callable[[], Iterable[Any]]
    mapping: MutableMapping[bytes, bytes] | None = None
    get_many: Callable[[Any], object] | None = None
    """Look up many keys in one call. `Rival.found` says what an answer means."""

    get_many_into: Callable[[Sequence[bytes], bytearray], object] | None = None
    """The same, with the values written into a buffer. `Rival.found_in` says what was answered."""

    scan_from: Callable[[bytes, int], Iterable[object]] | None = None
    """The pairs from a key on, in the order of the keys, at most so many."""


@dataclass(frozen=True, slots=True)
class Commits:
    """Changes of which each is a commit, and durable when it returns if the rival was opened for that."""

    put: Callable[[bytes, bytes], object]
    put_many: Callable[[Sequence[Pair]], object] | None = None


class Rival(ABC):
    """A store as the benchmarks see it: a directory, opened, used in sessions, closed."""

    name: ClassVar[str]
    settings: ClassVar[str]
    """What it was opened with, as its own documentation spells it; printed with the results."""

    spellings: ClassVar[Spellings]
    """How a user writes the operation, by workload it takes part in and by form, the main form first."""

    keys_max: ClassVar[int | None] = None
    """How many pairs one is given at most that needs too long for all."""

    def __init__(self, keys_expected: int, bytes_expected: int, *, durable: bool = False) -> None:
        """What will be stored, for who must be told a size; whether its commits have to be durable."""
        self.keys_expected = keys_expected
        self.bytes_expected = bytes_expected
        self.durable = durable

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Return the versions that matter, the engine's below the binding's included."""

    @abstractmethod
    def open(self, directory: Path) -> None:
        """Open the store in the directory, which exists; create the store if the directory is empty."""

    def open_reader(self, directory: Path) -> None:
        """Open a full store for reading, as one process of several. By default as ever."""
        self.open(directory)

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

    def commits(self) -> Commits:
        """Return what commits by itself, outside of any session."""
        raise NotThere(f"{self.name} takes part in nothing that commits piece by piece")

    def found(self, keys: Sequence[bytes], answer: object) -> Mapping[bytes, object]:
        """Return what `get_many` has answered for the keys that it found; by default a list of values."""
        assert isinstance(answer, list)
        return dict(zip(keys, answer, strict=True))

    def found_in(self, keys: Sequence[bytes], answer: object, buffer: bytearray) -> Mapping[bytes, object]:
        """The same of `get_many_into`."""
        raise NotThere(f"{self.name} has no such call")

    def drop_index(self, directory: Path, *, hints: bool) -> AbstractContextManager[None]:
        """Remove the index of a closed store, which the next opening then builds anew.

        With `hints` from what was kept to do it sooner, which otherwise is removed too.
        """
        raise NotThere(f"{self.name} keeps no index that could be built anew")


def mixes(spelling: str) -> Spellings:
    """Spell the mixes of look-ups and puts, which every store can do."""
    return {f"ycsb-{letter}": {Form.CALL: spelling} for letter in "abcfd"}


def installed_version(distribution: str) -> str:
    """Return `distribution 1.2.3`, as installed."""
    return f"{distribution} {metadata.version(distribution)}"
