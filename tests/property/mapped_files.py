"""Handles and views of one mapped file next to their models, and the look at them all after every step."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant
from typing_extensions import Buffer

from mmapio import (
    PAGE_SIZE,
    Closed,
    FlushPolicy,
    MappingFault,
    MemoryMappedFile,
    MmapMode,
    ResizeFailed,
)
from tests.support.mapping_model import Books, FileModel, HandleModel, RegionModel, whole_pages

PAGES = 9
"""Most of what is done is done to the first so many."""

LARGE = 80 * PAGE_SIZE
"""Copies of so much run without the GIL."""

PATTERN = bytes(range(1, 252)) * (2 * LARGE // 251)

Range = tuple[int, int, int]
"""Where, from a page's begin, and how long, before it is cut to what there is."""


@dataclass
class Handle:
    """The real one and its model."""

    mapped: MemoryMappedFile
    model: HandleModel
    is_open: bool = True

    @property
    def books(self) -> Books:
        """What it has to flush."""
        return self.model.books

    @property
    def owes(self) -> bool:
        """Whether closing it would flush."""
        writes = self.model.mode is MmapMode.READ_WRITE and self.books.policy != FlushPolicy.NEVER
        return writes and self.books.dirty


@dataclass
class View:
    """Something that points into a mapping, and where."""

    kind: str
    held: Any
    handle: Handle
    region: RegionModel
    offset: int
    count: int
    released: bool = False

    @property
    def end(self) -> int:
        """Where it ends, for who wants to cut the file; 0 when it keeps nothing."""
        return 0 if self.released or not self.count else self.offset + self.count

    @property
    def is_missing(self) -> bool:
        """Whether a look at it is a fault that nobody has met yet."""
        return self.region.first_missing(self.offset, self.count) is not None

    @property
    def is_mutable(self) -> bool:
        """Whether it counts as written while it is out."""
        return self.kind in ("mutable", "mutable buffer")


@contextmanager
def raising(error: type[OSError] | None) -> Iterator[None]:
    """That the block raises this, or nothing."""
    if error is None:
        yield
    else:
        with pytest.raises(error):
            yield


def faults_if(expected: bool) -> AbstractContextManager[None]:
    """That the block raises MappingFault, or nothing."""
    return raising(MappingFault if expected else None)


class Ground(RuleBasedStateMachine):
    """The state, and what it must be. The rules are in the classes that derive from it."""

    handle_class: type[MemoryMappedFile] = MemoryMappedFile
    file: FileModel

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="mapped-"))
        self.path = self.directory / "file"
        self.handles: list[Handle] = []
        self.views: list[View] = []
        self.serial = 0

    def teardown(self) -> None:
        """Close what is open, whatever state a failure has left it in."""
        self.views.clear()
        for handle in self.handles:
            with suppress(MappingFault):
                handle.mapped.close()
        shutil.rmtree(self.directory)

    # What the rules are made of.

    def data(self, count: int) -> bytes:
        """So many bytes unlike those of the last time, none of them zero."""
        self.serial = (self.serial + 97) % 251
        return PATTERN[self.serial : self.serial + count]

    def source(self, number: int | None, count: int, *, to: int, region: RegionModel) -> tuple[Buffer, bytes]:
        """Something to write: new bytes, or what a view shows, so far as it shows enough; and a copy.

        Not what is there already: a copy onto itself stores nothing, and makes no page a private copy's own.
        """
        view = None if number is None else self.view_of(number, "slice", "buffer", "mutable buffer")
        unfit = view is None or view.is_missing or view.region.faulted
        if view is None or unfit or (view.region is region and view.offset == to):
            data = self.data(count)
            return data, data
        return memoryview(view.held)[:count], view.region.shown(view.offset, view.count)[:count]

    def pick(self, number: int, *modes: MmapMode) -> Handle:
        """One of the open handles, of these modes where there is one."""
        found = [each for each in self.handles if each.model.mode in modes] or self.handles
        return found[number % len(found)]

    def place(self, handle: Handle, where: Range) -> tuple[int, int]:
        """A range that lies inside what the handle knows."""
        page, more, count = where
        # The last number stands for where the pages of the file end, for there things go wrong.
        begin = whole_pages(len(self.file)) if page == PAGES else page * PAGE_SIZE
        offset = min(max(begin + more, 0), handle.model.length)
        return offset, min(count, handle.model.length - offset)

    def view_of(self, number: int, *kinds: str) -> View | None:
        """One of the views of these kinds."""
        found = [each for each in self.views if each.kind in kinds]
        return found[number % len(found)] if found else None

    def furthest_view(self, handle: Handle) -> int:
        """Where the view of a handle ends that reaches furthest, whichever of its mappings it points into."""
        return max((view.end for view in self.views if view.handle is handle), default=0)

    def may_store(self, region: RegionModel, offset: int, count: int) -> bool:
        """Whether it is known what a store does: not where it is half on a missing page or behind the end."""
        missing = region.first_missing(offset, count)
        if missing is not None:
            return missing * PAGE_SIZE <= offset
        return region.changes is not None or offset + count <= len(self.file)

    def stored(
        self, handle: Handle, region: RegionModel, offset: int, data: bytes, call: Callable[[], object]
    ) -> bool:
        """Do a checked store, in one mapping of a handle; whether it met no missing page."""
        if region.first_missing(offset, len(data)) is not None:
            region.faulted = True
            with pytest.raises(MappingFault):
                call()
            return False
        call()
        region.store(offset, data)
        if data:
            handle.books.note(len(data))
        return True

    def given_back(self, view: View) -> None:
        """The write of a mutable view that has ended is on the books."""
        if view.is_mutable and not view.released:
            view.handle.books.bytes_exported -= view.count
            if view.count:
                view.handle.books.note(view.count)

    # What must hold after every step.

    @invariant()
    def everything_is_as_the_model_has_it(self) -> None:
        """Walk through the file, every handle and every view."""
        if not self.handles:
            return
        assert self.path.read_bytes() == self.file.content
        for handle in self.handles:
            # A mapping goes with the last that points into it.
            pointed = [view.region for view in self.views]
            handle.model.outgrown = [region for region in handle.model.outgrown if region in pointed]
            self.check_handle(handle)
        for view in self.views:
            # Others are left as they are, for a rule to meet the fault.
            if not view.is_missing:
                self.check_view(view)

    def check_handle(self, handle: Handle) -> None:
        """Its length, its books, what it shows, and that no view of it is forgotten."""
        mapped, model = handle.mapped, handle.model
        assert not mapped.closed
        if model.mode is MmapMode.READ_WRITE:
            assert mapped.pending_bytes == handle.books.pending_bytes
            assert mapped.needs_flush() == handle.books.dirty
        else:
            assert (mapped.pending_bytes, mapped.needs_flush()) == (0, False)
        if model.faulted:
            for call in (lambda: len(mapped), lambda: mapped.read_bytes(0, 0), mapped.flush):
                with pytest.raises(MappingFault):
                    call()
            return
        assert len(mapped) == model.length
        assert mapped.reserved == model.reserved, (mapped.reserved, model.reserved)
        if model.is_whole:
            assert mapped.read_bytes(0, model.length) == model.stores.shown(0, model.length)
        end = self.furthest_view(handle)
        size = min(end, len(self.file)) - 1
        if model.mode is MmapMode.READ_WRITE and size > 0:
            with pytest.raises(ResizeFailed, match=f"byte {end};"):
                mapped.resize(size)

    def check_view(self, view: View) -> None:
        """What it shows, to who is checked and to who is not."""
        held, region, offset, count = view.held, view.region, view.offset, view.count
        if view.kind == "slice" and region.faulted:
            for use in (memoryview, bytes, lambda each: each == b""):
                with pytest.raises(MappingFault):
                    use(held)
        elif view.kind == "slice":
            shown = region.foreign(offset, count)
            assert bytes(memoryview(held)) == shown
            with faults_if(region.faulted):
                assert bytes(held) == shown
            with faults_if(region.faulted):
                assert held == shown
        elif view.kind in ("buffer", "mutable buffer"):
            assert bytes(held) == region.foreign(offset, count)
        elif view.kind == "mutable":
            if view.released or not view.handle.is_open:
                with pytest.raises(Closed):
                    held.tobytes()
                return
            private = region.changes is not None and not region.faulted
            expected = region.foreign(offset, count) if private else region.guarded(offset, count)
            with faults_if(region.faulted):
                assert held.tobytes() == expected
        elif view.kind in ("word", "words") and count:
            for at in {0, count - 8}:
                word = held if view.kind == "word" else held[at // 8]
                value = region.guarded(offset + at, 8)
                with faults_if(region.faulted):
                    assert word.load().to_bytes(8, "little") == value
