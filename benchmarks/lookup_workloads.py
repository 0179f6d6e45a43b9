"""Workloads that only read, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from time import perf_counter_ns

from .adapters import Form, Rival, Session
from .dataset import VALUE_SIZE, Dataset, Order
from .workload import BATCH_KEYS, Operands, Workload, batches_of, mapping_of, needed


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
            elapsed = time_lookups(session, form, operands.keys)
        return elapsed / len(operands.keys)

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        self.check_pairs(rival, data, data.values)


class GetMany(Get):
    """The same, 1,000 keys a call. A list of the 1,000 is made before.

    A rival has the call that gives all answers at once: a list of values, or of pairs. The dict has none: it
    is the loop of `get` over the same batches.
    """

    name = "get-many"
    operation = f"look-up of a stored key, {BATCH_KEYS:,} a call"

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        batches = batches_of(operands.keys)
        with rival.reading() as session:
            if form is Form.EACH:
                elapsed = _time_batches_one_by_one(session.get, batches)
            else:
                elapsed = _time_batches(needed(rival, "get_many", session.get_many), batches)
        return elapsed / len(operands.keys)

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        super().check(rival, data, operands)
        expected = dict(data.sample())
        keys = list(expected)
        with rival.reading() as session:
            if session.get_many is not None:
                found = rival.found(keys, session.get_many(keys))
                for key, value in expected.items():
                    self.check_key(rival, key, found.get(key), value)


class GetManyInto(GetMany):
    """The same into one buffer, always the same, which has room for a call's values twice over."""

    name = "get-many-into"
    operation = f"look-up of a stored key, {BATCH_KEYS:,} a call, into a buffer"

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        batches = batches_of(operands.keys)
        buffer = _new_buffer()
        with rival.reading() as session:
            into = needed(rival, "get_many_into", session.get_many_into)
            start = perf_counter_ns()
            for batch in batches:
                into(batch, buffer)
            elapsed = perf_counter_ns() - start
        return elapsed / len(operands.keys)

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        self.check_pairs(rival, data, data.values)
        buffer = _new_buffer()
        with rival.reading() as session:
            into = needed(rival, "get_many_into", session.get_many_into)
            for batch in batches_of(data.sample()):
                keys = [key for key, _ in batch]
                found = rival.found_in(keys, into(keys, buffer), buffer)
                for key, value in batch:
                    self.check_key(rival, key, found.get(key), value)


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

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        self.check_count(rival, data.count)
        missing = dict(zip(data.keys, data.values, strict=True))
        with rival.reading() as session:
            for key, value in session.items():
                if missing.pop(key, None) != value:
                    raise self.wrong(rival, f"{key.hex()} came twice or with a wrong value")
        if missing:
            raise self.wrong(rival, f"{len(missing):,} of {data.count:,} pairs are missing")


def time_lookups(session: Session, form: Form, keys: Sequence[bytes]) -> int:
    """Return how long it takes to look up the keys one by one, in ns."""
    if form is Form.OPERATOR:
        mapping = mapping_of(session)
        start = perf_counter_ns()
        for key in keys:
            mapping[key]
        return perf_counter_ns() - start
    get = session.get
    start = perf_counter_ns()
    for key in keys:
        get(key)
    return perf_counter_ns() - start


def _time_batches(get_many: Callable[[Sequence[bytes]], object], batches: Sequence[Sequence[bytes]]) -> int:
    start = perf_counter_ns()
    for batch in batches:
        get_many(batch)
    return perf_counter_ns() - start


def _time_batches_one_by_one(get: Callable[[bytes], object], batches: Sequence[Sequence[bytes]]) -> int:
    start = perf_counter_ns()
    for batch in batches:
        for key in batch:
            get(key)
    return perf_counter_ns() - start


def _time_scan(items: Callable[[], Iterable[tuple[bytes, bytes]]]) -> int:
    start = perf_counter_ns()
    for _key, _value in items():
        pass
    return perf_counter_ns() - start


def _new_buffer() -> bytearray:
    return bytearray(2 * BATCH_KEYS * VALUE_SIZE)
