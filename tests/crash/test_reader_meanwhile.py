"""Readers that come while a writer writes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mmapio import FlushPolicy
from mmapkv import KVStore
from tests.crash.child import Child

OPENINGS = 500


def test_a_reader_can_come_at_any_moment(tmp_path: Path) -> None:
    # What a reader finds while it opens the store is older than what it finds a moment later. Taken together
    # the two look like a damaged log, and it would try to recover one that a living writer writes. Or it
    # lists a segment that has another name by the time it is looked at.
    path = tmp_path / "store"
    KVStore.open(path, "c", flush_policy=FlushPolicy.MANUAL, segment_bytes=64 << 10).close()

    def body(started: Callable[[], None]) -> None:
        store = KVStore.open(path, "w", flush_policy=FlushPolicy.every_writes(2))
        number = 0
        parent = os.getppid()
        while os.getppid() == parent:
            store[b"%d" % (number % 100)] = bytes(number * 37 % 5000)
            number += 1
            if number == 100:
                started()

    writer = Child(body)
    writer.wait_started()
    failures: Counter[str] = Counter()
    for _ in range(OPENINGS):
        try:
            with KVStore.open(path, "r") as reader:
                failures["wrong count"] += reader.stats()["keys"] != 100
        except OSError as error:
            failures[f"{type(error).__name__}: {error.strerror}"] += 1
    assert writer.kill() == ""
    assert +failures == {}
