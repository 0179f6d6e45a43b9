"""What one round of the log's storm does: drawn from (seed, round) alone, so that it can be drawn again."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from mmapio import FlushPolicy
from mmaplog import Log
from tests.crash.log_storm.records import SIZE_MAX, TAG_SIZE

WRITERS_MAX = 4
# Shares of calls are counted in 1/1024.
WHOLE = 1024

_POLICIES: list[tuple[int, FlushPolicy]] = [
    (25, FlushPolicy.every_millis(1000)),
    (15, FlushPolicy.every_millis(2)),
    (20, FlushPolicy.MANUAL),
    (20, FlushPolicy.NEVER),
    (8, FlushPolicy.every_bytes(256 << 10)),
    (8, FlushPolicy.every_writes(50)),
    (4, FlushPolicy.ALWAYS),
]
# Where a process may be made to kill itself: before or after the n-th of these calls. Stores to mapped memory
# are none of them; those the clock has to meet.
TRAPS = ("grow", "name_file", "open_file", "replace_file", "remove_file", "sync", "write_at", "set_size")
TRAP_NTH_MAX = 12


class Kind(IntEnum):
    """What a call is."""

    APPEND = 1
    MANY = 2
    BATCH = 3
    FLUSH = 4
    REOPEN = 5
    TRUNCATE_BEFORE = 6
    TRUNCATE_AFTER = 7
    RETAIN = 8
    COMPACT = 9
    COMPACT_BY_KEY = 10
    RESERVE = 11

    @property
    def appends(self) -> bool:
        """Whether it adds records."""
        return self <= Kind.BATCH or self is Kind.RESERVE


_DROPPING = {
    Kind.TRUNCATE_BEFORE: "truncate_before",
    Kind.TRUNCATE_AFTER: "truncate_after",
    Kind.RETAIN: "retain",
    Kind.COMPACT: "compact",
    Kind.COMPACT_BY_KEY: "compact",
}
AVAILABLE = tuple(kind for kind, name in _DROPPING.items() if hasattr(Log, name))
"""The calls that drop records, of those that this log has."""

SHARED = tuple(kind for kind in AVAILABLE if kind in (Kind.TRUNCATE_BEFORE, Kind.RETAIN, Kind.COMPACT))
"""Those of which the parent can tell what they do while others append. Only the first writer makes them."""


class Call(NamedTuple):
    """One call: sizes of the records that it appends; `share` in 1/1024, how far in the log it reaches."""

    kind: Kind
    sizes: tuple[int, ...]
    durable: bool
    share: int


class Trap(NamedTuple):
    """Die at the `nth` call of a function of the boundary, after it or before."""

    name: str
    nth: int
    after: bool


@dataclass(frozen=True)
class LogPlan:
    """How a log is made: drawn anew whenever a log has grown too large or too old."""

    segment_bytes: int
    timestamps: bool
    reaches_back: bool
    """Whether records are dropped again, by truncation, retention and compaction."""

    @classmethod
    def draw(cls, seed: int, round_number: int) -> LogPlan:
        """The plan of the log that is made in a round."""
        rng = random.Random(f"log {seed} {round_number}")
        return cls(
            # In the largest a fast writer has the next segment made ahead.
            segment_bytes=rng.choice((64 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20, 2 << 20)),
            timestamps=rng.random() < 0.5,
            reaches_back=rng.random() < 0.6,
        )


@dataclass(frozen=True)
class Plan:
    """One round: what its writers do, who is killed when, and what comes until the log is open again."""

    seed: int
    round: int
    writers: int
    victims: int
    """The first so many writers are killed; the others go on for a while, and then close."""
    policy: FlushPolicy
    many: int
    """Share of calls of append_many ..."""
    batches: int
    """... of atomic batches ..."""
    flushes: int
    """... of flush() ..."""
    reopens: int
    """... of closing and opening again ..."""
    drops: int
    """... and of those that drop records, where the log is one of those; the others append one record."""
    durable: int
    """Share of appending calls that ask to be durable."""
    large: int
    """Share of records of up to 2 MiB ..."""
    middling: int
    """... and of up to 64 KiB; most others have some hundred bytes."""
    at_once: bool
    """Kill a while after the fork, so perhaps while opening, and not a while after the first call."""
    delay_us: int
    trap: Trap | None
    """Where the first victim kills itself, if it comes to it in time."""
    loses_control: bool
    recovery_delay_us: int | None
    """Kill the first process that opens the log after the kill, too, this long after its fork ..."""
    recovery_trap: Trap | None
    """... or here, if it comes to it."""
    reader_first: bool
    """A reader opens the log before a writer has recovered it."""
    closes_cleanly: bool

    @classmethod
    def draw(cls, seed: int, round_number: int, shared: bool) -> Plan:
        """The plan of a round."""
        rng = random.Random(f"plan {seed} {round_number} {shared}")
        # For a while, without syncs, and much: only so is the next segment made ahead.
        fast = rng.random() < 0.05
        syncing = not fast and rng.random() < 0.5
        writers = rng.randint(2, WRITERS_MAX) if shared else 1
        nested = rng.random() < 0.12
        return cls(
            seed=seed,
            round=round_number,
            writers=writers,
            victims=rng.randint(1, writers),
            policy=rng.choices([policy for _, policy in _POLICIES], [share for share, _ in _POLICIES])[0],
            many=rng.choice((0, 50, 200)),
            batches=rng.choice((0, 100, 300)),
            flushes=rng.choice((2, 20)) if syncing else 0,
            reopens=rng.choice((4, 20)) if rng.random() < 0.15 else 0,
            drops=rng.choice((2, 8, 40)),
            durable=rng.choice((5, 50, 300)) if syncing else 0,
            large=rng.choice((0, 0, 2, 20)),
            middling=900 if fast else rng.choice((0, 5, 20, 60)),
            at_once=rng.random() < 0.06,
            delay_us=rng.randrange(60_000 if fast else 10_000),
            trap=_draw_trap(rng) if rng.random() < 0.3 else None,
            loses_control=rng.random() < 0.15,
            recovery_delay_us=rng.randrange(6_000) if nested else None,
            recovery_trap=_draw_trap(rng) if nested and rng.random() < 0.7 else None,
            reader_first=rng.random() < 0.1,
            closes_cleanly=rng.random() < 0.3,
        )


def calls(plan: Plan, log: LogPlan, writer: int) -> Iterator[Call]:
    """The calls of one writer of a round in their order, without end. Number 1 is the first."""
    rng = random.Random(f"calls {plan.seed} {plan.round} {writer}")
    smallest = TAG_SIZE if plan.writers > 1 else 0
    flush_below = plan.flushes
    reopen_below = flush_below + plan.reopens
    dropping = (AVAILABLE if plan.writers == 1 else SHARED) if log.reaches_back and writer == 0 else ()
    drop_below = reopen_below + (plan.drops if dropping else 0)
    many_below = drop_below + plan.many
    batch_below = many_below + plan.batches
    for _ in itertools.count():
        choice = rng.randrange(WHOLE)
        share = rng.randrange(WHOLE + 1)
        if choice < flush_below:
            yield Call(Kind.FLUSH, (), False, share)
        elif choice < reopen_below:
            yield Call(Kind.REOPEN, (), False, share)
        elif choice < drop_below:
            yield Call(rng.choice(dropping), (), False, share)
        else:
            kind, count = Kind.APPEND, 1
            if choice < many_below:
                kind, count = Kind.MANY, rng.randrange(40)
            elif choice < batch_below:
                kind, count = Kind.BATCH, rng.randrange(12)
            elif rng.randrange(8) == 0:
                kind = Kind.RESERVE
            sizes = tuple(_size(rng, plan, smallest) for _ in range(count))
            yield Call(kind, sizes, rng.randrange(WHOLE) < plan.durable, share)


def _draw_trap(rng: random.Random) -> Trap:
    return Trap(rng.choice(TRAPS), rng.randint(1, TRAP_NTH_MAX), rng.random() < 0.5)


def _size(rng: random.Random, plan: Plan, smallest: int) -> int:
    choice = rng.randrange(WHOLE)
    if choice < plan.large:
        size = rng.randrange(SIZE_MAX + 1)
    elif choice < plan.large + plan.middling:
        size = rng.randrange(64 << 10)
    elif choice < plan.large + plan.middling + 60:
        size = rng.randrange(TAG_SIZE + 2) if rng.random() < 0.7 else 0
    else:
        size = rng.randrange(20, 400)
    return max(size, smallest)
