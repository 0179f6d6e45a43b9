"""Runs workloads against rivals: in rounds that take the rivals in turn, on warm memory, answers checked.

The machine may be shared and noisy, so nothing here is timed alone: within a round every rival does the same
work in the same order of keys, one after the other (A B C, A B C, ...), and only medians over the rounds and
ratios between rivals of one run are worth comparing.
"""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from .adapters import Form, NotThere, Rival
from .dataset import Dataset, Order
from .workload import Operands, Workload, fill

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
    not_there: dict[str, str] = field(default_factory=dict)
    """Who takes part and cannot do it here, and why."""

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
class _Standing:
    """A rival's open store, where it is, and what it holds."""

    store: Rival
    directory: Path
    data: Dataset


@dataclass(frozen=True, slots=True)
class _Entrant:
    """A rival in one form, with the store it works on in this round and the row its samples go to."""

    row: Row
    form: Form
    standing: _Standing


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
        self._rivals = {rival.name: rival for rival in rivals}
        self._parts = {rival.name: data.head(rival.keys_max) for rival in rivals}
        self._directory = directory
        self._rounds = rounds
        # Taken in turn by all rounds. An overwrite never has the order of the put before it: it would find
        # the records of a log one behind the other.
        self._orders = {
            part.count: itertools.cycle([part.new_order() for _ in range(ORDERS)])
            for part in self._parts.values()
        }
        self._progress = progress

    def run(self, workloads: Sequence[Workload]) -> Iterator[Result]:
        """Run the workloads and yield their results, those that change nothing first.

        Raises `WrongAnswer` as soon as a rival's answer is wrong.
        """
        yield from self._run_standing([workload for workload in workloads if not workload.mutates])
        yield from self._run_lives([workload for workload in workloads if workload.mutates])

    def _run_standing(self, workloads: Sequence[Workload]) -> Iterator[Result]:
        """Run workloads that change nothing, all on one full store a rival."""
        results = [self._new_result(workload) for workload in workloads]
        with ExitStack() as stack:
            stores: dict[str, _Standing] = {}
            for name in dict.fromkeys(row.rival for result in results for row in result.rows):
                if name == LOOP:
                    continue
                self._progress(f"filling {name}")
                with _noting(results, name):
                    standing = self._new_store(name, stack)
                    fill(standing.store, standing.data)
                    standing.store.flush()
                    stores[name] = standing
            # Not every rival can be told to; what is written back later is written while others are timed.
            os.sync()
            for workload, result in zip(workloads, results, strict=True):
                for name, standing in stores.items():
                    if result.main_row(name) is not None:
                        with _noting([result], name):
                            workload.check(standing.store, standing.data, Operands())
                for number in range(self._rounds if workload.times else 1):
                    entrants = [
                        _Entrant(row, row.form, stores[row.rival])
                        for row in result.rows
                        if row.form is not None
                    ]
                    self._run_round(workload, result, entrants, number)
                yield result

    def _run_lives(self, workloads: Sequence[Workload]) -> Iterator[Result]:
        """Run workloads that change the store; each round, each rival and each form begins with an empty one.

        The workloads of a round that name the same life follow each other on it, so that an overwrite finds
        what the put left. What a workload needs and none before it has provided is put there untimed.
        """
        results = [self._new_result(workload) for workload in workloads]
        for number in range(self._rounds):
            for life in dict.fromkeys(workload.life for workload in workloads):
                with ExitStack() as stack:
                    stores: dict[tuple[str, Form], _Standing] = {}
                    for workload, result in zip(workloads, results, strict=True):
                        if workload.life == life:
                            entrants = self._live(workload, result, stores, stack)
                            self._run_round(workload, result, entrants, number)
        yield from results

    def _live(
        self,
        workload: Workload,
        result: Result,
        stores: dict[tuple[str, Form], _Standing],
        stack: ExitStack,
    ) -> list[_Entrant]:
        """Return the entrants of a workload, each with its store as the workload needs it."""
        entrants = []
        for row in list(result.rows):
            if row.form is None or row.rival in result.not_there:
                continue
            key = row.rival, row.form
            with _noting([result], row.rival):
                if key not in stores:
                    stores[key] = self._new_store(row.rival, stack, durable=workload.durable)
                standing = stores[key]
                if workload.needs_pairs and standing.store.count() == 0:
                    self._progress(f"filling {row.rival}")
                    fill(standing.store, standing.data)
                entrants.append(_Entrant(row, row.form, standing))
        return entrants

    def _run_round(
        self, workload: Workload, result: Result, entrants: Sequence[_Entrant], number: int
    ) -> None:
        """Take one sample of each entrant, and one of the bare loop."""
        operands = None
        orders: Mapping[int, Order] = {}
        for _ in range(workload.tries):
            orders = {count: next(cycle) for count, cycle in self._orders.items()}
            for turn in in_order([self._turn(workload, entrant, orders) for entrant in entrants]):
                self._progress(f"{workload.name} {number + 1}/{self._rounds} {turn.row.rival}")
                operands = None  # let go of the last one's
                if turn.row.rival not in result.not_there:
                    with _noting([result], turn.row.rival):
                        operands = turn.take()
        if not any(row.form for row in result.rows):
            result.rows.clear()
        for row in result.rows:
            if row.form is not None:
                row.samples[number:] = [min(row.samples[number:])]
                continue
            if operands is None:
                # The last one could do nothing with its own.
                operands = workload.prepare(self._data, orders[self._data.count])
            with garbage_collection_off():
                row.samples.append(workload.run_loop(operands))

    def _turn(self, workload: Workload, entrant: _Entrant, orders: Mapping[int, Order]) -> Turn[Operands]:
        store, directory, data = entrant.standing.store, entrant.standing.directory, entrant.standing.data
        ballast = max(BALLAST_BYTES_MIN, BALLAST_BYTES_PER_BYTE_STORED * data.bytes_stored)
        return Turn(
            entrant.row,
            prepare=lambda: workload.prepare(data, orders[data.count]),
            run=lambda operands: workload.run(store, entrant.form, operands, directory),
            check=lambda operands: workload.check(store, data, operands) if workload.mutates else None,
            ballast_bytes=ballast if workload.mutates or workload.needs_new_pages else 0,
        )

    def _new_result(self, workload: Workload) -> Result:
        rows = [
            Row(rival.name, form, spelling, main=rank == 0, note=self._note(rival))
            for rival in self._rivals.values()
            for rank, (form, spelling) in enumerate(rival.spellings.get(workload.name, {}).items())
        ]
        if workload.has_loop:
            rows.append(Row(LOOP, None, "for k in keys: pass"))
        return Result(workload, rows)

    def _note(self, rival: type[Rival]) -> str:
        part = self._parts[rival.name]
        return f"with {part.count:,} pairs only" if part is not self._data else ""

    def _new_store(self, name: str, stack: ExitStack, *, durable: bool = False) -> _Standing:
        """Open an empty store that is closed and removed with the stack."""
        data = self._parts[name]
        directory = Path(stack.enter_context(_store_directory(self._directory, name)))
        store = self._rivals[name](data.count, data.bytes_stored, durable=durable)
        stack.callback(store.close)
        store.open(directory)
        return _Standing(store, directory, data)


@contextmanager
def _noting(results: Iterable[Result], name: str) -> Iterator[None]:
    """If a rival cannot do what is asked of it, note so in these results and take its rows out of them."""
    try:
        yield
    except NotThere as reason:
        for result in results:
            if any(row.rival == name for row in result.rows):
                result.not_there[name] = str(reason)
                result.rows[:] = [row for row in result.rows if row.rival != name]


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
