"""Runs workloads against rivals: in rounds that take the rivals in turn, on warm memory, answers checked.

The machine may be shared and noisy, so nothing here is timed alone: within a round every rival does the same
work in the same order of keys, one after the other (A B C, A B C, ...), and only medians over the rounds and
ratios between rivals of one run are worth comparing.
"""

from __future__ import annotations

import gc
import itertools
import mmap
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from .adapters import Form, Rival
from .dataset import Dataset, Order
from .workloads import Operands, Workload, fill

LOOP = "(loop)"

ORDERS = 5

BALLAST_BYTES_PER_BYTE_STORED = 3
BALLAST_BYTES_MIN = 64 << 20

T = TypeVar("T")


class Measure(Protocol):
    """What a report says of a workload. `workloads.Workload` explains each."""

    @property
    def name(self) -> str: ...
    @property
    def operation(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def unit_size(self) -> float: ...
    @property
    def times(self) -> bool: ...


@dataclass(slots=True)
class Row:
    """One rival in one form, or the bare loop, and what it took in each round."""

    rival: str
    form: Form | None
    spelling: str
    samples: list[float] = field(default_factory=list)
    main: bool = True
    """Whether this is the rival's main form, which ratios are taken of."""

    note: str = ""
    """What a figure does not tell, in one sentence."""

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)


@dataclass(slots=True)
class Result:
    """All rows of one workload."""

    workload: Measure
    rows: list[Row]

    def main_row(self, rival: str) -> Row | None:
        """Return the row of a rival's main form, `None` if the rival did not take part."""
        return self.row(rival, None)

    def row(self, rival: str, spelling: str | None) -> Row | None:
        """Return the row of a rival's form, by default its main form; `None` if it did not take part."""
        return next(
            (
                row
                for row in self.rows
                if row.rival == rival and (row.main if spelling is None else row.spelling == spelling)
            ),
            None,
        )


@dataclass(frozen=True, slots=True)
class Turn(Generic[T]):
    """One sample to take. `prepare` and `check` are outside the clock, which `run` starts and stops."""

    row: Row
    prepare: Callable[[], T]
    run: Callable[[T], float]
    check: Callable[[T], object]
    ballast_bytes: int = 0
    """New memory that it will touch, to be had warm."""

    def take(self) -> T:
        """Add a sample to the row, and return what was prepared for it."""
        prepared = self.prepare()
        if self.ballast_bytes:
            touch_ballast(self.ballast_bytes)
        with garbage_collection_off():
            sample = self.run(prepared)
        self.row.samples.append(sample)
        self.check(prepared)
        return prepared


def in_order(turns: Iterable[Turn[T]]) -> list[Turn[T]]:
    """Return a round's turns, all main forms first.

    Whoever followed itself would find its store in the cache.
    """
    return sorted(turns, key=lambda turn: not turn.row.main)


@dataclass(frozen=True, slots=True)
class _Entrant:
    """A rival in one form, with the store it works on in this round and the row its samples go to."""

    row: Row
    form: Form
    store: Rival
    directory: Path


class Harness:
    """Runs workloads on stores of its own below `directory`, and removes them."""

    def __init__(
        self,
        data: Dataset,
        rivals: Sequence[type[Rival]],
        directory: Path,
        rounds: int,
        progress: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._data = data
        self._rivals = rivals
        self._directory = directory
        self._rounds = rounds
        # Taken in turn by all rounds. An overwrite never has the order of the put before it: it would find
        # the records of a log one behind the other.
        self._orders = itertools.cycle([data.new_order() for _ in range(ORDERS)])
        self._progress = progress

    def run(self, workloads: Sequence[Workload]) -> Iterator[Result]:
        """Run the workloads and yield their results, those that change nothing first.

        Raises `WrongAnswer` as soon as a rival's answer is wrong.
        """
        yield from self._run_standing([workload for workload in workloads if not workload.mutates])
        yield from self._run_lives([workload for workload in workloads if workload.mutates])

    def _run_standing(self, workloads: Sequence[Workload]) -> Iterator[Result]:
        """Run workloads that change nothing, all on one full store a rival."""
        taking_part = [
            rival for rival in self._rivals if any(workload.name in rival.spellings for workload in workloads)
        ]
        with ExitStack() as stack:
            stores: dict[str, tuple[Rival, Path]] = {}
            for rival in taking_part:
                self._progress(f"filling {rival.name}")
                store, directory = self._new_store(rival, stack)
                fill(store, self._data)
                store.flush()
                stores[rival.name] = store, directory
            for workload in workloads:
                result = self._new_result(workload)
                entrants = [
                    _Entrant(row, row.form, *stores[row.rival]) for row in result.rows if row.form is not None
                ]
                self._check_all(workload, entrants)
                for number in range(self._rounds if workload.times else 1):
                    self._run_round(workload, result, entrants, number)
                yield result

    def _run_lives(self, workloads: Sequence[Workload]) -> Iterator[Result]:
        """Run workloads that change the store; each round, each rival and each form begins with an empty one.

        The workloads of a round follow each other on it, so that an overwrite finds what the put left. What a
        workload needs and none before it has provided is put there untimed.
        """
        results = [self._new_result(workload) for workload in workloads]
        for number in range(self._rounds):
            with ExitStack() as stack:
                stores: dict[tuple[str, Form], tuple[Rival, Path]] = {}
                for workload, result in zip(workloads, results, strict=True):
                    entrants = []
                    for row in result.rows:
                        if row.form is None:
                            continue
                        life = row.rival, row.form
                        if life not in stores:
                            stores[life] = self._new_store(self._rival(row.rival), stack)
                        store, directory = stores[life]
                        if workload.needs_pairs and store.count() == 0:
                            fill(store, self._data)
                        entrants.append(_Entrant(row, row.form, store, directory))
                    self._run_round(workload, result, entrants, number)
        yield from results

    def _run_round(
        self, workload: Workload, result: Result, entrants: Sequence[_Entrant], number: int
    ) -> None:
        """Take one sample of each entrant, and one of the bare loop."""
        order = next(self._orders)
        operands = Operands()
        for turn in in_order([self._turn(workload, entrant, order) for entrant in entrants]):
            self._progress(f"{workload.name} {number + 1}/{self._rounds} {turn.row.rival}")
            operands = Operands()  # let go of the last one's
            operands = turn.take()
        for row in result.rows:
            if row.form is None:
                with garbage_collection_off():
                    row.samples.append(workload.run_loop(operands))

    def _turn(self, workload: Workload, entrant: _Entrant, order: Order) -> Turn[Operands]:
        ballast = max(BALLAST_BYTES_MIN, BALLAST_BYTES_PER_BYTE_STORED * self._data.bytes_stored)
        return Turn(
            entrant.row,
            prepare=lambda: workload.prepare(self._data, order),
            run=lambda operands: workload.run(entrant.store, entrant.form, operands, entrant.directory),
            check=lambda operands: workload.check(entrant.store, self._data) if workload.mutates else None,
            ballast_bytes=ballast if workload.mutates else 0,
        )

    def _check_all(self, workload: Workload, entrants: Sequence[_Entrant]) -> None:
        for store in {entrant.row.rival: entrant.store for entrant in entrants}.values():
            workload.check(store, self._data)

    def _new_result(self, workload: Workload) -> Result:
        rows = [
            Row(rival.name, form, spelling, main=rank == 0)
            for rival in self._rivals
            for rank, (form, spelling) in enumerate(rival.spellings.get(workload.name, {}).items())
        ]
        if workload.has_loop:
            rows.append(Row(LOOP, None, "for k in keys: pass"))
        return Result(workload, rows)

    def _new_store(self, rival: type[Rival], stack: ExitStack) -> tuple[Rival, Path]:
        """Open an empty store that is closed and removed with the stack."""
        directory = Path(stack.enter_context(_store_directory(self._directory, rival.name)))
        store = rival(self._data.bytes_stored)
        stack.callback(store.close)
        store.open(directory)
        return store, directory

    def _rival(self, name: str) -> type[Rival]:
        return next(rival for rival in self._rivals if rival.name == name)


def touch_ballast(size: int) -> None:
    """Write once to every page of so much new memory, and give it back.

    On a virtual machine the host takes idle memory back, and the first to touch it again pays microseconds
    a page. This pays outside the clock, and leaves the kernel warm pages to give to whoever is timed next.
    Huge ones where there are such: the kernel gives them to files as well, and takes them from whole blocks.
    """
    pages = size // mmap.PAGESIZE
    with mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ballast:
        with suppress(AttributeError, OSError):
            ballast.madvise(mmap.MADV_HUGEPAGE)
        ballast[:: mmap.PAGESIZE] = b"\x01" * pages


@contextmanager
def garbage_collection_off() -> Iterator[None]:
    """Keep the cyclic collector out of a timed section: when it runs depends on what ran before."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _store_directory(parent: Path, name: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=parent) as directory:
        yield directory
