"""What each writer of a crowd does: a function of (seed, round, writer), so that its parent knows it too."""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import Enum
from itertools import count
from typing import NamedTuple

from mmapkv import KVStore
from mmapkv.transaction import Transaction

WRITERS = 3
COUNTERS = 3
OWN_KEYS = 40
SEGMENT_BYTES = 64 << 10
JOURNAL_BYTES_MAX = 1000
ATTEMPTS = 1_000_000
# Who clears the store now and then, in a round: nobody, one or all. What the others had written by then is
# not to be told; but where one clears, what they had before the round is gone.
_CLEARING: tuple[tuple[int, ...], ...] = (*[()] * 5, (0,), (1,), (2,), tuple(range(WRITERS)))
DEBIT, CREDIT = b"common/debit", b"common/credit"


class Kind(Enum):
    """What an operation is."""

    PUT = "put"
    DELETE = "delete"
    BATCH = "batch"
    JOURNAL = "journal"
    COUNT = "count"
    MOVE = "move"
    FLUSH = "flush"
    REOPEN = "reopen"
    COMPACT = "compact"
    REBUILD = "rebuild"
    CLEAR = "clear"


_WEIGHTS = {
    Kind.PUT: 400,
    Kind.DELETE: 80,
    Kind.BATCH: 60,
    Kind.JOURNAL: 60,
    Kind.COUNT: 200,
    Kind.MOVE: 60,
    Kind.FLUSH: 5,
    Kind.REOPEN: 8,
    Kind.COMPACT: 3,
    Kind.REBUILD: 2,
    Kind.CLEAR: 12,
}


class Operation(NamedTuple):
    """One call. `changes` are of keys that no other writer has: new values, or None for a deletion."""

    kind: Kind
    changes: dict[bytes, bytes | None]
    target: bytes = b""
    amount: int = 0


def counter(number: int) -> bytes:
    """A key to which all writers add."""
    return b"common/counter-%d" % number


def own_key(writer: int, number: int) -> bytes:
    """A key that one writer changes."""
    return b"w%d/%d" % (writer, number)


def operations(seed: int, round_number: int, writer: int) -> Iterator[Operation]:
    """The operations of a writer in their order, without end."""
    draw = random.Random(f"crowd {seed} {round_number} {writer}")
    kinds, weights = list(_WEIGHTS), list(_WEIGHTS.values())
    if writer not in random.Random(f"clears {seed} {round_number}").choice(_CLEARING):
        weights[kinds.index(Kind.CLEAR)] = 0
    journal = own_key(writer, OWN_KEYS)
    for number in count(1):
        (kind,) = draw.choices(kinds, weights)
        changes: dict[bytes, bytes | None] = {}
        target, amount = b"", 0
        if kind is Kind.PUT:
            key = own_key(writer, draw.randrange(OWN_KEYS))
            changes[key] = _value(draw, round_number, number)
        elif kind is Kind.DELETE:
            changes[own_key(writer, draw.randrange(OWN_KEYS))] = None
        elif kind is Kind.BATCH:
            for part in range(draw.choice((1, 2, 20))):
                # New keys, so that the index splits.
                key = own_key(writer, draw.choice((draw.randrange(OWN_KEYS), 1000 + draw.randrange(3000))))
                changes[key] = None if part % 4 == 3 else _value(draw, round_number, number)
        elif kind is Kind.JOURNAL:
            changes[journal] = b"%d," % number
        elif kind is Kind.COUNT:
            target, amount = counter(draw.randrange(COUNTERS)), draw.randrange(1, 100)
        elif kind is Kind.MOVE:
            amount = draw.randrange(1, 100)
        yield Operation(kind, changes, target, amount)


def _value(draw: random.Random, round_number: int, number: int) -> bytes:
    # Now and then one that fills half of a segment, or is larger than one.
    size = draw.choice((30_000, 90_000)) if draw.random() < 0.01 else draw.randrange(200)
    return (b"%d/%d/" % (round_number, number)).ljust(size, b"%d" % (number % 10))


def perform(store: KVStore, operation: Operation) -> None:
    """Carry an operation out. All but REOPEN, which is the caller's."""
    kind = operation.kind
    if kind is Kind.BATCH:
        with store.batch() as batch:
            for key, value in operation.changes.items():
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value)
    elif kind is Kind.COUNT:
        store.incr(operation.target, operation.amount)
    elif kind is Kind.MOVE:
        store.retry(lambda transaction: _move(transaction, operation.amount), attempts=ATTEMPTS)
    elif kind is Kind.FLUSH:
        store.flush()
    elif kind is Kind.COMPACT:
        store.compact()
    elif kind is Kind.CLEAR:
        store.clear()
    elif kind is Kind.REBUILD:
        _, index = store._parts()
        assert index is not None
        store._rebuild_index(index)
    else:
        for key, value in operation.changes.items():
            if kind is Kind.JOURNAL:
                assert value is not None
                if store.append(key, value) > JOURNAL_BYTES_MAX:
                    del store[key]
            elif value is None:
                store.pop(key, None)
            else:
                store[key] = value


def _move(transaction: Transaction, amount: int) -> None:
    transaction[DEBIT] = b"%d" % (int(transaction.get(DEBIT, b"0")) - amount)
    transaction[CREDIT] = b"%d" % (int(transaction.get(CREDIT, b"0")) + amount)
