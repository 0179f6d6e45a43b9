"""What one round of the storm does: drawn from (seed, round) alone, so that anybody can draw it again."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mmapio import FlushPolicy

# Shares of operations are counted in 1/1024.
WHOLE = 1024

_POLICIES: list[tuple[int, FlushPolicy]] = [
    (30, FlushPolicy.every_millis(1000)),
    (10, FlushPolicy.every_millis(2)),
    (20, FlushPolicy.MANUAL),
    (15, FlushPolicy.NEVER),
    (10, FlushPolicy.every_bytes(1 << 20)),
    (10, FlushPolicy.every_writes(200)),
    (5, FlushPolicy.ALWAYS),
]


@dataclass(frozen=True)
class Plan:
    """One round: what the writer does, when it is killed, and what happens until the store is open again."""

    seed: int
    round: int
    keys: int
    """How many keys the store was loaded with."""
    policy: FlushPolicy
    fresh: int
    """Share of puts of new keys ..."""
    deletions: int
    """... and of deletions; the other operations overwrite."""
    large: int
    """Share of values of up to 64 KiB; most others have about 100 bytes."""
    clears: int
    """Share of calls of clear()."""
    batches: int
    """Share of batches and transactions, in place of single operations."""
    durable: int
    """Share of puts and batches that ask to be durable."""
    flushes: int
    """Share of calls of flush()."""
    compactions: int
    """Share of calls of compact() between the others ..."""
    compacts_at: int
    """... and the number of the operation before which there is one in any case; 0 for none."""
    background: bool
    """Whether a thread compacts, too, and how eagerly follows from that: as if the store were large."""
    snapshots: int
    """Share of taking a snapshot, and looking whether the one before is what it was."""
    reopens: int
    """Share of closing and opening again."""
    at_once: bool
    """Kill a while after the fork, so perhaps while opening, and not a while after the first write."""
    delay_us: int
    """How long that while is, in microseconds."""
    lost: tuple[str, ...]
    """Files that are removed after the kill: all of them can be derived from the log."""
    recovery_kill_us: int | None
    """Kill the first process that opens the store after the kill, too, this long after its fork."""
    reader_meanwhile: bool
    """A reader opens the store while the writer writes."""
    reader_first: bool
    """A reader opens the store before a writer has recovered it."""
    closes_cleanly: bool
    """Whether the checking process leaves a flushed store with a clean mark, or one as a crash does."""
    max_bytes: int | None = None
    """Of a cache."""

    @property
    def compacts(self) -> bool:
        """Whether there may be compactions in this round."""
        return self.compactions > 0 or self.compacts_at > 0 or self.background

    @classmethod
    def draw(cls, seed: int, round_number: int, keys: int) -> Plan:
        """The plan of a round."""
        rng = random.Random(f"plan {seed} {round_number}")
        lost = rng.choices(((), ("CONTROL",), ("INDEX",), ("CONTROL", "INDEX")), (84, 6, 6, 4))[0]
        syncing = rng.random() < 0.25
        nested = rng.random() < 0.08
        return cls(
            seed=seed,
            round=round_number,
            keys=keys,
            policy=rng.choices([policy for _, policy in _POLICIES], [weight for weight, _ in _POLICIES])[0],
            fresh=rng.choice((100, 400, 800)),
            deletions=rng.choice((0, 100, 200)),
            large=rng.choice((0, 5, 10, 40)),
            batches=rng.choice((0, 0, 20, 300)),
            durable=rng.choice((5, 20)) if syncing else 0,
            flushes=rng.choice((0, 5)) if syncing else 0,
            compactions=rng.choice((0, 0, 0, 3)),
            compacts_at=rng.choice((0, 0, 2, 20)),
            reopens=6 if rng.random() < 0.08 else 0,
            at_once=rng.random() < 0.08,
            delay_us=rng.randrange(10_000),
            lost=lost,
            recovery_kill_us=rng.randrange(100_000 if lost else 3_000) if nested else None,
            reader_meanwhile=rng.random() < 0.1,
            reader_first=rng.random() < 0.1,
            closes_cleanly=rng.random() < 0.3,
            clears=rng.choice((0, 0, 0, 0, 0, 0, 0, 3)),
            background=rng.random() < 0.3,
            snapshots=rng.choice((0, 0, 3)),
        )
