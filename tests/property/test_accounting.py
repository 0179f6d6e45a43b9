"""What is pending, and when a policy syncs, against a model: any policy, any order of writes, views, flushes.

The handle lives in a child process, below a library that counts its syncs; the model says after every step
how many there were. Exact: one sync early or late is a failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmapio import PAGE_SIZE
from tests.unit.mmapio import interposer as interposing
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import ROOT

SIZE = 4 * PAGE_SIZE

Step = tuple[Any, ...]
Policy = tuple[str, int]

CHUNK = PAGE_SIZE + 1

CHILD = (
    f"import json, os, sys\nsys.path.append({str(ROOT)!r})\n"
    + PRELUDE
    + """
from mmapio import FlushPolicy, MemoryMappedFile, SegmentMut, update_region
from mmapio.options import Trigger

SIZE, CHUNK = (int(each) for each in sys.argv[3:])
Mapped = MemoryMappedFile

# Defects to be planted.
class Skipping(Mapped):
    def flush(self, wait=True):
        if not wait or self.pending_bytes:
            super().flush(wait)
class CountingTwice(Mapped):
    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setitem__(key, value)
class Forgetting(Mapped):
    def as_slice_mut(self, offset=0, length=None):
        # On the books of somebody else.
        return Mapped.open_rw(self.path, flush_policy=FlushPolicy.NEVER).as_slice_mut(offset, length)
class FlushingAll(Mapped):
    def flush_range(self, offset, length, wait=True):
        super().flush(wait)
class Late(Mapped):
    @classmethod
    def create_rw(cls, path, size, *, flush_policy, reserve):
        late = FlushPolicy(flush_policy.trigger, flush_policy.bound and flush_policy.bound + 1)
        return super().create_rw(path, size, flush_policy=late, reserve=reserve)
class Leaving(Mapped):
    def close(self):
        if not self.closed:
            self.flush(wait=False)
        super().close()

class Session:
    def __init__(self, policy, bound):
        policy = FlushPolicy(Trigger(policy), bound)
        self.mapped = globals()[sys.argv[2]].create_rw(sys.argv[1], SIZE, flush_policy=policy, reserve=1)
        self.views = []

    # Writes.
    def update(self, offset, count):
        self.mapped.update_region(offset, bytes(count))
    def module(self, offset, count):
        update_region(self.mapped, offset, bytes(count))
    def assign(self, offset, count):
        self.mapped[offset : offset + count] = bytes(count)
    def item(self, offset, count):
        self.mapped[offset] = 1
    def segment(self, offset, count):
        SegmentMut(self.mapped, offset, count).write(bytes(count))
    def view(self, offset, count):
        with self.mapped.as_slice_mut(offset, count) as view:
            view[:] = bytes(count)
    def hole(self, offset, count):
        self.mapped.punch_hole(offset, count)
    def touch(self, offset, count):
        self.mapped.touch_pages_range(offset, count, write=True)
    def word(self, offset, count):
        self.mapped.atomic_u32(offset // 8 * 8).fetch_add(count)
    def wide_word(self, offset, count):
        self.mapped.atomic_u64_slice(offset // 8 * 8, 1)[0].swap(count)
    def chunks(self):
        self.mapped.chunks_mut(CHUNK).for_each_mut(lambda offset, view: view.__setitem__(0, 1))

    # What writes nothing.
    def read(self, offset, count):
        self.mapped.read_bytes(offset, count)
        bytes(self.mapped.as_slice(offset, count))
    def refused(self, offset, count):
        assert outcome(lambda: self.mapped.update_region(len(self.mapped), b"x")) == "OutOfBounds"
        assert outcome(lambda: self.mapped.__setitem__(offset, 256)) == "ValueError"
        word = self.mapped.atomic_u64(offset // 8 * 8)
        assert word.compare_exchange(word.load() ^ 1, 7)[0] is False
    def by_another(self):
        with Mapped.open_rw(sys.argv[1]) as other:
            other[0] = 1
            other.flush()

    # Views, lengths, flushes.
    def take(self, offset, count, kind):
        view = self.mapped.as_slice_mut(offset, count)
        if kind == "view":
            self.views.append([view])
        elif kind == "part":
            with view:
                self.views.append([memoryview(view)[: count // 2]])
        else:
            self.views.append([memoryview(view), view, memoryview(view)])
    def give_back(self, which):
        held = self.views.pop(which % len(self.views)) if self.views else []
        while held:
            held.pop()
    def resize(self, size):
        self.mapped.resize(size)
    def flush(self, wait):
        self.mapped.flush(wait)
    def flush_range(self, offset, count, wait):
        self.mapped.flush_range(offset, count, wait)
    def close(self):
        self.mapped.close()

for line in sys.stdin:
    policy, steps = json.loads(line)
    if os.path.exists(sys.argv[1]):
        os.unlink(sys.argv[1])
    session, seen = Session(*policy), []
    for name, *given in steps:
        before = [calls(row) for row in (FDATASYNC, FSYNC, MSYNC, SYNC_FILE_RANGE)]
        getattr(session, name)(*given)
        after = [calls(row) for row in (FDATASYNC, FSYNC, MSYNC, SYNC_FILE_RANGE)]
        closed = session.mapped.closed
        books = [] if closed else [session.mapped.pending_bytes, session.mapped.needs_flush()]
        seen.append([[now - then for now, then in zip(after, before)], books])
    session.close()
    print(json.dumps(seen), flush=True)
"""
)


class Bookkeeper:
    """A child process that does to a handle what it is told, and says what that synced and left pending."""

    def __init__(self, path: Path, library: Path, kind: str) -> None:
        command = [sys.executable, "-c", CHILD, str(path), kind, str(SIZE), str(CHUNK)]
        # Behind what is preloaded already: a sanitizer's library has to come first.
        preload = ":".join(filter(None, [os.environ.get("LD_PRELOAD"), str(library)]))
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "LD_PRELOAD": preload},
        )

    def run(self, policy: Policy, steps: list[Step]) -> list[Any]:
        """For each step: calls of fdatasync, fsync, msync, sync_file_range; and what is pending."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([policy, steps]) + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        assert answer, f"the child ended with {self._child.wait()}"
        found: list[Any] = json.loads(answer)
        return found

    def dismiss(self) -> None:
        """End the child."""
        self._child.communicate()


@dataclass
class Model:
    """What the books must say, and what must have been synced."""

    trigger: str
    bound: int
    size: int = SIZE
    bytes: int = 0
    writes: int = 0
    changed: bool = False
    new: bool = True
    closed: bool = False
    views: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    @property
    def books(self) -> list[object]:
        """What is pending, and whether anything is; nothing once closed."""
        out = sum(self.views)
        return [] if self.closed else [self.bytes + out, self.changed or out > 0]

    def sync(self) -> None:
        """Of everything; the first time of the directory, too."""
        self.calls[0] += 1
        self.calls[1] += self.new
        self.bytes, self.writes, self.changed, self.new = 0, 0, False, False

    def wrote(self, count: int) -> None:
        """One write."""
        if self.closed:
            return
        self.bytes, self.writes, self.changed = self.bytes + count, self.writes + 1, True
        reached = {"always": True, "bytes": self.bytes >= self.bound, "writes": self.writes >= self.bound}
        if reached.get(self.trigger, False):
            self.sync()

    def step(self, name: str, *given: Any) -> None:
        """What the step does in the child."""
        self.calls = [0, 0, 0, 0]
        if name in ("update", "module", "assign", "segment", "view", "hole"):
            if given[1]:
                self.wrote(given[1])
        elif name in ("item", "word", "wide_word"):
            self.wrote({"item": 1, "word": 4, "wide_word": 8}[name])
        elif name == "touch":
            if given[1]:
                self.wrote(0)
        elif name not in ("read", "refused"):
            getattr(self, name)(*given)

    def chunks(self) -> None:
        """A write each."""
        for offset in range(0, self.size, CHUNK):
            self.wrote(min(CHUNK, self.size - offset))

    def by_another(self) -> None:
        """Of the same file: on that one's books."""
        self.calls[0] += 1

    def take(self, _offset: int, count: int, _kind: str) -> None:
        """It counts from here on."""
        self.views.append(count)

    def give_back(self, which: int) -> None:
        """And is a write when it ends."""
        if self.views:
            count = self.views.pop(which % len(self.views))
            if count:
                self.wrote(count)

    def resize(self, size: int) -> None:
        """No write, but a change."""
        if size != self.size:
            self.size, self.changed = size, True
            if self.trigger == "always":
                self.sync()

    def flush(self, wait: bool) -> None:
        """Always, whatever the books say."""
        if wait:
            self.sync()
        else:
            self.calls[3] += 1

    def flush_range(self, _offset: int, count: int, wait: bool) -> None:
        """It takes off its length and leaves all the rest."""
        if count:
            self.calls[2 if wait else 3] += 1
            self.bytes -= min(count, self.bytes) if wait else 0

    def close(self) -> None:
        """What is owed."""
        if not self.closed and self.books[1] and self.trigger != "never":
            self.sync()
        self.closed = True


counts = st.sampled_from([0, 1, 2, 7, 100, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1]) | st.integers(0, SIZE)
places = st.tuples(st.integers(0, SIZE - 8), counts).map(
    lambda place: (place[0], min(place[1], SIZE - place[0]))
)
WRITES = ("update", "module", "assign", "item", "segment", "view", "hole", "touch", "word", "wide_word")


def step(*names: str, **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    """One of some steps that take the same arguments."""
    parts = st.tuples(st.sampled_from(names), *given.values())
    # An offset and a count come as one, for they depend on each other.
    return parts.map(
        lambda step: tuple(part for each in step for part in (each if isinstance(each, tuple) else [each]))
    )


writes = step(*WRITES, where=places)
steps = st.one_of(
    writes,
    writes,
    writes,
    step("read", "refused", where=places),
    step("chunks", "by_another"),
    step("take", where=places, kind=st.sampled_from(["view", "part", "several"])),
    step("give_back", which=st.integers(0, 7)),
    step("resize", size=st.sampled_from([SIZE, SIZE + 1, 2 * SIZE, 3 * SIZE])),
    step("flush", wait=st.booleans()),
    step("flush_range", where=places, wait=st.booleans()),
)
ends = st.sampled_from([[], [("close",)], [("close",), ("give_back", 0), ("give_back", 0), ("close",)]])
programs = st.tuples(st.lists(steps, max_size=60), ends).map(lambda parts: parts[0] + parts[1])
policies = st.one_of(
    st.sampled_from([("never", 0), ("manual", 0), ("always", 0)]),
    st.tuples(st.just("bytes"), st.integers(1, 300) | st.sampled_from([PAGE_SIZE, SIZE, 3 * SIZE])),
    st.tuples(st.just("writes"), st.integers(1, 9)),
)


def compare(bookkeeper: Bookkeeper, policy: Policy, program: list[Step]) -> None:
    """Raises AssertionError at the first step of which the model says something else."""
    model = Model(*policy)
    for (name, *values), found in zip(program, bookkeeper.run(policy, program), strict=True):
        model.step(name, *values)
        assert found == [model.calls, model.books], f"after {name}{tuple(values)}"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What counts the syncs."""
    return interposing.build(tmp_path_factory.mktemp("interposer"))


@pytest.fixture(scope="module")
def bookkeeper(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bookkeeper]:
    """A child at work with the real thing."""
    child = Bookkeeper(tmp_path_factory.mktemp("accounting") / "file", library, "Mapped")
    yield child
    child.dismiss()


@given(policy=policies, program=programs)
def test_the_books_are_exact(bookkeeper: Bookkeeper, policy: Policy, program: list[Step]) -> None:
    """A step that counts wrongly, or syncs too often or too seldom, breaks what somebody relies on."""
    compare(bookkeeper, policy, program)


@given(
    policy=policies.filter(lambda policy: policy[0] in ("bytes", "writes")),
    program=st.lists(writes, max_size=80),
)
def test_bounds_are_exact(bookkeeper: Bookkeeper, policy: Policy, program: list[Step]) -> None:
    """Nothing but writes: every sync is the bound's, at the write that reaches it and at no other."""
    compare(bookkeeper, policy, program)


DEFECTS = ["Skipping", "CountingTwice", "Forgetting", "FlushingAll", "Late", "Leaving"]


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught(tmp_path: Path, library: Path, defect: str) -> None:
    """The control: a search that does not come to the defect proves nothing of a handle that has none."""
    child = Bookkeeper(tmp_path / "file", library, defect)

    @settings(settings.get_profile("control"))
    @given(policy=policies, program=programs)
    def search(policy: Policy, program: list[Step]) -> None:
        compare(child, policy, program)

    try:
        with pytest.raises(AssertionError, match="after "):
            search()
    finally:
        child.dismiss()
