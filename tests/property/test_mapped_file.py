"""A file that handles of all modes have mapped at once, against a model of its bytes, pages and books."""

from __future__ import annotations

import operator
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsIndex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test
from typing_extensions import Buffer

from mmapio import (
    PAGE_SIZE,
    Closed,
    FlushPolicy,
    InvalidMode,
    MappingFault,
    MemoryMappedFile,
    MmapAdvice,
    MmapMode,
    ResizeFailed,
    Segment,
    SegmentMut,
)
from tests.property.mapped_files import LARGE, PAGES, Ground, Handle, Range, View, faults_if, raising
from tests.support.mapping_model import Books, FileModel, HandleModel, whole_pages

READ_ONLY, READ_WRITE, COPY_ON_WRITE = MmapMode

POLICIES = {
    "manual": FlushPolicy.MANUAL,
    "never": FlushPolicy.NEVER,
    "always": FlushPolicy.ALWAYS,
    "5000 bytes": FlushPolicy.every_bytes(5000),
    "3 writes": FlushPolicy.every_writes(3),
}
KINDS = ["slice", "part", "buffer", "mutable", "mutable buffer", "chunks", "word", "words"]
WAYS = ["update", "slice", "item", "segment"]
POPULATING = (MmapAdvice.POPULATE_READ, MmapAdvice.POPULATE_WRITE)

picks = st.integers(0, 99)
sources = st.none() | picks
modes = st.sampled_from(list(MmapMode))
reserves = st.sampled_from([1, 9 * PAGE_SIZE, 1 << 30])
policies = st.sampled_from(sorted(POLICIES))
pages = st.integers(0, PAGES) | st.just(PAGES)
steps = st.just(0) | st.integers(-9, 9)
sizes = st.builds(lambda page, step: max(page * PAGE_SIZE + step, 1), pages | st.just(80), steps)
lengths = st.sampled_from([0, 1, 4, 8, 9, 100, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 3 * PAGE_SIZE, LARGE])
ranges = st.tuples(pages, steps, lengths)


class MappedFiles(Ground):
    """Every rule does the same to the file and to the model of it."""

    handles_max, views_max = 6, 8

    # Handles.

    @initialize(size=sizes, policy=policies, reserve=reserves, sparse=st.booleans())
    def create(self, size: int, policy: str, reserve: int, sparse: bool) -> None:
        chosen = POLICIES[policy]
        mapped = self.handle_class.create_rw(
            self.path, size, flush_policy=chosen, reserve=reserve, sparse=sparse
        )
        self.file = FileModel(bytes(size))
        self.handles.append(Handle(mapped, HandleModel(self.file, READ_WRITE, Books(chosen), reserve)))
        for mode in MmapMode:
            self.open(mode, "never", 1)

    @precondition(lambda self: len(self.handles) < self.handles_max)
    @rule(mode=modes, policy=policies, reserve=reserves)
    def open_another(self, mode: MmapMode, policy: str, reserve: int) -> None:
        self.open(mode, policy, reserve)

    def open(self, mode: MmapMode, policy: str, reserve: int) -> None:
        chosen = POLICIES[policy] if mode is READ_WRITE else FlushPolicy.NEVER
        builder = self.handle_class.builder(self.path).mode(mode).flush_policy(chosen).reserve(reserve)
        self.handles.append(Handle(builder.open(), HandleModel(self.file, mode, Books(chosen), reserve)))

    @precondition(lambda self: len(self.handles) > 1)
    @rule(which=picks)
    def close(self, which: int) -> None:
        """Its views stay, and what they show."""
        handle = self.handles.pop(which % len(self.handles))
        with faults_if(handle.model.faulted and handle.owes):
            handle.mapped.close()
        handle.is_open = False
        handle.mapped.close()

    @rule(which=picks)
    def refresh(self, which: int) -> None:
        handle = self.pick(which)
        assert handle.mapped.refresh() == handle.model.refresh()

    @rule(which=picks, wait=st.booleans())
    def flush(self, which: int, wait: bool) -> None:
        handle = self.pick(which)
        with faults_if(handle.model.faulted):
            handle.mapped.flush(wait)
        if wait and not handle.model.faulted:
            handle.books.flush()

    @rule(which=picks, where=ranges, wait=st.booleans())
    def flush_a_range(self, which: int, where: Range, wait: bool) -> None:
        handle = self.pick(which, READ_WRITE)
        offset, count = self.place(handle, where)
        with faults_if(handle.model.faulted):
            handle.mapped.flush_range(offset, count, wait)
        if wait and not handle.model.faulted:
            handle.books.flush_range(count)

    # The file's length.

    @rule(which=picks, size=sizes)
    def resize(self, which: int, size: int) -> None:
        """Refused where a view of this handle reaches beyond."""
        handle = self.pick(which, READ_WRITE)
        model, now, end = handle.model, len(self.file), self.furthest_view(handle)
        error: type[OSError] | None = None
        if model.faulted:
            error = MappingFault
        elif model.mode is not READ_WRITE:
            error = InvalidMode
        elif size < min(now, end):
            error = ResizeFailed
        with raising(error):
            handle.mapped.resize(size)
        if error is not None:
            return
        self.file.set_size(size)
        if size != now:
            handle.books.note_size()
        model.refresh()

    @rule(size=sizes | st.just(0))
    def set_size_by_others(self, size: int) -> None:
        """Whatever is looked at."""
        os.truncate(self.path, size)
        self.file.set_size(size)

    @rule(size=sizes, which=picks)
    def cut_and_mend_by_others(self, size: int, which: int) -> None:
        """Who met no fault in between has nothing to mend."""
        for each in (min(size, len(self.file)), len(self.file)):
            os.truncate(self.path, each)
            self.file.set_size(each)
        self.refresh(which)

    # Writing.

    @rule(
        which=picks, where=ranges, way=st.sampled_from(["update", "slice", "item", "segment"]), source=sources
    )
    def write(self, which: int, where: Range, way: str, source: int | None) -> None:
        """By every call that takes bytes. Where a view shows the same pages the copy overlaps itself."""
        handle = self.pick(which)
        mapped, model = handle.mapped, handle.model
        offset, count = self.place(handle, where)
        count = min(count, 1) if way == "item" else count
        given, data = self.source(source, count, to=offset, region=model.stores)
        if not self.may_store(model.stores, offset, len(data)) or (way == "item" and not data):
            return
        calls: dict[str, Callable[[], object]] = {
            "update": lambda: mapped.update_region(offset, given),
            "slice": lambda: mapped.__setitem__(slice(offset, offset + len(data)), given),
            "item": lambda: mapped.__setitem__(offset - model.length, data[0]),
            "segment": lambda: SegmentMut(mapped, offset, len(data)).write(given),
        }
        if model.faulted or model.mode is READ_ONLY:
            with raising(MappingFault if model.faulted else InvalidMode):
                calls[way]()
        else:
            self.stored(handle, model.stores, offset, data, calls[way])

    @rule(which=picks, where=ranges)
    def punch_a_hole(self, which: int, where: Range) -> None:
        handle = self.pick(which, READ_WRITE)
        if handle.model.mode is not READ_WRITE or handle.model.faulted:
            return
        offset, count = self.place(handle, where)
        handle.mapped.punch_hole(offset, count)
        there = max(min(count, len(self.file) - offset), 0)
        self.file.content[offset : offset + there] = bytes(there)
        if count:
            handle.books.note(count)

    @rule(where=ranges)
    def write_by_others(self, where: Range) -> None:
        """It shows at once below a shared mapping; below a private one where that has no page of its own."""
        offset = min(max(where[0] * PAGE_SIZE + where[1], 0), len(self.file))
        data = self.data(min(where[2], len(self.file) - offset))
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), data, offset)
        self.file.content[offset : offset + len(data)] = data

    @rule(which=picks, step=st.sampled_from([PAGE_SIZE - 1, PAGE_SIZE, 5 * PAGE_SIZE, LARGE]))
    def write_in_chunks(self, which: int, step: int) -> None:
        handle = self.pick(which, READ_WRITE, COPY_ON_WRITE)
        model = handle.model
        if not model.is_whole or model.length > len(self.file) or model.mode is READ_ONLY:
            return
        done: list[tuple[int, bytes]] = []

        def write(offset: int, view: Any) -> None:
            done.append((offset, self.data(len(view))))
            view[:] = done[-1][1]

        handle.mapped.chunks_mut(step).for_each_mut(write)
        for offset, data in done:
            self.stored(handle, model.stores, offset, data, lambda: None)
        assert sum(len(data) for _, data in done) == model.length

    # Views.

    @precondition(lambda self: len(self.views) < self.views_max)
    @rule(wanted=st.lists(st.tuples(picks, ranges, st.sampled_from(KINDS)), min_size=1, max_size=4))
    def take_views(self, wanted: list[tuple[int, Range, str]]) -> None:
        """To be looked at in all later steps."""
        for which, where, kind in wanted:
            self.take_a_view(which, where, kind)

    def take_a_view(self, which: int, where: Range, kind: str) -> None:
        handle = self.pick(which)
        mapped, model = handle.mapped, handle.model
        offset, count = self.place(handle, where)
        if kind in ("word", "words"):
            offset, count = offset // 8 * 8, 8 if kind == "word" else count // 8 * 8
            count = count if offset + count <= model.length else 0
        if kind == "word" and count == 0:
            return
        makers: dict[str, Callable[[], Any]] = {
            "slice": lambda: mapped.as_slice(offset, count),
            "part": lambda: mapped.as_slice()[offset : offset + count],
            "buffer": lambda: memoryview(Segment(mapped, offset, count).as_slice()),
            "mutable": lambda: mapped.as_slice_mut(offset, count),
            "mutable buffer": lambda: memoryview(SegmentMut(mapped, offset, count).as_slice_mut()),
            "chunks": lambda: (mapped.chunks(max(count, 1)), max(count, 1)),
            "word": lambda: mapped.atomic_u64(offset),
            "words": lambda: mapped.atomic_u64_slice(offset, count // 8),
        }
        if model.faulted or (model.mode is READ_ONLY and kind.startswith("mutable")):
            with pytest.raises(MappingFault if model.faulted else InvalidMode):
                makers[kind]()
            return
        held = makers[kind]()
        region = model.view_region() if kind in ("slice", "part", "buffer", "chunks") else model.stores
        if kind == "chunks":
            offset, count = 0, model.length
        view = View("slice" if kind == "part" else kind, held, handle, region, offset, count)
        handle.books.bytes_exported += count if view.is_mutable else 0
        self.views.append(view)

    @rule(which=picks)
    def drop_a_view(self, which: int) -> None:
        if self.views:
            self.given_back(self.views.pop(which % len(self.views)))

    @rule(which=picks)
    def release_a_view(self, which: int) -> None:
        """It ends there, though others may still hold it."""
        view = self.view_of(which, "mutable")
        if view is None:
            return
        with faults_if(view.region.faulted and not view.released):
            view.held.release()
        self.given_back(view)
        view.released = True

    @rule(which=picks, at=st.integers(0, 5), count=lengths, source=sources)
    def store_through_a_view(self, which: int, at: int, count: int, source: int | None) -> None:
        """After growth, into the mapping that was left behind; after close, by who has a buffer."""
        view = self.view_of(which, "mutable", "mutable buffer")
        if view is None:
            return
        region, start = view.region, min(at * PAGE_SIZE // 2, view.count)
        # Of a buffer that is somebody else's, nobody can ask whether a copy overlaps itself.
        source = source if view.kind == "mutable" else None
        offset, count = view.offset + start, min(count, view.count - start)
        given, data = self.source(source, count, to=offset, region=region)
        part = slice(start, start + len(data))
        if not self.may_store(region, offset, len(data)):
            return
        missing = region.first_missing(offset, len(data)) is not None
        closed = view.released or not view.handle.is_open
        if view.kind == "mutable" and (closed or missing or region.faulted):
            with raising(Closed if closed else MappingFault):
                view.held[part] = given
            region.faulted = region.faulted or not closed
        elif not missing or region.changes is not None:
            # Below a store to a private copy a page can be put; below a shared one it would swallow it.
            region.foreign(offset, len(data))
            view.held[part] = given
            region.store(offset, data)

    @rule(
        which=picks,
        index=picks,
        value=st.integers(0, 2**64 - 1),
        name=st.sampled_from(["store", "swap", "fetch_add", "fetch_xor", "compare_exchange"]),
    )
    def operate_on_a_word(self, which: int, index: int, value: int, name: str) -> None:
        view = self.view_of(which, "word", "words")
        if view is None or not view.count or not self.may_store(view.region, view.offset, 8):
            return
        index = index % (view.count // 8)
        word, at = (view.held if view.kind == "word" else view.held[index]), view.offset + 8 * index
        if not self.may_store(view.region, at, 8):
            return
        given = (value, value ^ 1) if name == "compare_exchange" else (value,)
        read_only = view.handle.model.mode is READ_ONLY
        if view.region.faulted or not view.handle.is_open or read_only:
            refused = InvalidMode if view.handle.is_open else Closed
            with raising(MappingFault if view.region.faulted else refused):
                getattr(word, name)(*given)
            return
        missing = view.region.first_missing(at, 8) is not None
        old = 0 if missing else int.from_bytes(view.region.shown(at, 8), "little")
        new, answer = {
            "store": (value, None),
            "swap": (value, old),
            "fetch_add": ((old + value) % 2**64, old),
            "fetch_xor": (old ^ value, old),
            "compare_exchange": (value ^ 1 if old == value else old, (old == value, old)),
        }[name]
        found: list[object] = []
        data, books = new.to_bytes(8, "little"), view.handle.books
        # An exchange that finds something else has written nothing.
        kept = replace(books) if name == "compare_exchange" and old != value else None
        if self.stored(view.handle, view.region, at, data, lambda: found.append(getattr(word, name)(*given))):
            assert found == [answer]
            if kept is not None:
                view.handle.model.books = kept

    @rule(which=picks)
    def look_at_a_view(self, which: int) -> None:
        """Where pages are missing, too; but not as nobody can guard it, where no page can be put below."""
        view = self.view_of(which, *KINDS)
        if view is not None and (view.kind != "mutable buffer" or not view.is_missing):
            self.check_view(view)

    @rule(which=picks)
    def go_on_with_chunks(self, which: int) -> None:
        """Over the file as it was long; through with it, the iterator keeps nothing."""
        view = self.view_of(which, "chunks")
        if view is None:
            return
        chunks, step = view.held
        left = operator.length_hint(chunks)
        if left == 0:
            assert list(chunks) == []
            view.count = 0
            return
        offset = (-(-view.count // step) - left) * step
        with faults_if(view.region.faulted):
            piece = next(chunks)
            assert len(piece) == min(step, view.count - offset)
            if view.region.first_missing(offset, len(piece)) is None:
                assert bytes(piece) == view.region.shown(offset, len(piece))

    # Reading.

    @rule(which=picks, where=ranges, way=st.sampled_from(["bytes", "into", "slice", "item", "view", "equal"]))
    def read(self, which: int, where: Range, way: str) -> None:
        """By every call that reads: the bytes, or a fault where a page is missing."""
        handle = self.pick(which)
        mapped, model = handle.mapped, handle.model
        offset, count = self.place(handle, where)
        count = min(count, 1) if way == "item" else count
        if way == "item" and count == 0:
            return
        if model.faulted:
            expected = None
        elif way == "view":
            expected = model.view_region().foreign(offset, count)
            expected = None if model.faulted else expected
        else:
            expected = (model.view_region() if way == "equal" else model.stores).guarded(offset, count)
        target = bytearray(count)
        calls: dict[str, Callable[[], bytes | bool]] = {
            "bytes": lambda: mapped.read_bytes(offset, count),
            "into": lambda: bytes(target[: mapped.read_into(offset, target)]),
            "slice": lambda: mapped[offset : offset + count],
            "item": lambda: bytes([mapped[offset - model.length]]),
            "view": lambda: mapped.as_slice(offset, count).tobytes(),
            "equal": lambda: mapped.as_slice(offset, count) == (expected or bytes(count)),
        }
        with faults_if(expected is None):
            assert calls[way]() == (way == "equal" or expected)

    @rule(which=picks, start=steps, stop=steps, step=st.sampled_from([-PAGE_SIZE, -1, 2, 100]), size=picks)
    def read_all(self, which: int, start: int, stop: int, step: int, size: int) -> None:
        """By every call that goes over the whole file."""
        handle = self.pick(which)
        mapped, model = handle.mapped, handle.model
        if not model.is_whole:
            return
        model.view_region()
        shown = model.stores.shown(0, model.length)
        size = size * 1000 + 1
        assert b"".join(mapped.chunks_owned(size)) == shown
        assert b"".join(mapped.chunks(size)) == shown
        assert mapped.reader().read() == shown
        assert mapped[start:stop:step] == shown[start:stop:step]
        assert mapped[::step] == shown[::step]

    # Pages.

    @rule(which=picks, where=ranges, advice=st.sampled_from(list(MmapAdvice)))
    def advise(self, which: int, where: Range, advice: MmapAdvice) -> None:
        """It changes nothing; what it does to a private copy is to make pages its own."""
        handle = self.pick(which)
        model = handle.model
        offset, count = self.place(handle, where)
        if (model.mode, advice) == (COPY_ON_WRITE, MmapAdvice.DONT_NEED) and not model.faulted:
            with suppress(InvalidMode):
                handle.mapped.advise(offset, count, advice)
            return
        refused = (model.mode, advice) == (READ_ONLY, MmapAdvice.POPULATE_WRITE)
        with raising(self.populated(model, offset, count, advice, refused)):
            handle.mapped.advise(offset, count, advice)

    @rule(which=picks, where=ranges, write=st.booleans())
    def touch(self, which: int, where: Range, write: bool) -> None:
        """Brings pages in, and changes nothing."""
        handle = self.pick(which)
        model = handle.model
        offset, count = self.place(handle, where)
        advice = MmapAdvice.POPULATE_WRITE if write else MmapAdvice.POPULATE_READ
        error = self.populated(model, offset, count, advice, write and model.mode is READ_ONLY)
        with raising(error):
            handle.mapped.touch_pages_range(offset, count, write=write)
        if error is None and write and count:
            handle.books.note(0)

    def populated(
        self, model: HandleModel, offset: int, count: int, advice: MmapAdvice, refused: bool
    ) -> type[OSError] | None:
        """What becomes of a range that is brought in, if that is what the advice does; what is raised."""
        if model.faulted or refused:
            return MappingFault if model.faulted else InvalidMode
        if advice is MmapAdvice.POPULATE_WRITE:
            model.stores.make_own(offset, count)
        if advice not in POPULATING or model.stores.first_missing(offset, count) is None:
            return None
        model.stores.faulted = True
        return MappingFault

    @rule(which=picks, where=ranges)
    def lock_and_unlock(self, which: int, where: Range) -> None:
        """Locked pages of a private copy are its own."""
        handle = self.pick(which)
        if not handle.model.is_whole:
            return
        offset, count = self.place(handle, where)
        handle.mapped.lock(offset, count)
        handle.model.stores.make_own(offset, count)
        handle.mapped.unlock(offset, count)
        handle.mapped.prefetch_range(offset, count)
        assert handle.mapped.resident(offset, count) <= whole_pages(count) + PAGE_SIZE


TestMappedFiles = MappedFiles.TestCase
TestMappedFiles.settings = settings(max_examples=120, stateful_step_count=40, report_multiple_bugs=False)


places = st.builds(lambda page, step: max(page * PAGE_SIZE - step, 0), st.integers(0, 3), st.integers(0, 9))


@settings(max_examples=200)
@given(
    st.sampled_from([(4, 1), (4, 2), (2, 4), (1, 2)]), modes, modes, places, lengths, places, st.booleans()
)
def test_a_copy_between_two_mappings_of_a_file_is_that_of_bytes(
    pages: tuple[int, int], one: MmapMode, two: MmapMode, start: int, count: int, target: int, way: str
) -> None:
    """The same bytes lie at two addresses: that a copy overlaps itself does not show there."""
    model = bytearray(at * 7 % 251 for at in range(4 * PAGE_SIZE))
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        path, handles = Path(directory) / "file", []
        # Each maps the file as it is long then, and keeps no room for what is added later.
        for length, mode in zip(pages, (one, READ_WRITE if two is READ_ONLY else two), strict=True):
            path.write_bytes(bytes(length * PAGE_SIZE))
            builder = MemoryMappedFile.builder(path).mode(mode).reserve(1).flush_policy(FlushPolicy.NEVER)
            handles.append(stack.enter_context(builder.open()))
        with path.open("r+b") as file:
            file.write(model)
        source, sink = handles
        start, target = min(start, len(source)), min(target, len(sink))
        count = min(count, len(source) - start, len(sink) - target)
        data, shown = source.as_slice(start, count), bytes(model[start : start + count])
        if way == "update":
            sink.update_region(target, data)
        elif way == "assign":
            sink.as_slice_mut(target, count)[:] = data
        else:
            source.read_into(start, sink.as_slice_mut(target, count))
        model[target : target + count] = shown
        assert sink[:] == model[: len(sink)]
        assert sink.mode is not READ_WRITE or path.read_bytes() == model


def test_a_mapping_left_after_a_fault_is_not_forgotten(tmp_path: Path) -> None:
    """``refresh()`` once forgot its views: a cut took the pages from under them, and a store was the end.

    A copy from such a view to where the same pages lie now once overlapped itself unseen.
    """
    content = bytearray(at * 7 % 251 for at in range(3 * PAGE_SIZE))
    with MemoryMappedFile.create_rw(tmp_path / "file", 4 * PAGE_SIZE) as mapped:
        mapped.update_region(0, content)
        view, last = map(memoryview, (mapped.as_slice(0, 2 * PAGE_SIZE), mapped.as_slice(3 * PAGE_SIZE, 8)))
        os.truncate(mapped.path, 3 * PAGE_SIZE)
        assert last[0] == 0
        mapped.refresh()
        mapped.update_region(1, view[:8000])
        content[1:8001] = content[:8000]
        assert mapped[:] == content
        with pytest.raises(ResizeFailed, match=f"byte {3 * PAGE_SIZE + 8};"):
            mapped.resize(1)
        del last
        with pytest.raises(ResizeFailed, match=f"byte {2 * PAGE_SIZE};"):
            mapped.resize(PAGE_SIZE)
        del view
        mapped.resize(1)


class LosesTheLastByte(MemoryMappedFile):
    """A planted defect: a write is one byte short."""

    def update_region(self, offset: SupportsIndex, data: Buffer) -> None:
        super().update_region(offset, memoryview(data)[:-1])


class ForgetsViews(MemoryMappedFile):
    """A planted defect: a cut looks at no view."""

    def resize(self, size: SupportsIndex, timeout: float = 0) -> None:
        os.truncate(self.path, operator.index(size))
        self.refresh()


class CountsOnce(MemoryMappedFile):
    """A planted defect: flushing a range flushes the books of all."""

    def flush_range(self, offset: SupportsIndex, length: SupportsIndex, wait: bool = True) -> None:
        self.flush(wait)


class Shares(MemoryMappedFile):
    """A planted defect: a private copy that is none."""

    @classmethod
    def open_cow(cls, path: Any, **options: Any) -> Any:
        return cls.open_rw(path, flush_policy=FlushPolicy.NEVER)


class ReadsZeros(MemoryMappedFile):
    """A planted defect: what is missing reads as zeros."""

    def read_bytes(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        with suppress(MappingFault):
            return super().read_bytes(offset, length)
        return bytes(length)


@pytest.mark.parametrize("defect", [LosesTheLastByte, ForgetsViews, CountsOnce, Shares, ReadsZeros])
def test_a_planted_defect_is_caught(defect: type[MemoryMappedFile]) -> None:
    """The control: a search that does not come to the defect proves nothing of a file that has none."""

    class Defective(MappedFiles):
        handle_class = defect

    with pytest.raises((AssertionError, pytest.fail.Exception, InvalidMode)):
        run_state_machine_as_test(Defective, settings=settings.get_profile("control"))


def test_a_byte_that_changes_by_itself_is_caught() -> None:
    """The control of the look at everything: it sees what no call did."""

    class Flipped(MappedFiles):
        @rule(where=ranges)
        def flip(self, where: Range) -> None:
            offset = where[0] * PAGE_SIZE
            if offset < len(self.file):
                with self.path.open("r+b") as file:
                    os.pwrite(file.fileno(), bytes([self.file.content[offset] ^ 1]), offset)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Flipped, settings=settings.get_profile("control"))
