"""A cache holds what a dict holds, but for what it has evicted, which is never what was written last."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mmapio import FlushPolicy
from mmapkv import KVStore, Snapshot
from tests.unit.mmapio.processes import killed_after

MAX = 256 << 10
# What was written last is not evicted, whatever was read: so much of it at least.
SAFE = MAX // 16
# What the format adds to key and value.
OVERHEAD_LEAST, OVERHEAD = 24, 64

keys = st.integers(0, 200).map(b"%d".__mod__)
values = st.builds(
    lambda byte, size: bytes([byte]) * size, st.integers(0, 255), st.sampled_from([0, 30, 1000, 5000])
)
pairs = st.lists(st.tuples(keys, values), min_size=1, max_size=60)
# One that is larger than a cache may be makes way only with the next put.
batches = st.lists(st.tuples(keys, values), min_size=1, max_size=6)
policies = st.sampled_from(["clock", "fifo"])
lost = st.sampled_from([(), ("INDEX",), ("CONTROL",), ("VISITED",)])


class CacheAgainstDict(RuleBasedStateMachine):
    """Every rule does the same to a cache and to a dict, in which there is the newest value of each key."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="cache-"))
        self.path = self.directory / "cache"
        self.model: dict[bytes, bytes] = {}
        # Written by this handle: each begins with leave to spare as much again.
        self.lately: set[bytes] = set()
        self.snapshots: list[tuple[Snapshot, list[tuple[bytes, bytes]]]] = []

    @initialize(policy=policies)
    def begin(self, policy: str) -> None:
        self.open(policy)

    def open(self, policy: str) -> None:
        self.lately.clear()
        self.kv = KVStore.open(
            self.path,
            flush_policy=FlushPolicy.MANUAL,
            max_bytes=MAX,
            eviction="fifo" if policy == "fifo" else "clock",
        )

    def close(self) -> None:
        self.snapshots.clear()
        self.kv.close()

    def remember(self, key: bytes, value: bytes) -> None:
        self.model.pop(key, None)
        self.model[key] = value
        self.lately.add(key)

    @rule(batch=pairs)
    def put(self, batch: list[tuple[bytes, bytes]]) -> None:
        for key, value in batch:
            self.kv[key] = value
            self.remember(key, value)

    @rule(batch=batches)
    def put_at_once(self, batch: list[tuple[bytes, bytes]]) -> None:
        self.kv.put_many(batch)
        for key, value in batch:
            self.remember(key, value)

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        assert self.kv.pop(key, None) in (self.model.pop(key, None), None)

    @rule(key=keys, value=values)
    def change_in_a_transaction(self, key: bytes, value: bytes) -> None:
        with self.kv.transaction() as tx:
            assert tx.get(key) in (self.model.get(key), None)
            tx[key] = value
        self.remember(key, value)

    @rule(key=keys, value=values)
    def put_for_no_time(self, key: bytes, value: bytes) -> None:
        """What has expired goes before anything else does, and is not to be seen before."""
        self.kv.put(key, value, ttl=1e-9)
        while key in self.kv:
            pass
        self.model.pop(key, None)

    @rule(wanted=st.lists(keys, max_size=60))
    def read(self, wanted: list[bytes]) -> None:
        """Which has an effect here: what was read is spared."""
        for key, value in zip(wanted, self.kv.get_many(wanted), strict=True):
            assert value in (self.model.get(key), None)

    @rule()
    def clear(self) -> None:
        self.kv.clear()
        self.model.clear()

    @rule()
    def compact(self) -> None:
        self.kv.compact()

    @precondition(lambda self: len(self.snapshots) < 2)
    @rule()
    def take_a_snapshot(self) -> None:
        snapshot = self.kv.snapshot()
        self.snapshots.append((snapshot, list(self.kv.items())))

    @precondition(lambda self: self.snapshots)
    @rule()
    def look_into_a_snapshot(self) -> None:
        """What was evicted since is in it."""
        snapshot, content = self.snapshots.pop(0)
        assert list(snapshot.items()) == content
        assert {key: snapshot.get(key) for key, _ in content} == dict(content)
        snapshot.close()

    @rule(policy=policies, names=lost)
    def reopen(self, policy: str, names: tuple[str, ...]) -> None:
        self.close()
        for name in names:
            (self.path / name).unlink(missing_ok=True)
        self.open(policy)

    @rule(policy=policies, batch=pairs)
    def a_killed_writer(self, policy: str, batch: list[tuple[bytes, bytes]]) -> None:
        self.close()

        def write() -> KVStore:
            self.open(policy)
            for key, value in batch:
                self.kv[key] = value
            return self.kv

        killed_after(write)
        for key, value in batch:
            self.remember(key, value)
        self.open(policy)

    @rule()
    def verify(self) -> None:
        assert self.kv.verify().damages == ()

    @invariant()
    def the_cache_is_a_part_of_the_dict(self) -> None:
        if not hasattr(self, "kv"):
            return
        found = dict(self.kv.items())
        # Walks and counts are none that spare anything; so look-ups are of those that are left out alone.
        missing = [key for key in self.model if key not in found]
        assert all(self.kv.get(key) is None for key in missing)
        assert {key: self.model.get(key) for key in found} == found
        assert sum(len(key) + len(value) + OVERHEAD_LEAST for key, value in found.items()) <= MAX
        room = SAFE
        for key, value in reversed(self.model.items()):
            room -= len(key) + len(value) + OVERHEAD
            if room < 0:
                break
            assert key in found or key not in self.lately

    def teardown(self) -> None:
        if hasattr(self, "kv"):
            self.close()
        shutil.rmtree(self.directory)


TestCacheAgainstDict = CacheAgainstDict.TestCase


def test_a_cache_that_forgets_what_is_new_is_caught() -> None:
    """The control: what the machine lets go it must not let go at any time."""

    class Forgetful(CacheAgainstDict):
        @rule(key=keys, value=values)
        def change_in_a_transaction(self, key: bytes, value: bytes) -> None:
            self.kv.pop(key, None)
            self.remember(key, value)

    try:
        run_state_machine_as_test(Forgetful, settings=settings.get_profile("control"))
    except AssertionError:
        return
    raise AssertionError("an eviction of what was written last was not noticed")
