"""Scans are ranges of a sorted dict as of their beginning, and changes make a copy of the store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
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
from sortedcontainers import SortedDict

from mmapio import FlushPolicy
from mmapkv import Changes, KVStore
from tests.unit.mmapio.processes import in_child

# Short, and of letters beside the end of the alphabet, so that prefixes and bounds meet keys.
letters = st.sampled_from([b"\x00", b"a", b"b", b"\xfe", b"\xff"])
keys = st.lists(letters, min_size=1, max_size=3).map(b"".join)
limits = st.none() | st.lists(letters, max_size=3).map(b"".join)
batches = st.lists(st.tuples(keys, st.none() | st.binary(max_size=3)), max_size=40)
ranges = st.tuples(limits, limits, limits, st.booleans())

Range = tuple[bytes | None, bytes | None, bytes | None, bool]


def expected(model: SortedDict, wanted: Range) -> list[tuple[bytes, bytes]]:
    prefix, start, stop, reverse = wanted
    found = [
        (key, value)
        for key, value in model.items()
        if key.startswith(prefix or b"") and (start is None or key >= start) and (stop is None or key < stop)
    ]
    return found[::-1] if reverse else found


class ScansAgainstSortedDict(RuleBasedStateMachine):
    """Every rule does the same to a store and to a sorted dict."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="store-"))
        self.model = SortedDict()
        self.scans: list[tuple[KVStore, Iterator[object], Sequence[object]]] = []
        self.copy: dict[bytes, bytes] = {}
        self.since = 0

    @initialize()
    def begin(self) -> None:
        self.kv = self.opened()
        self.reader = self.opened("r")
        self.changes: Changes | None = None

    def opened(self, mode: str = "c") -> KVStore:
        return KVStore.open(
            self.directory / "kv", mode, flush_policy=FlushPolicy.NEVER, segment_bytes=64 << 10
        )

    def handle(self, own: bool) -> KVStore:
        return self.kv if own else self.reader

    @rule(batch=batches)
    def change(self, batch: list[tuple[bytes, bytes | None]]) -> None:
        self.apply(self.kv, batch)
        self.remember(batch)

    @rule(batch=batches)
    def another_process_writes(self, batch: list[tuple[bytes, bytes | None]]) -> None:
        self.kv.close()
        self.scans = [each for each in self.scans if each[0] is not self.kv]

        def write() -> None:
            with self.opened() as kv:
                self.apply(kv, batch)

        in_child(write)
        self.kv = self.opened()
        self.remember(batch)

    def apply(self, kv: KVStore, batch: list[tuple[bytes, bytes | None]]) -> None:
        for key, value in batch:
            if value is None:
                kv.pop(key, None)
            else:
                kv[key] = value

    def remember(self, batch: list[tuple[bytes, bytes | None]]) -> None:
        for key, value in batch:
            if value is None:
                self.model.pop(key, None)
            else:
                self.model[key] = value

    @rule()
    def clear(self) -> None:
        self.kv.clear()
        self.model.clear()

    @rule(own=st.booleans(), wanted=ranges)
    def scan(self, own: bool, wanted: Range) -> None:
        prefix, start, stop, reverse = wanted
        found = self.handle(own).scan(prefix, start=start, stop=stop, reverse=reverse)
        assert list(found) == expected(self.model, wanted)

    @precondition(lambda self: len(self.scans) < 4)
    @rule(own=st.booleans(), wanted=ranges, values=st.booleans())
    def begin_a_scan(self, own: bool, wanted: Range, values: bool) -> None:
        prefix, start, stop, reverse = wanted
        kv = self.handle(own)
        pairs = expected(self.model, wanted)
        if values:
            self.scans.append((kv, kv.scan(prefix, start=start, stop=stop, reverse=reverse), pairs))
        else:
            scan = kv.scan(prefix, start=start, stop=stop, reverse=reverse, values=False)
            self.scans.append((kv, scan, [key for key, _ in pairs]))

    @precondition(lambda self: self.scans)
    @rule(count=st.integers(1, 30))
    def go_on_with_a_scan(self, count: int) -> None:
        """It sees the store of its beginning, whatever was done since."""
        kv, scan, left = self.scans.pop(0)
        assert list(islice(scan, count)) == left[:count]
        if count <= len(left):
            self.scans.append((kv, scan, left[count:]))

    @precondition(lambda self: self.scans)
    @rule()
    def drop_a_scan(self) -> None:
        self.scans.pop()

    @rule(own=st.booleans(), afresh=st.booleans())
    def bring_the_copy_up(self, own: bool, afresh: bool) -> None:
        """By a follower that goes on, or by a new one from where the last stopped."""
        if afresh or self.changes is None:
            self.changes = self.reader.changes(self.since, follow=True, timeout=0)
        for change in self.handle(own).changes(self.since) if own else self.changes:
            if change.kind == "clear":
                assert change.below == change.seq
                self.copy.clear()
            elif change.value is None:
                del self.copy[change.key]
            else:
                self.copy[change.key] = change.value
            self.since = change.seq + 1
        if own:
            self.changes = None
        assert self.copy == self.model

    @invariant()
    def the_ends_are_found(self) -> None:
        if not hasattr(self, "kv"):
            return
        for kv in (self.kv, self.reader):
            first = next(kv.scan(values=False), None)
            last = next(kv.scan(reverse=True), None)
            assert first == (self.model.peekitem(0)[0] if self.model else None)
            assert last == (self.model.peekitem() if self.model else None)

    def teardown(self) -> None:
        self.scans.clear()
        if hasattr(self, "kv"):
            self.kv.close()
            self.reader.close()
        shutil.rmtree(self.directory)


TestScansAgainstSortedDict = ScansAgainstSortedDict.TestCase


def test_a_planted_defect_is_caught() -> None:
    """The control: a machine whose model forgets deletions must fail, or the one above proves nothing."""

    class Forgetful(ScansAgainstSortedDict):
        def remember(self, batch: list[tuple[bytes, bytes | None]]) -> None:
            super().remember([each for each in batch if each[1] is not None])

    try:
        run_state_machine_as_test(Forgetful, settings=settings.get_profile("control"))
    except AssertionError:
        return
    raise AssertionError("a deletion that the model did not make was not noticed")
