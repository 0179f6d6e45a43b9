"""The process that is killed."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mmapkv import KVStore, Snapshot
from mmapkv.transaction import Transaction
from tests.crash import defects
from tests.crash.ack_page import ACKNOWLEDGED, MISSES, NUMBER, SUBMITTED, AckPage
from tests.crash.eager import compact_eagerly
from tests.crash.operations import Kind, Operation, operations, value_of
from tests.crash.plan import Plan

# How long the planted defect of acknowledging too early waits to be caught at it.
EARLY_SECONDS = 0.0002
# So often the writer looks whether its parent still lives: nobody else would ever stop it.
LOOK_EVERY = 256
# Of a snapshot so many pairs are looked at.
HELD_PAIRS = 50


def write(
    path: Path,
    plan: Plan,
    prepared: Sequence[Operation],
    page: AckPage,
    defect: str | None,
    started: Callable[[], None],
) -> None:
    """Carry out the operations of a plan until killed, or left alone; acknowledge each after it has returned.

    The first ones were `prepared`, so that the kill meets a writer that writes, not one that makes up values.
    """
    acknowledges_early = defect == defects.EARLY_ACK
    defects.plant_in_writer(defect)
    compact_eagerly(page.step)
    values = [_values_of(operation) for operation in prepared]
    rest = itertools.islice(operations(plan), len(prepared), None)
    more = ((operation, _values_of(operation)) for operation in rest)
    store = _opened(path, plan)
    words = page.words
    misses = 0
    held: _Held | None = None
    parent = os.getppid()
    work = itertools.chain(zip(prepared, values, strict=True), more)
    for number, (operation, written) in enumerate(work, start=1):
        kind, key, _, durable, parts = operation
        words[NUMBER] = operation.last_number
        words[SUBMITTED] = number
        if acknowledges_early:
            words[ACKNOWLEDGED] = number
            time.sleep(EARLY_SECONDS)
        if kind is Kind.PUT:
            if durable or operation.ttl is not None:
                store.put(key, written[0], durable=durable, ttl=operation.ttl)
            else:
                store[key] = written[0]
        elif kind is Kind.DELETE:
            try:
                del store[key]
            except KeyError:
                misses += 1
                words[MISSES] = misses
        elif kind is Kind.BATCH:
            with store.batch(durable=durable) as batch:
                for part, value in zip(parts, written, strict=True):
                    if part.kind is Kind.PUT:
                        batch[part.key] = value
                    else:
                        del batch[part.key]
        elif kind is Kind.CLEAR:
            store.clear()
        elif kind is Kind.TRANSACTION:
            # In a cache, way is made by writing once more what was read.
            store.retry(partial(_change, parts=parts, values=written), durable=durable)
        elif kind is Kind.FLUSH:
            store.flush()
        elif kind is Kind.COMPACT:
            store.compact()
        elif kind is Kind.SNAPSHOT:
            if held is not None:
                held.check()
            held = _Held(store)
        else:
            held = None
            store.close()
            store = _opened(path, plan)
        words[ACKNOWLEDGED] = number
        if number == 1:
            started()
        if number % LOOK_EVERY == 0 and os.getppid() != parent:
            return


def _change(transaction: Transaction, parts: Sequence[Operation], values: Sequence[bytes]) -> None:
    for part, value in zip(parts, values, strict=True):
        if part.kind is Kind.PUT:
            transaction[part.key] = value
        else:
            transaction.pop(part.key, None)


def _values_of(operation: Operation) -> list[bytes]:
    # One for each part of a batch or transaction, or the one of a put.
    parts = operation.parts if operation.kind in (Kind.BATCH, Kind.TRANSACTION) else (operation,)
    return [value_of(part.key, part.version) for part in parts]


def _opened(path: Path, plan: Plan) -> KVStore:
    # In the background only where the check expects that something was removed.
    return KVStore.open(
        path, "w", flush_policy=plan.policy, compaction=plan.background, max_bytes=plan.max_bytes
    )


class _Held:
    # A snapshot of the writer's own, and some of what it held when it was taken.

    def __init__(self, store: KVStore) -> None:
        self.snapshot: Snapshot = store.snapshot()
        self.then = self.look()

    def look(self) -> tuple[int, list[tuple[bytes, bytes]], list[bytes | None]]:
        walked = list(itertools.islice(self.snapshot.items(), HELD_PAIRS))
        return len(self.snapshot), walked, [self.snapshot.get(key) for key, _ in walked]

    def check(self) -> None:
        if self.look() != self.then:
            raise AssertionError("a snapshot of the writer has changed")
        self.snapshot.close()
