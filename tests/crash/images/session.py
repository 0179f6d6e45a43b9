"""A session of a log: opened, some calls, closed or not. What must be true is said before each call."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmapio import FlushPolicy
from mmaplog import Log
from tests.crash.images.oracle import Alternatives, Expected, Record, complaints
from tests.crash.images.recording import Recorder
from tests.crash.log_storm.checks import first_of
from tests.crash.log_storm.places import is_kept, key_of, place
from tests.crash.log_storm.plan import AVAILABLE, Call, Kind
from tests.crash.log_storm.writer import perform

_NOISE = random.Random("noise of the images").randbytes(256 << 10)
_POLICIES = [
    (8, FlushPolicy.MANUAL),
    (1, FlushPolicy.every_writes(5)),
    (1, FlushPolicy.every_bytes(20_000)),
]


@dataclass(frozen=True)
class Style:
    """How a log is used: drawn once for all of its sessions."""

    segment_bytes: int
    timestamps: bool
    policy: FlushPolicy
    size_max: int
    """Of most records. Some are larger, a few larger than a segment."""
    syncing: float
    """Share of calls that sync."""
    drops: float
    """Share of those that drop records."""
    shared: bool
    """Whether the log is opened as one that others may write, too, though nobody does."""

    @classmethod
    def draw(cls, rng: random.Random) -> Style:
        """Small segments, so that the log rolls, or none rolls and the records are small."""
        return cls(
            segment_bytes=rng.choice((64 << 10, 64 << 10, 128 << 10)),
            timestamps=rng.random() < 0.3,
            policy=rng.choices([policy for _, policy in _POLICIES], [share for share, _ in _POLICIES])[0],
            size_max=rng.choice((100, 600, 3000, 12_000)),
            syncing=rng.choice((0.05, 0.2, 0.5)),
            drops=rng.choice((0.0, 0.05, 0.2)) if AVAILABLE else 0.0,
            shared=rng.random() < 0.3,
        )

    def call(self, rng: random.Random) -> Call:
        """The next call."""
        kind = rng.random()
        share = rng.randrange(1025)
        if kind < self.drops:
            return Call(rng.choice(AVAILABLE), (), False, share)
        if rng.random() < self.syncing * 0.4:
            return Call(Kind.REOPEN if rng.random() < 0.15 else Kind.FLUSH, (), False, share)
        sort = rng.choice((Kind.APPEND, Kind.RESERVE, Kind.MANY, Kind.BATCH))
        count = 1 if sort in (Kind.APPEND, Kind.RESERVE) else rng.randrange(7)
        sizes = tuple(self._size(rng) for _ in range(count))
        return Call(sort, sizes, rng.random() < self.syncing, share)

    def _size(self, rng: random.Random) -> int:
        choice = rng.random()
        if choice < 0.03:
            return rng.randrange(self.segment_bytes * 5 // 4)
        if choice < 0.1:
            return rng.randrange(3)
        return rng.randrange(self.size_max)


class Session:
    """One session, from opening on. The recorder, if there is one, is told what must be true when."""

    def __init__(
        self, path: Path, style: Style, rng: random.Random, name: int, recorder: Recorder | None
    ) -> None:
        self.path = path
        self.style = style
        self.rng = rng
        self.name = name
        self.recorder = recorder
        self.appended = 0
        self.batches = 0
        self.log: Log | None = None
        self.state = Expected()
        self.found: dict[int, bytes] = {}

    def open(self, alternatives: Alternatives) -> Log:
        """Open the log, of which one of these is true, and read it. What is found is the state then."""
        self._say(alternatives)
        self.log = log = self._open()
        first, committed = first_of(log), log.committed
        self.found = {entry.seq: bytes(entry.payload) for entry in log.replay(first)}
        # A placeholder where nothing is looked for: below the first, and what compaction has taken out.
        batches = _batches(alternatives, committed)
        self.state = Expected(
            tuple(Record(self.found.get(seq, b""), batches[seq]) for seq in range(committed)),
            log.durable,
            frozenset({first}),
            removed=frozenset(range(first, committed)) - self.found.keys(),
        )
        self._say((self.state,))
        return log

    def run(self, count: int) -> None:
        """Make so many calls."""
        for _ in range(count):
            self.make(self.style.call(self.rng))

    def make(self, call: Call) -> None:
        """Make a call, saying before it what may be true meanwhile and after it what is."""
        assert self.log is not None
        payloads = [self._payload(size) for size in call.sizes]
        meanwhile = self._meanwhile(call, payloads)
        self._say(meanwhile)
        _, self.log = perform(self.log, call, payloads, self._open)
        self.state = self._afterwards(call, meanwhile)
        self._say((self.state,))

    def close(self) -> None:
        """End it; a flush, and a clean mark."""
        if self.log is not None:
            self.log.close()
            self.log = None
        self._say((self.state,))

    def forget(self) -> None:
        """End it as a crash does: nothing is flushed or sealed, and the locks are gone."""
        self.log = None

    def go_on(self) -> None:
        """Append a few records, as whoever opens a log does."""
        for size in (5, 200, self.style.size_max):
            self.make(Call(Kind.APPEND, (self.rng.randrange(size),), False, 0))

    def judge(self, alternatives: Alternatives) -> list[str]:
        """What is wrong with what was found at opening."""
        log = self.log
        assert log is not None
        wrong = complaints(alternatives, max(self.state.firsts), log.committed, self.found)
        if len(log) != len(self.found):
            wrong.append(f"len() is {len(log)}, {len(self.found)} records are there")
        if not self.state.floor <= log.committed:
            wrong.append(f"durable is {self.state.floor}, committed {log.committed}")
        return wrong

    def damages(self) -> Sequence[object]:
        """What a verification finds."""
        assert self.log is not None
        return self.log.verify().damages

    def is_shorter(self, alternatives: Alternatives) -> bool:
        """Whether some of the last records are not there."""
        return len(self.state.records) < max(len(each.records) for each in alternatives)

    def left(self) -> Alternatives:
        """What is there after its end, when nothing was lost."""
        return (dataclasses.replace(self.state, floor=len(self.state.records)),)

    def _open(self) -> Log:
        return Log.open(
            self.path,
            "c",
            flush_policy=self.style.policy,
            timestamps=self.style.timestamps,
            segment_bytes=self.style.segment_bytes,
            shared=self.style.shared,
        )

    def _say(self, alternatives: Alternatives) -> None:
        if self.recorder is not None:
            self.recorder.expected = alternatives
            self.recorder.look(self.log is not None)

    def _payload(self, size: int) -> bytes:
        self.appended += 1
        tag = b"%d:%d:" % (self.name, self.appended)
        start = self.appended * 997 % 4096
        return (tag + _NOISE[start : start + size])[:size]

    def _meanwhile(self, call: Call, payloads: list[bytes]) -> Alternatives:
        state = self.state
        first, end = max(state.firsts), len(state.records)
        if call.kind.appends:
            self.batches += 1
            batch = self.batches + (self.name << 32) if call.kind is Kind.BATCH else None
            more = tuple(Record(payload, batch) for payload in payloads)
            return (dataclasses.replace(state, records=state.records + more),)
        if call.kind is Kind.TRUNCATE_BEFORE:
            return (dataclasses.replace(state, firsts=state.firsts | {place(first, end, call.share)}),)
        if call.kind is Kind.RETAIN:
            limit = end - place(0, end - first, call.share)
            return (dataclasses.replace(state, firsts=frozenset(range(first, limit + 1))),)
        if call.kind is Kind.TRUNCATE_AFTER:
            cut = place(first, end, call.share)
            # The numbers from there on are given out again, those that compaction had taken out too.
            kept, removed = state.records[:cut], frozenset(seq for seq in state.removed if seq < cut)
            floor = min(state.floor, cut)
            return state, dataclasses.replace(state, records=kept, floor=floor, removed=removed)
        if call.kind in (Kind.COMPACT, Kind.COMPACT_BY_KEY):
            return (dataclasses.replace(state, removable=self._removable(call)),)
        return (state,)

    def _removable(self, call: Call) -> frozenset[int]:
        present = set(range(max(self.state.firsts), len(self.state.records))) - self.state.removed
        if call.kind is Kind.COMPACT:
            return frozenset(seq for seq in present if not is_kept(seq, call.share))
        newest = {key_of(seq, call.share): seq for seq in sorted(present)}
        return frozenset(present - set(newest.values()))

    def _afterwards(self, call: Call, meanwhile: Alternatives) -> Expected:
        log = self.log
        assert log is not None
        state = dataclasses.replace(meanwhile[-1], floor=log.durable, firsts=frozenset({first_of(log)}))
        if state.removable:
            left = {entry.seq for entry in log.replay(first_of(log))}
            state = dataclasses.replace(
                state,
                removable=frozenset(),
                removed=state.removed | (state.removable - left),
            )
        return state


def _batches(alternatives: Alternatives, committed: int) -> list[int | None]:
    # Which batch a record belongs to is not to be read from a log; it matters only for one that may still be
    # cut off.
    fitting = [each for each in alternatives if len(each.records) >= committed]
    known = [record.batch for record in fitting[0].records[:committed]] if fitting else []
    return known + [None] * (committed - len(known))
