"""What a workload of the store is: one thing to time, and how its answers are checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import ClassVar, TypeVar

from .adapters import Form, NotThere, Rival, Session
from .dataset import Dataset, Order, WrongAnswer

BATCH_KEYS = 1_000
"""How many keys or pairs a call is given that takes many."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Amounts:
    """What the command line sets besides the number of keys."""

    operations: int = 200_000
    """Of each YCSB workload."""

    durable: int = 1_000
    """Puts of which each waits for the device."""

    commits: int = 100
    """Commits of many pairs that wait."""


class Operands:
    """The keys of a run, and the values that belong to them where it writes."""

    def __init__(self, keys: Sequence[bytes] = (), values: Sequence[bytes] = ()) -> None:
        self.keys = keys
        self.values = values


class Workload(ABC):
    """One thing to time. `prepare` and `check` are outside the clock, `run` starts and stops it.

    What leaves the store as it is, is checked before the first round, and what changes it after each.
    """

    name: ClassVar[str]
    operation: ClassVar[str]
    """What one operation is, for the heading."""

    unit: ClassVar[str] = "ns"
    unit_size: ClassVar[float] = 1
    """Results are kept in the smallest unit, ns or bytes; tables divide by this."""

    mutates: ClassVar[bool] = False
    """Whether it changes the store: then every round and every form of it has a store of its own."""

    life: ClassVar[str] = "plain"
    """Which of a round's workloads follow each other on that store: those that name the same."""

    durable: ClassVar[bool] = False
    """Whether commits must be durable, which rivals are opened differently for."""

    needs_pairs: ClassVar[bool] = True
    """Whether the store must be full before it starts."""

    needs_new_pages: ClassVar[bool] = False
    """Whether it touches new memory although it changes nothing."""

    has_loop: ClassVar[bool] = True
    """Whether there is a loop of ours around the operations, whose own cost is worth a row."""

    times: ClassVar[bool] = True
    """Whether it measures time; if not, one round of it tells everything."""

    tries: ClassVar[int] = 1
    """Of how many measurements, taken in turn with the others', a sample is the smallest."""

    def __init__(self, amounts: Amounts = Amounts()) -> None:
        self.amounts = amounts

    def prepare(self, data: Dataset, order: Order) -> Operands:
        """Make this run's arguments, in new objects."""
        return Operands()

    @abstractmethod
    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        """Do it and return the cost of one operation, in the smallest unit."""

    def run_loop(self, operands: Operands) -> float:
        """Return what the loop costs by itself, for one operation, in ns."""
        return _time_empty_loop(operands.keys) / len(operands.keys)

    @abstractmethod
    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        """Raise `WrongAnswer` if the store does not answer as it must."""

    def wrong(self, rival: Rival, what: str) -> WrongAnswer:
        """Return the error that tells who was wrong, in what."""
        return WrongAnswer(f"{rival.name} {self.name}: {what}")

    def check_count(self, rival: Rival, expected: int) -> None:
        """Raise `WrongAnswer` unless so many pairs are stored."""
        count = rival.count()
        if count != expected:
            raise self.wrong(rival, f"holds {count:,} pairs, expected {expected:,}")

    def check_pairs(self, rival: Rival, data: Dataset, values: Sequence[bytes] | None) -> None:
        """`values` belong to all the keys, in order; `None` means that no key is stored."""
        self.check_count(rival, data.count if values is not None else 0)
        with rival.reading() as session:
            data.check(f"{rival.name} {self.name}", session.get, values)

    def check_key(self, rival: Rival, key: bytes, answer: object, expected: bytes) -> None:
        """Raise `WrongAnswer` unless the answer to a key is what it must be."""
        if answer != expected:
            raise self.wrong(rival, f"key {key.hex()} gave {answer!r}, expected {expected!r}")


def fill(rival: Rival, data: Dataset) -> None:
    """Store all pairs, untimed."""
    with rival.writing() as session:
        put = session.put
        for key, value in zip(data.keys, data.values, strict=True):
            put(key, value)


def needed(rival: Rival, what: str, call: T | None) -> T:
    """Return what a workload cannot do without. Raises `NotThere`."""
    if call is None:
        raise NotThere(f"{rival.version()} has no {what}")
    return call


def mapping_of(session: Session) -> MutableMapping[bytes, bytes]:
    """Return what the operators work on."""
    assert session.mapping is not None, "a rival that spells the operator form has a mapping"
    return session.mapping


def batches_of(items: Sequence[T], size: int = BATCH_KEYS) -> list[list[T]]:
    """Cut into lists of `size`, the last of which may be shorter."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _time_empty_loop(keys: Sequence[bytes]) -> int:
    start = perf_counter_ns()
    for _key in keys:
        pass
    return perf_counter_ns() - start
