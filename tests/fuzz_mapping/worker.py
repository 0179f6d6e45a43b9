"""One thread of the fuzzer: its bytes, the model of them, and what it does."""

from __future__ import annotations

import gc
import os
import random
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mmapio import (
    PAGE_SIZE,
    AtomicU64,
    Closed,
    InvalidMode,
    MappingFault,
    MmapAdvice,
    MmapMode,
    OutOfBounds,
    ResizeFailed,
    Segment,
    SegmentMut,
    SharedMutex,
)
from tests.fuzz_mapping.arena import ANNEX_MAX, COUNTER, GUARDED, LANE, MUTEX, SMALL_COUNTER, Arena, Handle
from tests.support.mapping_model import FileModel, RegionModel

PATTERN = bytes(range(1, 252)) * (2 * LANE // 251)
VIEWS_MAX = 24
COUNTS = (0, 1, 2, 7, 8, 9, 64, 100, 255, 1000, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 5 * PAGE_SIZE)


class Difference(Exception):
    """Something is not as the model has it."""


@dataclass
class View:
    """What points into a mapping, and where in the thread's bytes that is."""

    kind: str
    held: Any
    start: int
    count: int
    region: RegionModel


class Acting:
    """A number that does something when it is asked for."""

    def __init__(self, value: int, action: Callable[[], object]) -> None:
        self.value = value
        self.action = action

    def __index__(self) -> int:
        with suppress(OSError):
            self.action()
        return self.value


class Worker(threading.Thread):
    """Does random operations until told to stop, each checked."""

    def __init__(self, arena: Arena, number: int, seed: int, operations: int | None) -> None:
        super().__init__(name=f"fuzz-{number}", daemon=True)
        self.arena, self.number, self.operations = arena, number, operations
        self.chance = random.Random(f"{seed}/{number}")
        self.begin = arena.lane(number)
        self.model = FileModel(bytes(LANE))
        self.shared = RegionModel(self.model, private=False)
        self.views: list[View] = []
        self.copy: Handle | None = None
        self.copied = self.shared
        self.done = self.added = self.guarded = self.faults = self.closed = 0
        self.doing: str = "nothing"
        self.mutex = SharedMutex(arena.base, MUTEX)
        self.stopping = threading.Event()
        self.failure: str | None = None
        self.ways = [
            (60, self.write), (60, self.read), (60, self.look_at_a_view), (30, self.take_a_view),
            (30, self.store), (25, self.drop_a_view), (20, self.operate_on_a_word), (20, self.add),
            (5, self.add_guarded), (10, self.write_a_copy), (1, self.open_a_copy), (6, self.advise),
            (4, self.touch), (2, self.flush), (3, self.punch), (4, self.refresh), (5, self.resize),
            (4, self.look_at_the_annex), (2, self.cut_the_annex), (1, self.replace), (1, self.leave_a_cycle),
            (3, self.act), (1, self.look_at_all),
        ]  # fmt: skip

    def run(self) -> None:
        """Until told to stop, or the operations are done, or something is wrong."""
        weights, ways = zip(*self.ways, strict=True)
        try:
            while not self.stopping.is_set() and (self.operations is None or self.done < self.operations):
                for way in self.chance.choices(ways, weights, k=64):
                    self.step(way)
                    self.done += 1
            self.look_at_all()
        except BaseException as error:
            shown = "" if isinstance(error, Difference) else traceback.format_exc()
            self.failure = f"{shown}thread {self.number}, operation {self.done}: {self.doing}: {error}"

    def step(self, way: Callable[[], object]) -> None:
        """One operation. Another thread may close the handle under it or cut the annex, but no more."""
        self.doing = way.__name__
        try:
            way()
        except Closed:
            self.closed += 1
        except MappingFault:
            self.faults += 1

    # What operations are made of.

    def handle(self) -> Handle:
        """One of those that all share, or the base."""
        return self.chance.choice([*self.arena.handles, self.arena.base])

    def writer(self) -> Handle:
        """As `handle`, one that can write."""
        found = self.handle()
        return found if found.mode is MmapMode.READ_WRITE else self.arena.base

    def place(self) -> tuple[int, int]:
        """A range of the thread's bytes: most of them short, some near a page's edge, some of all."""
        chance = self.chance
        start = chance.randrange(LANE) if chance.random() < 0.5 else chance.randrange(80) * PAGE_SIZE
        start = max(start - chance.choice((0, 0, 1, 8)), 0)
        count = LANE if chance.random() < 0.01 else chance.choice(COUNTS)
        return start, min(count, LANE - start)

    def data(self, count: int) -> bytes:
        """So many bytes, none of them zero."""
        start = self.chance.randrange(251)
        return PATTERN[start : start + count]

    def equal(self, what: str, found: bytes, start: int, expected: bytes) -> None:
        """Raise Difference unless they are."""
        if found == expected:
            return
        pairs = enumerate(zip(found, expected, strict=False))
        at = next((at for at, (one, two) in pairs if one != two), min(len(found), len(expected)))
        raise Difference(
            f"{what}: {len(found)} bytes, of {len(expected)} at byte {start} of the lane, differ from "
            f"byte {at} on: {found[at : at + 8].hex()} for {expected[at : at + 8].hex()}"
        )

    def stored(self, start: int, data: bytes, call: Callable[[], object], region: RegionModel) -> None:
        """Do a store. When it is interrupted, all of it is there, or nothing."""
        try:
            call()
        except (Closed, MappingFault):
            if region is self.shared:
                found = self.arena.read(self.begin + start, len(data))
                if found != self.shared.shown(start, len(data)):
                    self.equal("an interrupted store", found, start, data)
                    region.store(start, data)
                raise
            self.open_a_copy()
            raise
        region.store(start, data)

    # Operations.

    def write(self) -> None:
        """Through any handle, in any way, from any memory; looked at through another handle."""
        start, count = self.place()
        given, data = self.source(count, to=start, region=self.shared)
        handle, offset, count = self.writer(), self.begin + start, len(data)
        ways: tuple[Callable[[], object], ...] = (
            lambda: SegmentMut(handle, offset, count).write(given),
            lambda: handle.__setitem__(slice(offset, offset + count), given),
            lambda: handle.update_region(offset, given),
            lambda: handle.__setitem__(offset, data[0]),
        )
        self.stored(start, data, ways[self.chance.randrange(4 if count == 1 else 3)], self.shared)
        self.equal("read back", self.handle().read_bytes(offset, count), start, data)

    def source(self, count: int, *, to: int, region: RegionModel) -> tuple[Any, bytes]:
        """Something to write, and a copy of it: new bytes, or what a view shows.

        Not what is there already: a copy onto itself stores nothing, and makes no page a private copy's own.
        """
        view = self.chance.choice(self.views) if self.views else None
        if view is None or view.kind not in ("slice", "buffer") or self.chance.random() < 0.7:
            data = self.data(count)
            return self.chance.choice((bytes, bytearray, memoryview))(data), data
        if view.region is region and view.start == to:
            return self.source(count, to=to, region=region)
        data = view.region.shown(view.start, min(count, view.count))
        return memoryview(view.held)[: len(data)], data

    def read(self) -> None:
        """Through any handle, in any way."""
        start, count = self.place()
        handle, offset = self.handle(), self.begin + start
        way = self.chance.randrange(6)
        if way == 0:
            found = bytearray(count)
            handle.read_into(offset, found)
        elif way == 1:
            found = bytearray(handle[offset : offset + count])
        elif way == 2:
            found = bytearray(handle.as_slice(offset, count).tobytes())
        elif way == 3:
            found = bytearray(memoryview(Segment(handle, offset, count).as_slice()))
        elif way == 4:
            reader = handle.reader()
            reader.seek(offset)
            found = bytearray(reader.read(count))
        else:
            found = bytearray(handle.read_bytes(offset, count))
        self.equal(f"read {way} of {handle!r}", bytes(found), start, self.shared.shown(start, count))

    def take_a_view(self) -> None:
        """To be looked at later, whatever becomes of the handle."""
        if len(self.views) >= VIEWS_MAX:
            self.drop_a_view()
        start, count = self.place()
        kind = self.chance.choice(("slice", "buffer", "mutable", "mutable buffer", "word", "words", "chunks"))
        private = self.copy is not None and self.chance.random() < 0.2
        handle = self.copy if private and self.copy is not None else self.writer()
        region, offset = (self.copied if private else self.shared), self.begin + start
        if kind.startswith("word"):
            start, count = start // 8 * 8, 8 if kind == "word" else count // 8 * 8
            count = min(count, LANE - start)
            offset = self.begin + start
        makers: dict[str, Callable[[], Any]] = {
            "slice": lambda: handle.as_slice(offset, count),
            "buffer": lambda: memoryview(handle.as_slice()[offset : offset + count]),
            "mutable": lambda: handle.as_slice_mut(offset, count),
            "mutable buffer": lambda: memoryview(handle.as_slice_mut(offset, count)),
            "word": lambda: handle.atomic_u64(offset),
            "words": lambda: handle.atomic_u64_slice(offset, count // 8),
            "chunks": lambda: handle.chunks(LANE),
        }
        self.views.append(View(kind, makers[kind](), start, 0 if kind == "chunks" else count, region))

    def drop_a_view(self) -> None:
        """Perhaps the last that points into a mapping."""
        if self.views:
            view = self.views.pop(self.chance.randrange(len(self.views)))
            if view.kind == "mutable" and self.chance.random() < 0.5:
                view.held.release()

    def look_at_a_view(self) -> None:
        """It shows the thread's bytes: to who is checked, or an error, and to who is not."""
        if not self.views:
            return
        view = self.views[self.chance.randrange(len(self.views))]
        held, expected = view.held, view.region.shown(view.start, view.count)
        if view.kind == "chunks":
            next(held, None)
            return
        if view.kind.startswith("word"):
            for at in {0, view.count - 8} if view.count else ():
                word = held if view.kind == "word" else held[at // 8]
                found = word.load().to_bytes(8, "little")
                self.equal(view.kind, found, view.start + at, expected[at : at + 8])
            return
        if view.kind in ("slice", "buffer", "mutable buffer"):
            self.equal(view.kind, bytes(memoryview(held)), view.start, expected)
        if view.kind in ("slice", "mutable"):
            self.equal(view.kind, held.tobytes(), view.start, expected)
            if held != expected:
                raise Difference(f"{view.kind}: not equal to its own bytes")

    def store(self) -> None:
        """Through a view."""
        found = [view for view in self.views if view.kind.startswith("mutable")]
        if not found:
            return
        view = self.chance.choice(found)
        at = self.chance.randrange(view.count + 1)
        count = min(self.chance.choice(COUNTS), view.count - at)
        given, data = self.source(count, to=view.start + at, region=view.region)
        if view.kind == "mutable buffer":
            given = data  # of a buffer that is somebody else's, nobody can ask whether a copy overlaps itself
        part, start = slice(at, at + len(data)), view.start + at
        self.stored(start, data, lambda: view.held.__setitem__(part, given), view.region)

    def operate_on_a_word(self) -> None:
        """Of the thread's own."""
        start = self.chance.randrange(LANE // 8) * 8
        found = [view for view in self.views if view.kind == "word" and view.region is self.shared]
        view = self.chance.choice(found) if found and self.chance.random() < 0.7 else None
        word: AtomicU64 = view.held if view else self.writer().atomic_u64(self.begin + start)
        start = view.start if view else start
        old, value = int.from_bytes(self.shared.shown(start, 8), "little"), self.chance.getrandbits(64)
        new = (old + value) % 2**64
        answers: list[int] = []
        call = lambda: answers.append(word.fetch_add(value))  # noqa: E731
        self.stored(start, new.to_bytes(8, "little"), call, self.shared)
        if answers != [old]:
            raise Difference(f"fetch_add at byte {start} of the lane: {answers}, not {old}")

    def add(self) -> None:
        """To the numbers that all threads add to."""
        handle = self.writer()
        word = handle.atomic_u64(COUNTER) if self.chance.random() < 0.5 else handle.atomic_u32(SMALL_COUNTER)
        word.fetch_add(1)
        self.added += 1

    def add_guarded(self) -> None:
        """To the number that the mutex guards: a read and a write, between which others would get."""
        base = self.arena.base
        mutex = self.mutex if self.chance.random() < 0.9 else SharedMutex(base, MUTEX)
        with mutex:
            number = int.from_bytes(base.read_bytes(GUARDED, 8), "little")
            base.update_region(GUARDED, (number + 1).to_bytes(8, "little"))
            self.guarded += 1

    def open_a_copy(self) -> None:
        """A private one, of the thread's own, in place of the last; views of that stay."""
        if self.copy is not None:
            self.copy.close()
        self.copy = Handle.open_cow(self.arena.path)
        self.copied = RegionModel(self.model, private=True)
        self.views = [view for view in self.views if view.region.changes is None]
        self.model.private = [self.copied]

    def write_a_copy(self) -> None:
        """Into the private copy, and look at it; nothing of it reaches the file."""
        if self.copy is None:
            self.open_a_copy()
            return
        start, count = self.place()
        given, data = self.source(count, to=start, region=self.copied)
        copy = self.copy
        self.stored(start, data, lambda: copy.update_region(self.begin + start, given), self.copied)
        start, count = self.place()
        found = copy.read_bytes(self.begin + start, count)
        self.equal("private copy", found, start, self.copied.shown(start, count))

    def advise(self) -> None:
        """Anything."""
        start, count = self.place()
        with suppress(InvalidMode):
            self.handle().advise(self.begin + start, count, self.chance.choice(list(MmapAdvice)))
        self.handle().prefetch_range(self.begin + start, count)

    def touch(self) -> None:
        """Pages of the lane, for reading or writing; lock and unlock them."""
        start, count = self.place()
        offset = self.begin + start
        self.writer().touch_pages_range(offset, count, write=self.chance.random() < 0.5)
        handle = self.writer()
        handle.lock(offset, min(count, PAGE_SIZE))
        handle.unlock(offset, min(count, PAGE_SIZE))
        handle.resident(offset, count)

    def flush(self) -> None:
        """A range, or the beginning of everything; to wait for everything would be all that is done."""
        start, count = self.place()
        handle = self.handle()
        if self.chance.random() < 0.02:
            handle.flush()
        else:
            handle.flush(wait=False)
            handle.flush_range(self.begin + start, min(count, 100), wait=self.chance.random() < 0.1)
        handle.needs_flush()

    def punch(self) -> None:
        """A hole in the lane."""
        start, count = self.place()
        handle = self.writer()
        self.stored(start, bytes(count), lambda: handle.punch_hole(self.begin + start, count), self.shared)

    def refresh(self) -> None:
        """Learn what others have done, and heal."""
        self.handle().refresh()
        if self.copy is not None and self.chance.random() < 0.1:
            self.open_a_copy()

    def annex(self) -> int:
        """A length of the file that leaves the lanes alone."""
        return self.arena.lanes_end + self.chance.randrange(ANNEX_MAX)

    def resize(self) -> None:
        """Grow or cut the annex; where a view of the handle reaches into it, that is refused."""
        with suppress(ResizeFailed):
            self.writer().resize(self.annex(), timeout=self.chance.choice((0, 0, 0, 0.001)))

    def cut_the_annex(self) -> None:
        """As another process would."""
        os.truncate(self.arena.path, self.annex())

    def look_at_the_annex(self) -> None:
        """It may be gone; then it is a fault that leaves the lanes as they are, and refresh() heals."""
        handle = self.handle()
        if handle is self.arena.base:
            return
        offset, count = self.annex(), self.chance.choice(COUNTS)
        try:
            if self.chance.random() < 0.5:
                handle.read_bytes(offset, count)
            elif self.chance.random() < 0.5:
                bytes(memoryview(handle.as_slice(offset, count)))
            elif handle.mode is MmapMode.READ_WRITE:
                handle.update_region(offset, self.data(count))
        except OutOfBounds:
            pass
        except MappingFault:
            self.faults += 1
            if self.chance.random() < 0.9:
                handle.refresh()

    def replace(self) -> None:
        """A handle that others may be using."""
        self.arena.replace(self.chance)

    def leave_a_cycle(self) -> None:
        """A handle and its views that only the collector finds."""
        handle = self.arena.opened(self.chance)
        handle.keeps = [handle.as_slice(), memoryview(handle.as_slice(0, 8)), handle.chunks(100)]
        handle.keeps += [handle.atomic_u64(self.begin), handle.atomic_u64_slice(self.begin, 5)]
        if handle.mode is MmapMode.READ_WRITE:
            handle.keeps += [handle.as_slice_mut(self.begin, 9), memoryview(handle.as_slice_mut(0, 9))]
            handle.keeps += [SharedMutex(handle, MUTEX)]
        if self.chance.random() < 0.5:
            handle.close()
        del handle
        if self.chance.random() < 0.1:
            gc.collect()

    def act(self) -> None:
        """A number that closes, cuts or replaces while it is looked at."""
        handle = self.arena.opened(self.chance)
        resize = lambda: handle.resize(self.annex())  # noqa: E731
        action = self.chance.choice((handle.close, handle.refresh, resize, lambda: gc.collect(1)))
        start, count = self.place()
        number, length = Acting(self.begin + start, action), Acting(count, action)
        with suppress(InvalidMode):
            self.chance.choice((
                lambda: handle.read_bytes(number, length),
                lambda: handle.as_slice(number, length),
                lambda: handle.as_slice_mut(number, length),
                lambda: handle[number : Acting(self.begin + start + count, action)],
                lambda: handle.atomic_u64_slice(Acting(self.begin, action), count // 8),
                lambda: handle.flush_range(number, length, wait=False),
            ))()  # fmt: skip

    def look_at_all(self) -> None:
        """The whole lane, in the file and through every handle."""
        expected = self.shared.shown(0, LANE)
        self.equal("the file", self.arena.read(self.begin, LANE), 0, expected)
        for handle in list(self.arena.handles):
            with suppress(Closed, MappingFault):
                self.equal(f"all of {handle!r}", handle.read_bytes(self.begin, LANE), 0, expected)
