"""The glossary: every workload by name, what it does and what exactly is timed.

A loop is written once and runs for every rival: `for k in keys: f(k)` with `f` bound before the loop, or
the operator of the same, `for k in keys: m[k]`. The row `(loop)` is the walk over the keys alone; it is
contained in all other rows and subtracted from none.

Keys are new objects for every run, in shuffled order. Those to look up or delete lie in memory in another
order than they are used in, so that walking them costs every rival a cache miss a key, and more than the bare
loop shows, in which the misses overlap. Pairs to store lie in the order they are stored in, as a program has
them that has just read or computed them. `--layout` changes either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import ClassVar

from .adapters import Form, Rival, Session
from .dataset import Dataset, Order, WrongAnswer, fresh_copies

OPENS = 10

BLOCK_BYTES = 512  # what st_blocks counts in, whatever the file system's own block size


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

    needs_pairs: ClassVar[bool] = True
    """Whether the store must be full before it starts."""

    has_loop: ClassVar[bool] = True
    """Whether there is a loop of ours around the operations, whose own cost is worth a row."""

    times: ClassVar[bool] = True
    """Whether it measures time; if not, one round of it tells everything."""

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
    def check(self, rival: Rival, data: Dataset) -> None:
        """Raise `WrongAnswer` if the store does not answer as it must."""


class Get(Workload):
    """Look up every stored key once, in shuffled order, in an open read transaction where the rival has such.

    The transaction is begun before the clock starts. The value is returned as a `bytes` and dropped.
    """

    name = "get"
    operation = "look-up of a stored key"

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return Operands(order.to_look_up(data.keys))

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        with rival.reading() as session:
            elapsed = _time_lookups(session, form, operands.keys)
        return elapsed / len(operands.keys)

    def check(self, rival: Rival, data: Dataset) -> None:
        _check_pairs(self, rival, data, data.values)


class Miss(Get):
    """Look up keys that are not stored, as many as there are stored ones.

    By call only: `m[k]` would time the raising of `KeyError`.
    """

    name = "miss"
    operation = "look-up of an absent key"

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return Operands(order.to_look_up(data.absent))


class Scan(Workload):
    """Iterate over all pairs, in the rival's own order: a log's, a tree's, a dict's.

    Each pair is unpacked into a key and a value. The check walks the same iterator and compares every pair.
    """

    name = "scan"
    has_loop = False
    operation = "pair in a scan of all"

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        with rival.reading() as session:
            elapsed = _time_scan(session.items)
        return elapsed / rival.count()

    def check(self, rival: Rival, data: Dataset) -> None:
        _check_count(self, rival, data.count)
        missing = dict(zip(data.keys, data.values, strict=True))
        with rival.reading() as session:
            for key, value in session.items():
                if missing.pop(key, None) != value:
                    raise WrongAnswer(f"{rival.name} scan: {key.hex()} came twice or with a wrong value")
        if missing:
            raise WrongAnswer(f"{rival.name} scan: {len(missing):,} of {data.count:,} pairs are missing")


class Open(Workload):
    """Open a full store that was closed cleanly, and look one key up. The mean of 10 times.

    Its files are in the page cache. The look-up is timed too: an open that puts its work off is not shorter.
    Closing is not timed.
    """

    name = "open"
    has_loop = False
    operation = "open of a full store and first look-up"
    unit = "us"
    unit_size = 1e3

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return Operands(fresh_copies([data.keys[order.first]] * OPENS), [data.values[order.first]] * OPENS)

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        elapsed = 0
        for key, value in zip(operands.keys, operands.values, strict=True):
            rival.close()
            start = perf_counter_ns()
            rival.open(directory)
            with rival.reading() as session:
                answer = session.get(key)
                elapsed += perf_counter_ns() - start
            if answer != value:
                raise WrongAnswer(f"{rival.name} open: key {key.hex()} gave {answer!r}, expected {value!r}")
        return elapsed / len(operands.keys)

    def check(self, rival: Rival, data: Dataset) -> None:
        _check_pairs(self, rival, data, data.values)


class Disk(Workload):
    """Bytes on disk for each byte of key and value: the blocks of all files, after load, close and reopen.

    Index, preallocation and free pages are included; holes in sparse files are not.
    """

    name = "disk"
    has_loop = False
    operation = "byte of key and value"
    unit = "bytes on disk"
    times = False

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        rival.close()
        rival.open(directory)
        return bytes_on_disk(directory) / rival.bytes_expected

    def check(self, rival: Rival, data: Dataset) -> None:
        _check_count(self, rival, data.count)


class Put(Workload):
    """Store all pairs in an empty store, in shuffled order. No put waits for the device.

    A rival with transactions does it in one, whose begin and commit are timed. The others commit each pair.
    """

    name = "put"
    operation = "put of a new key"
    mutates = True
    needs_pairs = False

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return Operands(order.to_store(data.keys), order.to_store(data.values))

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        return _time_puts(rival, form, operands) / len(operands.keys)

    def run_loop(self, operands: Operands) -> float:
        return _time_empty_pair_loop(operands.keys, operands.values) / len(operands.keys)

    def check(self, rival: Rival, data: Dataset) -> None:
        _check_pairs(self, rival, data, data.values)


class Overwrite(Put):
    """Give every stored key a new value of the same size, in shuffled order; transactions as in `put`."""

    name = "overwrite"
    operation = "put of a stored key"
    needs_pairs = True

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return Operands(order.to_store(data.keys), order.to_store(data.replacements))

    def check(self, rival: Rival, data: Dataset) -> None:
        _check_pairs(self, rival, data, data.replacements)


class Delete(Workload):
    """Delete every stored key, in shuffled order, down to an empty store; transactions as in `put`."""

    name = "delete"
    operation = "delete of a stored key"
    mutates = True

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return Operands(order.to_look_up(data.keys))

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        return _time_deletes(rival, form, operands.keys) / len(operands.keys)

    def check(self, rival: Rival, data: Dataset) -> None:
        _check_pairs(self, rival, data, None)


def bytes_on_disk(directory: Path) -> int:
    """Return the bytes in allocated blocks of all files below a directory."""
    return sum(path.stat().st_blocks * BLOCK_BYTES for path in directory.rglob("*") if path.is_file())


def fill(rival: Rival, data: Dataset) -> None:
    """Store all pairs, untimed."""
    with rival.writing() as session:
        put = session.put
        for key, value in zip(data.keys, data.values, strict=True):
            put(key, value)


def _time_lookups(session: Session, form: Form, keys: Sequence[bytes]) -> int:
    if form is Form.OPERATOR:
        mapping = _mapping(session)
        start = perf_counter_ns()
        for key in keys:
            mapping[key]
        return perf_counter_ns() - start
    get = session.get
    start = perf_counter_ns()
    for key in keys:
        get(key)
    return perf_counter_ns() - start


def _time_scan(items: Callable[[], Iterable[tuple[bytes, bytes]]]) -> int:
    start = perf_counter_ns()
    for _key, _value in items():
        pass
    return perf_counter_ns() - start


def _time_puts(rival: Rival, form: Form, operands: Operands) -> int:
    keys, values = operands.keys, operands.values
    start = perf_counter_ns()
    with rival.writing() as session:
        if form is Form.OPERATOR:
            mapping = _mapping(session)
            for key, value in zip(keys, values, strict=True):
                mapping[key] = value
        else:
            put = session.put
            for key, value in zip(keys, values, strict=True):
                put(key, value)
    return perf_counter_ns() - start


def _time_deletes(rival: Rival, form: Form, keys: Sequence[bytes]) -> int:
    start = perf_counter_ns()
    with rival.writing() as session:
        if form is Form.OPERATOR:
            mapping = _mapping(session)
            for key in keys:
                del mapping[key]
        else:
            delete = session.delete
            for key in keys:
                delete(key)
    return perf_counter_ns() - start


def _time_empty_loop(keys: Sequence[bytes]) -> int:
    start = perf_counter_ns()
    for _key in keys:
        pass
    return perf_counter_ns() - start


def _time_empty_pair_loop(keys: Sequence[bytes], values: Sequence[bytes]) -> int:
    start = perf_counter_ns()
    for _key, _value in zip(keys, values, strict=True):
        pass
    return perf_counter_ns() - start


def _mapping(session: Session) -> MutableMapping[bytes, bytes]:
    assert session.mapping is not None, "a rival that spells the operator form has a mapping"
    return session.mapping


def _check_count(workload: Workload, rival: Rival, expected: int) -> None:
    count = rival.count()
    if count != expected:
        raise WrongAnswer(f"{rival.name} {workload.name}: holds {count:,} pairs, expected {expected:,}")


def _check_pairs(workload: Workload, rival: Rival, data: Dataset, values: Sequence[bytes] | None) -> None:
    """`values` belong to all the keys, in order; `None` means that no key is stored."""
    _check_count(workload, rival, data.count if values is not None else 0)
    with rival.reading() as session:
        data.check(f"{rival.name} {workload.name}", session.get, values)


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (Get(), Miss(), Scan(), Open(), Disk(), Put(), Overwrite(), Delete())
}
"""In the order they run: those that change nothing first, then a store's life from empty to empty."""
