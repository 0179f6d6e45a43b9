"""The core workloads of YCSB: mixes of operations on keys of which some are much more popular than others.

As Cooper et al. define them ("Benchmarking Cloud Serving Systems with YCSB", 2010,
https://github.com/brianfrankcooper/YCSB/wiki/Core-Workloads), with the pairs of the other workloads:
`zipfian` is the distribution of Gray et al. with YCSB's constant 0.99, and which key has which rank is drawn
anew in each round; `latest` is the same over the keys in the order that they came in, the newest first.

The operations of a run are made before, as tuples, and are the same for all rivals; walking them is contained
in all rows. The keys are new objects in the order of their use. A rival with transactions does all of them in
one write transaction, in C in a read transaction, which is the fastest it can; begin and commit are timed.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from time import perf_counter_ns
from typing import ClassVar

from .adapters import Form, Rival, Session
from .dataset import CHECKED_KEYS_MAX, Dataset, Order, fresh_copies
from .workload import Operands, Workload, needed

READ, UPDATE, INSERT, SCAN, MODIFY = range(5)

THETA = 0.99
SCAN_PAIRS_MAX = 100
SCANS_CHECKED = 20

Operation = tuple[int, bytes, bytes, int]
"""What, the key, the value to write if any, and how many pairs to scan."""


class Zipfian:
    """Draws ranks below `count`, of which a low one is drawn much more often than a high one.

    "Quickly Generating Billion-Record Synthetic Databases", Gray et al., 1994, as in YCSB.
    """

    def __init__(self, count: int, rng: random.Random) -> None:
        self._count = count
        self._random = rng.random
        self._zeta = _zeta(count)
        self._alpha = 1 / (1 - THETA)
        self._second = 1 + 0.5**THETA
        self._eta = (1 - (2 / count) ** (1 - THETA)) / (1 - self._second / self._zeta) if count > 2 else 1.0

    def draw(self) -> int:
        """Return the next rank."""
        drawn = self._random()
        share = drawn * self._zeta
        if share < 1:
            return 0
        if share < self._second:
            return 1
        return min(int(self._count * (self._eta * drawn - self._eta + 1) ** self._alpha), self._count - 1)


class Operations(Operands):
    """The operations of a run, and what must be stored after it."""

    def __init__(self, operations: Sequence[Operation], inserted: int) -> None:
        super().__init__([key for _, key, _, _ in operations])
        self.operations = operations
        self.inserted = inserted
        self.count_expected = 0
        self.written = {key: value for _, key, value, _ in operations if value}


class Ycsb(Workload):
    """A mix. The check looks up what was written last to the keys that were written to."""

    operation = "operation of the mix"
    mutates = True
    life = "ycsb"
    first: ClassVar[tuple[int, float]]
    """The one kind of operation, and its share."""

    second: ClassVar[int] = READ
    """The other kind."""

    reads_latest: ClassVar[bool] = False
    supply: ClassVar[int] = 0
    """Which half of the absent keys it inserts from: so each inserts new ones, whatever ran before it."""

    def prepare(self, data: Dataset, order: Order) -> Operations:
        kinds = self._draw_kinds(min(self.amounts.operations, data.count), data.count, order)
        rng = random.Random(f"{self.name} keys {order.first}")
        zipfian = Zipfian(data.count, rng)
        fresh = data.absent[self.supply :: 2]
        inserted = 0
        keys, values = [], []
        for kind in kinds:
            if kind == INSERT:
                keys.append(fresh[inserted])
                inserted += 1
            elif self.reads_latest:
                age = zipfian.draw()
                keys.append(fresh[inserted - 1 - age] if age < inserted else data.keys[inserted - 1 - age])
            else:
                keys.append(data.keys[order.indices[zipfian.draw()]])
            values.append(data.values[rng.randrange(data.count)])
        lengths = [rng.randint(1, SCAN_PAIRS_MAX) for _ in kinds]
        writes = (UPDATE, INSERT, MODIFY)
        operations = [
            (kind, key, value if kind in writes else b"", length)
            for kind, key, value, length in zip(
                kinds, fresh_copies(keys), fresh_copies(values), lengths, strict=True
            )
        ]
        return Operations(operations, inserted)

    def _draw_kinds(self, count: int, keys: int, order: Order) -> list[int]:
        rng = random.Random(f"{self.name} kinds {order.first}")
        kind, share = self.first
        kinds = [kind if rng.random() < share else self.second for _ in range(count)]
        inserts = [place for place, each in enumerate(kinds) if each == INSERT]
        for place in inserts[keys // 2 :]:
            kinds[place] = kind
        return kinds

    def run(self, rival: Rival, form: Form, operands: Operands, directory: Path) -> float:
        assert isinstance(operands, Operations)
        operands.count_expected = rival.count() + operands.inserted
        scans = SCAN in (self.first[0], self.second)
        begin = rival.reading if self.first == (READ, 1.0) else rival.writing
        start = perf_counter_ns()
        with begin() as session:
            if scans:
                _operate_with_scans(rival, session, operands.operations)
            else:
                _operate(session, operands.operations)
        elapsed = perf_counter_ns() - start
        return elapsed / len(operands.operations)

    def run_loop(self, operands: Operands) -> float:
        assert isinstance(operands, Operations)
        start = perf_counter_ns()
        for _kind, _key, _value, _length in operands.operations:
            pass
        return (perf_counter_ns() - start) / len(operands.operations)

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        assert isinstance(operands, Operations)
        self.check_count(rival, operands.count_expected)
        with rival.reading() as session:
            for key, value in list(operands.written.items())[:CHECKED_KEYS_MAX]:
                self.check_key(rival, key, session.get(key), value)
            for kind, key, _, _ in operands.operations[:CHECKED_KEYS_MAX]:
                if kind == READ and session.get(key) is None:
                    raise self.wrong(rival, f"key {key.hex()} was not found")


class YcsbA(Ycsb):
    """Update heavy: 50 % reads, 50 % updates, zipfian."""

    name = "ycsb-a"
    first = (UPDATE, 0.5)


class YcsbB(Ycsb):
    """Read mostly: 95 % reads, 5 % updates, zipfian."""

    name = "ycsb-b"
    first = (READ, 0.95)
    second = UPDATE


class YcsbC(Ycsb):
    """Read only: zipfian."""

    name = "ycsb-c"
    first = (READ, 1.0)


class YcsbF(Ycsb):
    """Read, modify, write: 50 % reads, 50 % reads followed by an update of the same key, zipfian."""

    name = "ycsb-f"
    first = (MODIFY, 0.5)


class YcsbD(Ycsb):
    """Read latest: 95 % reads, mostly of what came in last, and 5 % inserts."""

    name = "ycsb-d"
    first = (READ, 0.95)
    second = INSERT
    reads_latest = True


class YcsbE(Ycsb):
    """Short ranges: 95 % scans of 1 to 100 pairs in the order of the keys, 5 % inserts, zipfian.

    Every pair of a scan is brought out. The check compares some scans with all keys, sorted.
    """

    name = "ycsb-e"
    unit = "us"
    unit_size = 1e3
    first = (SCAN, 0.95)
    second = INSERT
    supply = 1

    def check(self, rival: Rival, data: Dataset, operands: Operands) -> None:
        assert isinstance(operands, Operations)
        super().check(rival, data, operands)
        with rival.reading() as session:
            scan_from = needed(rival, "ordered scan", session.scan_from)
            pairs = sorted((bytes(key), bytes(value)) for key, value in session.items())
            scans = [each for each in operands.operations if each[0] == SCAN]
            for _, key, _, length in scans[:SCANS_CHECKED]:
                at = bisect_left(pairs, (key, b""))
                found = list(scan_from(key, length))
                if found != pairs[at : at + length]:
                    raise self.wrong(rival, f"a scan of {length} pairs from {key.hex()} gave others")


def _operate(session: Session, operations: Iterable[Operation]) -> None:
    get, put = session.get, session.put
    for kind, key, value, _length in operations:
        if kind == READ:
            get(key)
        elif kind == MODIFY:
            get(key)
            put(key, value)
        else:
            put(key, value)


def _operate_with_scans(rival: Rival, session: Session, operations: Iterable[Operation]) -> None:
    put = session.put
    scan_from = needed(rival, "ordered scan", session.scan_from)
    for kind, key, value, length in operations:
        if kind == SCAN:
            for _pair in scan_from(key, length):
                pass
        else:
            put(key, value)


@lru_cache(maxsize=4)
def _zeta(count: int) -> float:
    return float(sum(1 / rank**THETA for rank in range(1, count + 1)))
