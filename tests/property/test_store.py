"""A store is a dict in the order of the last change, whatever happens to process and derived files."""

from __future__ import annotations

import array
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RULE_MARKER,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mmapio import FlushPolicy
from mmapkv import Conflict, KVStore, Snapshot
from mmapkv.compactor import Compactor
from mmapkv.pins import Pins
from tests.crash.moments import die_at
from tests.unit.mmapio.processes import in_child, killed_after
from tests.unit.mmapkv.colliding_keys import HashInverter, seed_of

SEGMENT = 64 << 10
# Few of them, so that most steps meet a key that was there before; and some that are long.
keys = st.integers(0, 40).map(lambda number: b"%d" % number * (1 + 200 * (number % 7 == 0)))
values = st.binary(max_size=30) | st.builds(
    lambda byte, size: bytes([byte]) * size,
    st.integers(0, 255),
    st.integers(0, 5000) | st.sampled_from([SEGMENT - 5000, SEGMENT, 2 * SEGMENT]),
)
changes = st.lists(st.tuples(keys, st.none() | values), max_size=25)
POLICIES = {"never": FlushPolicy.NEVER, "manual": FlushPolicy.MANUAL, "every 5": FlushPolicy.every_writes(5)}
# By name: a failure prints them.
policies = st.sampled_from(sorted(POLICIES))
lost = st.sampled_from([(), ("INDEX",), ("CONTROL",), ("CONTROL", "INDEX")])
LONG_SECONDS = 1e6
# About so many calls to the system does a compaction make, before and after each of which it can be killed.
MOMENTS_MAX = 90


class StoreAgainstDict(RuleBasedStateMachine):
    """Every rule does the same to a store and to a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="store-"))
        self.path = self.directory / "store"
        self.model: dict[bytes, bytes] = {}
        self.reader: KVStore | None = None
        self.may_clear = True
        # Each belongs to the handle that is named first, and ends with it.
        self.walks: list[tuple[KVStore, Iterator[object], list[tuple[bytes, bytes]]]] = []
        self.snapshots: list[tuple[KVStore, Snapshot, dict[bytes, bytes]]] = []

    @initialize(policy=policies)
    def begin(self, policy: str) -> None:
        self.open(policy)

    def open(self, policy: str) -> None:
        self.kv = KVStore.open(self.path, flush_policy=POLICIES[policy], segment_bytes=SEGMENT)

    def close(self) -> None:
        self.forget(self.kv)
        self.kv.close()

    def forget(self, kv: KVStore) -> None:
        self.walks = [each for each in self.walks if each[0] is not kv]
        self.snapshots = [each for each in self.snapshots if each[0] is not kv]

    def handle(self, reading: bool) -> KVStore:
        return self.reader if reading and self.reader is not None else self.kv

    def remember(self, key: bytes, value: bytes) -> None:
        self.model.pop(key, None)
        self.model[key] = value

    @rule(key=keys, value=values, durable=st.booleans())
    def put(self, key: bytes, value: bytes, durable: bool) -> None:
        self.kv.put(key, value, durable=durable)
        self.remember(key, value)

    @rule(batch=changes)
    def change_many(self, batch: list[tuple[bytes, bytes | None]]) -> None:
        self.change(self.kv, batch)
        self.remember_all(batch)

    def change(self, kv: KVStore, batch: list[tuple[bytes, bytes | None]]) -> None:
        for key, value in batch:
            if value is None:
                kv.pop(key, None)
            else:
                kv[key] = value

    def remember_all(self, batch: list[tuple[bytes, bytes | None]]) -> None:
        for key, value in batch:
            if value is None:
                self.model.pop(key, None)
            else:
                self.remember(key, value)

    @rule(batch=changes, how=st.sampled_from(["many", "batch", "transaction"]))
    def change_at_once(self, batch: list[tuple[bytes, bytes | None]], how: str) -> None:
        """The last of several changes of a key counts, and only that has a place in the order."""
        if how == "many":
            self.kv.put_many((key, value) for key, value in batch if value is not None)
            batch = [(key, value) for key, value in batch if value is not None]
        elif how == "batch":
            with self.kv.batch() as block:
                for key, value in batch:
                    block.delete(key) if value is None else block.put(key, value)
        else:
            with self.kv.transaction() as tx:
                for key, value in batch:
                    if value is None:
                        tx.pop(key, None)
                    else:
                        tx[key] = value
        last = {key: at for at, (key, _) in enumerate(batch)}
        self.remember_all([change for at, change in enumerate(batch) if last[change[0]] == at])

    @rule(batch=st.lists(keys, max_size=25))
    def delete_many(self, batch: list[bytes]) -> None:
        present = len(self.model)
        for key in batch:
            self.model.pop(key, None)
        assert self.kv.delete_many(batch) == present - len(self.model)

    @rule(batch=changes, key=keys)
    def a_transaction_that_conflicts(self, batch: list[tuple[bytes, bytes | None]], key: bytes) -> None:
        """It sees the store of its beginning, and leaves no trace."""
        changed = dict(self.model)
        try:
            with self.kv.transaction() as tx:
                self.change(self.kv, batch)
                self.kv[key] = b"theirs"
                assert dict(tx) == changed
                tx[key] = b"mine"
        except Conflict:
            self.remember_all([*batch, (key, b"theirs")])
            return
        raise AssertionError("a write of others was overwritten")

    @rule(key=keys, value=values)
    def add_and_replace(self, key: bytes, value: bytes) -> None:
        present = key in self.model
        assert self.kv.add(key, value) != present
        assert self.kv.replace(key, value + b"!")
        self.remember(key, value + b"!")

    @rule(key=keys, value=values)
    def append(self, key: bytes, value: bytes) -> None:
        grown = self.model.get(key, b"") + value
        if len(grown) < 8 * SEGMENT:
            assert self.kv.append(key, value) == len(grown)
            self.remember(key, grown)

    @rule(key=keys, value=values, right=st.booleans())
    def compare_and_set(self, key: bytes, value: bytes, right: bool) -> None:
        found = self.model.get(key)
        expected = found if right else (found or b"") + b"?"
        assert self.kv.compare_and_set(key, value, expected=expected) == right
        if right:
            self.remember(key, value)

    @rule(key=keys)
    def expire(self, key: bytes) -> None:
        """Counted until it is swept, and nowhere else to be seen."""
        self.kv.put(key, b"short", ttl=1e-9)
        while key in self.kv:
            pass
        self.model.pop(key, None)
        assert list(self.kv.items()) == list(self.model.items())
        assert self.kv.sweep() == 1

    @rule(key=keys, value=values, seconds=st.sampled_from([LONG_SECONDS, 2 * LONG_SECONDS]))
    def put_for_a_while(self, key: bytes, value: bytes, seconds: float) -> None:
        """Its time is not over before the test is, whoever opens, copies or compacts the store."""
        self.kv.put(key, value, ttl=seconds)
        self.remember(key, value)
        assert seconds / 2 < self.handle(reading=True).ttl(key) <= seconds  # type: ignore[operator]

    @rule(key=keys)
    def touch(self, key: bytes) -> None:
        """A change of its own, which has a place in the order."""
        assert self.kv.touch(key, LONG_SECONDS) == (key in self.model)
        if key in self.model:
            self.remember(key, self.model[key])

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        try:
            del self.kv[key]
        except KeyError:
            assert key not in self.model
        else:
            del self.model[key]

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        assert self.kv.get(key) == self.model.get(key)
        assert (key in self.kv) == (key in self.model)

    @rule(wanted=st.lists(keys, max_size=150), view=st.booleans())
    def get_many(self, wanted: list[bytes], view: bool) -> None:
        """The same keys again and again, in calls of more than one block."""
        expected = [self.model.get(key) for key in wanted]
        packed = b"".join(value for value in expected if value is not None)
        sizes = [-1 if value is None else len(value) for value in expected]
        for kv in (self.kv, self.reader):
            if kv is not None:
                buffer, lengths = bytearray(len(packed)), array.array("q", [0]) * len(wanted)
                assert kv.get_many(wanted, view=view) == expected
                assert kv.get_many_into(wanted, buffer, lengths) == len(packed)
                assert (buffer, lengths.tolist()) == (packed, sizes)

    @rule(key=keys)
    def read_in_every_way(self, key: bytes) -> None:
        value = self.model.get(key)
        for kv in (self.kv, self.reader):
            if kv is not None:
                buffer = bytearray(len(value or b""))
                versioned = kv.get_versioned(key)
                assert kv.get_into(key, buffer) == (None if value is None else len(value))
                assert buffer == (value or b"")
                assert kv.get_view(key) == value
                assert versioned is None if value is None else versioned and versioned[0] == value

    @rule(key=keys, value=values)
    def setdefault(self, key: bytes, value: bytes) -> None:
        assert self.kv.setdefault(key, value) == self.model.setdefault(key, value)

    @rule()
    def popitem(self) -> None:
        if self.model:
            key, value = self.kv.popitem()
            assert self.model.pop(key) == value
        else:
            try:
                self.kv.popitem()
            except KeyError:
                return
            raise AssertionError("an empty store gave a pair")

    @precondition(lambda self: len(self.model) < 5 or self.may_clear)
    @rule()
    def clear(self) -> None:
        """Not too often when there is much, or there would never be much."""
        written = self.kv.stats()["committed"]
        self.kv.clear()
        assert self.kv.stats()["committed"] == written + bool(self.model)
        self.model.clear()
        self.may_clear = False

    @rule(count=st.integers(8, 70), bucket=st.integers(0, 511), top=st.integers(0, 2**24 - 1))
    def colliding_keys(self, count: int, bucket: int, top: int) -> None:
        """Chains, splits, and beyond 63 a new seed."""
        for key in HashInverter(seed_of(self.path)).twins(top, 24, bucket, count):
            self.kv[key] = b"twin"
            self.remember(key, b"twin")

    @rule()
    def flush(self) -> None:
        self.kv.flush()
        assert self.kv.stats()["durable"] == self.kv.stats()["committed"]

    @rule()
    def compact(self) -> None:
        """Nobody sees a difference, whatever walks and snapshots are about; what was cleared can go now."""
        self.kv.compact()
        self.may_clear = True

    @rule(steps=st.integers(1, 5))
    def compact_by_steps(self, steps: int) -> None:
        """As a thread does that was woken."""
        compactor = Compactor(self.kv, 0.0)
        while steps and compactor._work():
            steps -= 1

    @rule()
    def compact_in_the_background(self) -> None:
        """While what follows is done."""
        self.kv.compact(background=True)
        self.may_clear = True

    @rule(policy=policies, limit=st.integers(1, MOMENTS_MAX))
    def a_killed_compaction(self, policy: str, limit: int) -> None:
        """With a reader or without, and with what that reader looks at."""
        self.close()

        def write() -> None:
            self.open(policy)
            die_at(limit)
            self.kv.compact()

        killed_after(write)
        self.open(policy)

    @precondition(lambda self: len(self.walks) < 3)
    @rule(reading=st.booleans())
    def begin_a_walk(self, reading: bool) -> None:
        kv = self.handle(reading)
        self.walks.append((kv, iter(kv.items()), list(self.model.items())))

    @precondition(lambda self: len(self.walks) < 3)
    @rule(reading=st.booleans(), prefix=st.none() | keys, reverse=st.booleans())
    def begin_a_scan(self, reading: bool, prefix: bytes | None, reverse: bool) -> None:
        kv = self.handle(reading)
        found = sorted(pair for pair in self.model.items() if pair[0].startswith(prefix or b""))
        self.walks.append((kv, kv.scan(prefix, reverse=reverse), found[::-1] if reverse else found))

    @precondition(lambda self: self.walks)
    @rule(count=st.integers(1, 30))
    def go_on_with_a_walk(self, count: int) -> None:
        """It sees the store of its beginning, in order, whatever was done since."""
        kv, walk, left = self.walks.pop(0)
        for _ in range(count):
            found = next(walk, None)
            if found is None:
                assert left == []
                return
            assert found == left.pop(0)
        self.walks.append((kv, walk, left))

    @precondition(lambda self: len(self.snapshots) < 3)
    @rule(reading=st.booleans())
    def take_a_snapshot(self, reading: bool) -> None:
        kv = self.handle(reading)
        self.snapshots.append((kv, kv.snapshot(), dict(self.model)))

    @precondition(lambda self: self.snapshots)
    @rule(again=st.booleans())
    def look_into_a_snapshot(self, again: bool) -> None:
        """It is what it was, and stays so."""
        kv, snapshot, content = self.snapshots.pop(0)
        assert list(snapshot.items()) == list(content.items())
        assert list(snapshot.scan()) == sorted(content.items())
        assert len(snapshot) == len(content)
        for key in {*content, *self.model}:
            assert snapshot.get(key) == content.get(key)
        if again:
            self.snapshots.append((kv, snapshot, content))
        else:
            snapshot.close()

    @rule(full=st.booleans())
    def verify(self, full: bool) -> None:
        for kv in (self.kv, self.reader):
            if kv is not None:
                assert kv.verify(full=full).damages == ()

    @precondition(lambda self: self.reader is None)
    @rule(policy=policies, names=lost)
    def reopen(self, policy: str, names: tuple[str, ...]) -> None:
        self.close()
        for name in names:
            (self.path / name).unlink()
        self.open(policy)

    @rule(policy=policies)
    def reopen_below_a_reader(self, policy: str) -> None:
        self.close()
        self.open(policy)

    @rule(policy=policies, batch=changes, names=lost)
    def a_killed_writer(
        self, policy: str, batch: list[tuple[bytes, bytes | None]], names: tuple[str, ...]
    ) -> None:
        """A reader that is there goes on, but not with files that somebody takes away."""
        self.close()
        if self.reader is not None:
            names = ()
        every = {b"%d" % number: b"batch" for number in range(0, 41, 3)}

        def write() -> KVStore:
            self.open(policy)
            self.change(self.kv, batch)
            self.kv.put_many(every)
            return self.kv

        killed_after(write)
        self.remember_all([*batch, *every.items()])
        for name in names:
            (self.path / name).unlink()
        self.open(policy)

    @precondition(lambda self: self.reader is None)
    @rule(policy=policies)
    def copy(self, policy: str) -> None:
        self.close()
        shutil.copytree(self.path, self.directory / "copy")
        shutil.rmtree(self.path)
        (self.directory / "copy").rename(self.path)
        self.open(policy)

    @rule()
    def open_a_reader(self) -> None:
        self.close_the_reader()
        self.reader = KVStore.open(self.path, "r")

    @rule()
    def close_the_reader(self) -> None:
        if self.reader is not None:
            self.forget(self.reader)
            self.reader.close()
            self.reader = None

    @rule()
    def look_from_another_process(self) -> None:
        def look() -> list[tuple[bytes, bytes]]:
            with KVStore.open(self.path, "r") as kv:
                return list(kv.items())

        assert in_child(look) == list(self.model.items())

    @invariant()
    def the_store_is_the_dict(self) -> None:
        if not hasattr(self, "kv"):
            return
        for kv in (self.kv, self.reader):
            if kv is not None:
                assert len(kv) == len(self.model)
                assert list(kv.items()) == list(self.model.items())
                for key, value in self.model.items():
                    assert kv[key] == value
                assert b"never" not in kv

    def teardown(self) -> None:
        if hasattr(self, "kv"):
            self.close()
        self.close_the_reader()
        shutil.rmtree(self.directory)


TestStoreAgainstDict = StoreAgainstDict.TestCase


def test_a_planted_defect_is_caught() -> None:
    """The control: a machine whose store forgets a key must fail, or the machine above proves nothing."""

    class Forgetful(StoreAgainstDict):
        @rule(key=keys)
        def delete(self, key: bytes) -> None:
            self.model.pop(next(iter(self.model), key), None)

    try:
        run_state_machine_as_test(Forgetful, settings=settings.get_profile("control"))
    except AssertionError:
        return
    raise AssertionError("a deletion that did nothing was not noticed")


def test_snapshots_that_compaction_does_not_know_of_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other control: a compaction that goes by what is current now, whoever looks at the past.

    Of all rules only those that it takes, for there are many.
    """
    monkeypatch.setattr(Pins, "oldest", lambda pins, index: index.progress()[0])
    needed = {"put", "change_many", "compact", "take_a_snapshot", "look_into_a_snapshot", "close_the_reader"}
    others = {name for name, what in vars(StoreAgainstDict).items() if hasattr(what, RULE_MARKER)} - needed
    careless = type("Careless", (StoreAgainstDict,), dict.fromkeys(others))
    with pytest.raises((AssertionError, OSError)):
        run_state_machine_as_test(careless, settings=settings.get_profile("control"))
