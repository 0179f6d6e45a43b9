"""Workloads that change a store, from empty to empty."""

from __future__ import annotations

import array
import statistics
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter_ns

from .adapters import Form, Rival
from .dataset import CHECKED_KEYS_MAX, Dataset, Order
from .workload import BATCH_KEYS, Operands, Workload, batches_of, mapping_of, needed


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

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        self.check_pairs(rival, data, data.values)


class PutTail(Put):
    """The same, each put timed by itself: the time that one in 10,000 exceeds."""

    name = "put-tail"
    operation = "put of a new key, the 99.99th percentile"
    unit = "us"
    unit_size = 1e3
    life = "tail"
    has_loop = False

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        times = array.array("Q", bytes(8 * len(operands.keys)))
        with rival.writing() as session:
            put = session.put
            for at, (key, value) in enumerate(zip(operands.keys, operands.values, strict=True)):
                start = perf_counter_ns()
                put(key, value)
                times[at] = perf_counter_ns() - start
        return sorted(times)[min(len(times) * 9_999 // 10_000, len(times) - 1)]


class Overwrite(Put):
    """Give every stored key a new value of the same size, in shuffled order; transactions as in `put`."""

    name = "overwrite"
    operation = "put of a stored key"
    needs_pairs = True

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return Operands(order.to_store(data.keys), order.to_store(data.replacements))

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        self.check_pairs(rival, data, data.replacements)


class Delete(Workload):
    """Delete every stored key, in shuffled order, down to an empty store; transactions as in `put`."""

    name = "delete"
    operation = "delete of a stored key"
    mutates = True

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return Operands(order.to_look_up(data.keys))

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        return _time_deletes(rival, form, operands.keys) / len(operands.keys)

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        self.check_pairs(rival, data, None)


class PutMany(Put):
    """Store all pairs in an empty store, 1,000 a call, each call a commit. None waits for the device.

    A list of the 1,000 pairs is made before.
    """

    name = "put-many"
    operation = f"put of a new key, {BATCH_KEYS:,} a commit"
    life = "batches"
    has_loop = False

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        return _time_commits(rival, operands) / len(operands.keys)


class PutAll(PutMany):
    """Store all pairs in an empty store in one call, one commit. It does not wait for the device."""

    name = "put-all"
    operation = "put of a new key, all in one commit"
    life = "one batch"

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        return _time_commits(rival, operands, len(operands.keys)) / len(operands.keys)


class Durable(Workload):
    """Put a pair and wait until it is on the device, again and again; the middle one of many.

    Of `--durable` in all, in several turns, for a device may be slow for a while and then fast. All into one
    store, which is empty at first. The check looks all of a turn's keys up.
    """

    name = "durable"
    operation = "put of a pair, durable"
    unit = "us"
    unit_size = 1e3
    mutates = True
    life = "durable"
    durable = True
    needs_pairs = False
    has_loop = False
    tries = 5

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return self._first(data, order, self.amounts.durable // self.tries)

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        put = rival.commits().put
        times = []
        for key, value in zip(operands.keys, operands.values, strict=True):
            start = perf_counter_ns()
            put(key, value)
            times.append(perf_counter_ns() - start)
        return statistics.median(times)

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        with rival.reading() as session:
            pairs = zip(operands.keys, operands.values, strict=True)
            for key, value in list(pairs)[:CHECKED_KEYS_MAX]:
                self.check_key(rival, key, session.get(key), value)

    @staticmethod
    def _first(data: Dataset, order: Order, count: int) -> Operands:
        count = max(count, 1)
        return Operands(order.first_to_store(data.keys, count), order.first_to_store(data.values, count))


class Commit(Durable):
    """The same with 1,000 pairs a commit, which waits once for all; `--commits` of them, all timed in one.

    The figure is for one pair.
    """

    name = "commit"
    operation = f"put of a pair, {BATCH_KEYS:,} a commit, durable"
    unit = "ns"
    unit_size = 1
    tries = 3

    def prepare(self, data: Dataset, order: Order) -> Operands:
        return self._first(data, order, max(self.amounts.commits // self.tries, 1) * BATCH_KEYS)

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        return _time_commits(rival, operands) / len(operands.keys)


def _time_puts(rival: Rival, form: Form, operands: Operands) -> int:
    keys, values = operands.keys, operands.values
    start = perf_counter_ns()
    with rival.writing() as session:
        if form is Form.OPERATOR:
            mapping = mapping_of(session)
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
            mapping = mapping_of(session)
            for key in keys:
                del mapping[key]
        else:
            delete = session.delete
            for key in keys:
                delete(key)
    return perf_counter_ns() - start


def _time_commits(rival: Rival, operands: Operands, keys_each: int = BATCH_KEYS) -> int:
    put_many = needed(rival, "put_many", rival.commits().put_many)
    batches = batches_of(list(zip(operands.keys, operands.values, strict=True)), keys_each)
    start = perf_counter_ns()
    for batch in batches:
        put_many(batch)
    return perf_counter_ns() - start


def _time_empty_pair_loop(keys: Sequence[bytes], values: Sequence[bytes]) -> int:
    start = perf_counter_ns()
    for _key, _value in zip(keys, values, strict=True):
        pass
    return perf_counter_ns() - start
