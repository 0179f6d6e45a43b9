"""The glossary of the log: every workload by name, what it does and what exactly is timed.

As in the glossary of the mapping layer, a peer's statement is compiled into the loop of `timeit` and the row
shows it as it stands. Most statements are loops themselves, over records of 100 bytes, all different, that
were made before; what a loop costs is contained in all rows.

After each sample all that is stored is read back, outside the clock, and compared.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from .adapters.log_peer import LAST_WORDS, STAMP_BYTES, LogStage
from .dataset import WrongAnswer
from .harness import BALLAST_BYTES_MIN, BALLAST_BYTES_PER_BYTE_STORED
from .mapping_workloads import SEED, Act, Alone, MappedWorkload, Sizes, ToTheDevice

RECORD_BYTES = 100
STORED_BYTES = 120
"""What one of them takes in a log of mmaplog."""

GROUP_SIZE = 100
LOOKED_UP_MAX = 10_000

TRIES = 3

REST_SECONDS = 0.001
"""For who has been woken to fall asleep again."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """What the command line sets."""

    records: int = 200_000
    threaded: int = 1600
    wakes: int = 300
    log_bytes: int = 10 << 30
    sample_ns: float = 2.5e6
    """How long a measurement of small operations takes, at the least."""


class LogWorkload(MappedWorkload):
    """One thing to do with a log, which is a directory of its own."""

    has_loop = False
    tries = TRIES

    def __init__(self, amounts: Amounts) -> None:
        super().__init__(Sizes(sample_ns=amounts.sample_ns))
        self.amounts = amounts

    def make_file(self, path: Path) -> None:
        """The peer makes a directory instead."""

    @property
    def records(self) -> list[bytes]:
        """The records, the same objects for all."""
        return new_records(self.amounts.records)

    def operands(self) -> dict[str, object]:
        return {"records": self.records, "record_bytes": RECORD_BYTES}

    def compare(self, act: Act, found: Iterable[bytes], expected: Sequence[bytes]) -> None:
        """Raise `WrongAnswer` unless these are the records, in their order."""
        pairs = itertools.zip_longest(found, expected)
        for number, (record, wanted) in enumerate(pairs):
            if record != wanted:
                raise WrongAnswer(
                    f"{self.name}: after {act.statement} record {number} of {len(expected):,} is "
                    f"{_shown(record)}, not {_shown(wanted)}"
                )


class Append(LogWorkload):
    """Append `--records`, one a call, to a new log. Nothing is synced.

    On warm memory: three times as much is touched and freed before each measurement.
    """

    name = "append"
    operation = "record of 100 B, one a call"
    fresh = True

    @property
    def ballast_bytes(self) -> int:
        return max(BALLAST_BYTES_MIN, BALLAST_BYTES_PER_BYTE_STORED * RECORD_BYTES * self.amounts.records)

    def calibrate(self, act: Act) -> None:
        """Once is all that a new log allows."""

    def sample(self, act: Act) -> float:
        return act.timer.timeit(1) / len(given_records(act))

    def check(self, act: Act) -> None:
        self.compare(act, stage_of(act).read_back(), given_records(act))


class AppendMany(Append):
    """The same by the call that takes all of them.

    What a call wants to be given is made before: for mmaplog one buffer, and where each record begins in it,
    or a list; for SQLite and LMDB rows and pairs. Frames with a checksum are made by the statement.
    """

    name = "append-many"
    operation = "record of 100 B, all in one call"

    def operands(self) -> dict[str, object]:
        offsets = array("Q", range(0, RECORD_BYTES * len(self.records) + 1, RECORD_BYTES))
        return {**super().operands(), "joined": b"".join(self.records), "offsets": offsets}


class Replay(Append):
    """Read all entries in order, as Python objects, from a log that was filled through the same handle.

    Checksums are verified where the peer has any. The check reads all once more by the same expression; a
    queue must be empty instead.
    """

    name = "replay"
    operation = "entry of 100 B, in order"

    @property
    def ballast_bytes(self) -> int:
        return 0

    def check(self, act: Act) -> None:
        stage = stage_of(act)
        if stage.consumes:
            if left := stage.state():
                raise WrongAnswer(f"{self.name}: after {act.statement} {left:,} records are left")
            return
        expression = act.statement.partition(" in ")[2].removesuffix(": pass")
        found = (record_in(stage, entry) for entry in eval(expression, dict(act.names)))
        self.compare(act, found, given_records(act))


class Verify(Replay):
    """Have the log look at all that it holds, in one call; of each record of 100 B it has 120.

    The check sees that it was all, and that nothing was found wrong.
    """

    name = "verify"
    operation = "record of 100 B, verified with all others"

    def operands(self) -> dict[str, object]:
        return {**super().operands(), "verified": []}

    def check(self, act: Act) -> None:
        verified = act.names["verified"]
        assert isinstance(verified, list)
        found = verified.pop()
        if found.damages or found.record_bytes != STORED_BYTES * len(given_records(act)):
            raise WrongAnswer(f"{self.name}: {act.statement} gave {found}")


class LookUp(LogWorkload):
    """Fetch 10,000 entries by their numbers, drawn anew each time, from a full log that was read before.

    Where a call takes many numbers, also so. The check fetches them once more.
    """

    name = "look-up"
    operation = "entry by its number"

    def __init__(self, amounts: Amounts) -> None:
        super().__init__(amounts)
        self._rng = random.Random(SEED)

    def operands(self) -> dict[str, object]:
        return {**super().operands(), "numbers": self._drawn()}

    def _drawn(self) -> list[int]:
        count = len(self.records)
        return self._rng.sample(range(count), min(count, LOOKED_UP_MAX))

    def calibrate(self, act: Act) -> None:
        """Once is long enough; it also has the log find its way."""
        act.timer.timeit(1)

    def begin(self, act: Act) -> None:
        """Draw other numbers: of those before, the entries may still be in the processor's cache."""
        _numbers(act)[:] = self._drawn()

    def sample(self, act: Act) -> float:
        return act.timer.timeit(1) / len(_numbers(act))

    def check(self, act: Act) -> None:
        stage, numbers = stage_of(act), _numbers(act)
        one, found = act.statement.removeprefix("for n in numbers: "), []
        if one != act.statement:
            code = compile(one, "<statement>", "eval")
            found = [record_in(stage, eval(code, {**act.names, "n": n})) for n in numbers]
        else:
            expression = act.statement.partition(" in ")[2].removesuffix(": pass")
            found = [record_in(stage, entry) for entry in eval(expression, dict(act.names))]
        self.compare(act, found, [self.records[n] for n in numbers])


class Durable(LogWorkload, Alone):
    """Append a record and wait until it is on the device, again and again; the middle one of many.

    In many turns, for a device may be slow for a while and then fast. All in one log, which is read back
    after each measurement.
    """

    name = "durable"
    operation = "record of 100 B, durable"
    unit = "us"
    unit_size: ClassVar[float] = 1e3
    tries = 10

    def operands(self) -> dict[str, object]:
        return {"record": Supply(self.records), "record_bytes": RECORD_BYTES}

    def check(self, act: Act) -> None:
        self.compare(act, stage_of(act).read_back(), supply_of(act).given())


class DurableBytes(ToTheDevice, Durable):
    """The same, but measured is how much the device has written, by the kernel's count of its sectors."""

    name = "durable-bytes"
    operation = "record of 100 B, durable"


class Group(Durable):
    """Append 100 records and then wait once for all of them."""

    name = "group"
    operation = "100 records of 100 B, and one sync"

    def operands(self) -> dict[str, object]:
        supply = Supply(self.records)
        return {
            "supply": supply,
            "group": iter(lambda: supply.take(GROUP_SIZE), None),
            "group_size": GROUP_SIZE,
            "record_bytes": RECORD_BYTES,
        }


class Threads(Durable):
    """Append `--threaded` records, each durable, from so many threads at once; the figure is for one record.

    That the threads are started is timed too. The order they come in is theirs, so the check knows none.
    """

    name = "threads"
    operation = "record of 100 B, durable, threads at once"
    tries = 5

    def operands(self) -> dict[str, object]:
        supply = Supply(self.records)

        def in_threads(count: int, append: Callable[[bytes], object]) -> None:
            parts = [supply.take(self.amounts.threaded // count) for _ in range(count)]

            def work(part: Sequence[bytes]) -> None:
                for record in part:
                    append(record)

            with ThreadPoolExecutor(count) as pool:
                list(pool.map(work, parts))

        return {"supply": supply, "in_threads": in_threads, "record_bytes": RECORD_BYTES}

    def calibrate(self, act: Act) -> None:
        """Once is long enough."""

    def sample(self, act: Act) -> float:
        supply = supply_of(act)
        before = supply.count
        elapsed = act.timer.timeit(1)
        return elapsed / max(supply.count - before, 1)

    def check(self, act: Act) -> None:
        self.compare(act, sorted(stage_of(act).read_back()), sorted(supply_of(act).given()))


class Wake(LogWorkload):
    """Append a record that says when, until another process, which was asleep waiting for it, has it.

    So the time is from before the call to the moment that the other has the bytes, by one clock. Not durable.
    The middle one of `--wakes`, with a pause of a millisecond before each.
    """

    name = "wake"
    operation = "append until another process has it"
    tries = 1
    unit = "us"
    unit_size = 1e3

    def operands(self) -> dict[str, object]:
        return {"stamp": _stamp}

    def calibrate(self, act: Act) -> None:
        """Each is measured alone."""

    def sample(self, act: Act) -> float:
        return statistics.median([self._wake(act) for _ in range(self.amounts.wakes)])

    def _wake(self, act: Act) -> int:
        time.sleep(REST_SECONDS)
        before = time.perf_counter_ns()
        act.timer.timeit(1)
        after = time.perf_counter_ns()
        received, then = stage_of(act).heard()
        asked = int.from_bytes(received, "little")
        if len(received) != STAMP_BYTES or not before <= asked <= after:
            raise WrongAnswer(f"{self.name}: after {act.statement} the other process had {_shown(received)}")
        return then - asked

    def check(self, act: Act) -> None:
        """Each was checked as it was received."""


class Reopen(LogWorkload):
    """Open a log whose writer was killed by `kill -9` right after an append, ready to be appended to.

    mmaplog's is of `--log-mib`, sparse, the others' are of `--records`. The check looks at the last record.
    """

    name = "reopen"
    operation = "open after kill -9 of the writer"
    unit = "ms"
    unit_size = 1e6

    def operands(self) -> dict[str, object]:
        return {**super().operands(), "opened": [], "log_bytes": self.amounts.log_bytes}

    def calibrate(self, act: Act) -> None:
        """Once is all that a killed writer allows."""

    def begin(self, act: Act) -> None:
        stage_of(act).crash()

    def sample(self, act: Act) -> float:
        return act.timer.timeit(1)

    def check(self, act: Act) -> None:
        opened = act.names["opened"]
        assert isinstance(opened, list)
        last = stage_of(act).payload(opened.pop())
        if last != LAST_WORDS:
            raise WrongAnswer(f"{self.name}: after {act.statement} the last record is {_shown(last)}")


class Supply(Iterator[bytes]):
    """The records, one after the other, and from the first again; remembers how many it has given."""

    def __init__(self, records: Sequence[bytes]) -> None:
        self._records = records
        self.count = 0

    def __next__(self) -> bytes:
        record = self._records[self.count % len(self._records)]
        self.count += 1
        return record

    def take(self, count: int) -> list[bytes]:
        """Return the next `count`."""
        return [next(self) for _ in range(count)]

    def given(self) -> list[bytes]:
        """Return all that were given so far."""
        return list(itertools.islice(itertools.cycle(self._records), self.count))


@lru_cache(maxsize=1)
def new_records(count: int) -> list[bytes]:
    """Return pseudo-random records, no two of them equal. Takes about 1 us each."""
    rng = random.Random(SEED)
    return [number.to_bytes(8, "little") + rng.randbytes(RECORD_BYTES - 8) for number in range(count)]


def stage_of(act: Act) -> LogStage:
    """The stage of a statement on a log."""
    assert isinstance(act.stage, LogStage)
    return act.stage


def record_in(stage: LogStage, answer: object) -> bytes:
    """The record in what a statement gave."""
    return answer if isinstance(answer, bytes) else stage.payload(answer)


def given_records(act: Act) -> list[bytes]:
    """The records that the statement was given."""
    records = act.names["records"]
    assert isinstance(records, list)
    return records


def supply_of(act: Act) -> Supply:
    """Where the statement had its records from."""
    supply = act.names.get("supply", act.names.get("record"))
    assert isinstance(supply, Supply)
    return supply


def _numbers(act: Act) -> list[int]:
    numbers = act.names["numbers"]
    assert isinstance(numbers, list)
    return numbers


def _stamp() -> bytes:
    return time.perf_counter_ns().to_bytes(STAMP_BYTES, "little")


def _shown(record: bytes | None) -> str:
    return "missing" if record is None else f"{len(record)} B {record[:16]!r}"


WORKLOADS: dict[str, type[LogWorkload]] = {
    workload.name: workload
    for workload in (
        Append, AppendMany, Replay, Verify, LookUp, Durable, DurableBytes, Group, Threads, Wake, Reopen,
    )
}  # fmt: skip
"""In the order they run."""
