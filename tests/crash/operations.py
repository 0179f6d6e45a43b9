"""The operations of a round, a function of its plan. The writer performs them; the parent knows them too."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple
from zlib import crc32

from tests.crash.plan import WHOLE, Plan

VALUE_SIZE_MAX = 64 << 10
LOADED = 0
"""The round of the values that a store is loaded with; those of the storm start at 1."""
TTL_SECONDS = 1e6
"""How long values live of which one in `TTL_EVERY` has an end: longer than any storm."""
TTL_EVERY = 32
_BATCH_SIZES = (1, 2, 3, 10, 100)

# round, number, CRC-32 of the key: no two writes have the same value, and no key another one's.
_TAG = struct.Struct("<QQL")
_NOISE = random.Random("noise").randbytes(2 * VALUE_SIZE_MAX)


class Kind(IntEnum):
    """What an operation is. Those that write have the numbers of the format."""

    PUT = 1
    DELETE = 2
    CLEAR = 3
    FLUSH = 4
    REOPEN = 5
    BATCH = 6
    COMPACT = 7
    TRANSACTION = 8
    SNAPSHOT = 9


class Version(NamedTuple):
    """Which write a value comes from, and its size in bytes."""

    round: int
    number: int
    size: int


class Operation(NamedTuple):
    """One call: its key and version mean nothing for a flush or clear, nor for a batch of others."""

    kind: Kind
    key: bytes
    version: Version
    durable: bool
    parts: tuple[Operation, ...] = ()
    """Of a batch or transaction: puts and deletions, of which several may be of one key."""

    def writes(self) -> list[Operation]:
        """The puts, deletions and clears that count: of several the last of each key, in their order.

        In a transaction a deletion of what it has deleted already does nothing.
        """
        if self.kind not in (Kind.BATCH, Kind.TRANSACTION):
            return [self] if self.kind in (Kind.PUT, Kind.DELETE, Kind.CLEAR) else []
        last: dict[bytes, int] = {}
        for at, part in enumerate(self.parts):
            before = self.parts[last[part.key]].kind if part.key in last else Kind.PUT
            if self.kind is Kind.BATCH or part.kind is Kind.PUT or before is Kind.PUT:
                last[part.key] = at
        return [self.parts[at] for at in sorted(last.values())]

    @property
    def last_number(self) -> int:
        """The highest number of its writes."""
        return self.parts[-1].version.number if self.parts else self.version.number

    @property
    def ttl(self) -> float | None:
        """How long what a put writes lives, in seconds."""
        return TTL_SECONDS if self.version.number % TTL_EVERY == 0 else None


def value_of(key: bytes, version: Version) -> bytes:
    """The bytes that were written."""
    start = (version.round * 7919 + version.number * 104729) % VALUE_SIZE_MAX
    tag = _TAG.pack(version.round, version.number, crc32(key))
    return (tag + _NOISE[start : start + version.size])[: version.size]


def version_in(key: bytes, value: bytes) -> Version | None:
    """Which write of a key a value comes from; None if it is too short to tell, or comes from none."""
    if len(value) < _TAG.size:
        return None
    round_number, number, _ = _TAG.unpack_from(value)
    version = Version(round_number, number, len(value))
    return version if value == value_of(key, version) else None


def belongs(key: bytes, value: bytes) -> bool:
    """Whether a value can be one of this key. Of those too short to tell, any can."""
    return len(value) < _TAG.size or version_in(key, value) is not None


def loaded_key(number: int) -> bytes:
    """A key that the store is loaded with."""
    return b"key-%08d" % number


def loaded_version(number: int) -> Version:
    """What it is loaded with."""
    return Version(LOADED, number, 60 + number % 80)


def fresh_key(round_number: int, number: int) -> bytes:
    """A new key of a round; a few are long."""
    key = b"new-%d-%d" % (round_number, number)
    if number % 256 == 255:
        return key.ljust(65_535 if number % 2048 == 2047 else 1_000, b".")
    return key


def operations(plan: Plan) -> Iterator[Operation]:
    """The operations of a round in their order, without end."""
    singles = _singles(plan)
    draw = random.Random(f"batches {plan.seed} {plan.round}")
    compacts = random.Random(f"compactions {plan.seed} {plan.round}")
    for number, operation in enumerate(singles, start=1):
        if number == plan.compacts_at or compacts.randrange(WHOLE) < plan.compactions:
            yield Operation(Kind.COMPACT, b"", operation.version._replace(size=0), durable=False)
        if compacts.randrange(WHOLE) < plan.snapshots:
            yield Operation(Kind.SNAPSHOT, b"", operation.version._replace(size=0), durable=False)
        if draw.randrange(WHOLE) >= plan.batches:
            yield operation
            continue
        singly = itertools.islice(singles, draw.choice(_BATCH_SIZES))
        parts = tuple(part for part in singly if part.kind in (Kind.PUT, Kind.DELETE))
        durable = draw.randrange(WHOLE) < plan.durable
        kind = Kind.TRANSACTION if draw.randrange(4) == 0 else Kind.BATCH
        yield Operation(kind, b"", operation.version, durable, parts)


def _singles(plan: Plan) -> Iterator[Operation]:
    draw = random.Random(f"operations {plan.seed} {plan.round}").getrandbits
    fresh = 0
    flush_below = plan.flushes
    reopen_below = flush_below + plan.reopens
    delete_below = reopen_below + plan.deletions
    fresh_below = delete_below + plan.fresh
    for number in itertools.count(1):
        word = draw(96)
        choice = word % WHOLE
        word >>= 10
        if choice < reopen_below:
            kind = Kind.FLUSH if choice < flush_below else Kind.REOPEN
            yield Operation(kind, b"", Version(plan.round, number, 0), durable=False)
            continue
        if choice >= WHOLE - plan.clears:
            yield Operation(Kind.CLEAR, b"", Version(plan.round, number, 0), durable=False)
            continue
        # A quarter of what is not new goes to keys of this very round.
        recent = fresh > 0 and word & 3 == 0
        word >>= 2
        target = word & 0xFFFFFFFF
        word >>= 32
        if delete_below <= choice < fresh_below:
            key = fresh_key(plan.round, fresh)
            fresh += 1
        elif recent:
            key = fresh_key(plan.round, target % fresh)
        else:
            key = loaded_key(target % plan.keys)
        if choice < delete_below:
            yield Operation(Kind.DELETE, key, Version(plan.round, number, 0), durable=False)
            continue
        durable = word % WHOLE < plan.durable
        size = _size(word >> 10, plan.large)
        yield Operation(Kind.PUT, key, Version(plan.round, number, size), durable)


def _size(word: int, large: int) -> int:
    # Of the 42 bits that are left, ten choose the kind of size and the others the size.
    choice = word % WHOLE
    word >>= 10
    if choice < large:
        return word % (VALUE_SIZE_MAX + 1)
    if choice < large + 20:
        return word % 4096
    if choice < large + 60:
        return word % _TAG.size
    return 60 + word % 80
