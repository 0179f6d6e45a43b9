"""Going through a file in pieces: views, copies, and writable ones handed to a function."""

from __future__ import annotations

import collections
import copy
import operator
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmapio import (
    PAGE_SIZE,
    Closed,
    InvalidSize,
    MappedSlice,
    MappedSliceMut,
    MappingFault,
    MemoryMappedFile,
    OutOfBounds,
    ResizeFailed,
)
from tests.unit.mmapio.footprint import unchanged

SIZE = 3 * PAGE_SIZE + 100
CONTENT = bytes(n * 7 % 253 for n in range(SIZE))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of three pages and a bit."""
    made = tmp_path / "file"
    made.write_bytes(CONTENT)
    return made


@pytest.fixture
def mapped(path: Path) -> Iterator[MemoryMappedFile]:
    """It, for reading and writing."""
    with MemoryMappedFile.open_rw(path) as made:
        yield made


OPENERS = [MemoryMappedFile.open_ro, MemoryMappedFile.open_rw, MemoryMappedFile.open_cow]


@pytest.mark.parametrize("opener", OPENERS, ids=["ro", "rw", "cow"])
@pytest.mark.parametrize("size", [1000, PAGE_SIZE, SIZE - 1, SIZE, SIZE + 1, 2**62])
def test_the_pieces_are_the_file(path: Path, opener: Callable[[Path], MemoryMappedFile], size: int) -> None:
    """All of one length but the last, which is what is left and never empty."""
    expected = [CONTENT[at : at + size] for at in range(0, SIZE, size)]
    with opener(path) as mapped:
        views = list(mapped.chunks(size))
        copies = list(mapped.chunks_owned(size))
        assert [bytes(view) for view in views] == copies == expected
        assert {type(view) for view in views} == {MappedSlice}
        assert {type(each) for each in copies} == {bytes}
        assert operator.length_hint(mapped.chunks(size)) == len(expected)


@given(length=st.integers(0, 50), size=st.integers(1, 60))
def test_any_length_in_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, length: int, size: int
) -> None:
    """Off by one at the end is a byte lost, or one too many."""
    path = tmp_path_factory.getbasetemp() / "of_any_length"
    path.write_bytes(CONTENT[:length])
    with MemoryMappedFile.open_rw(path) as mapped:
        assert [bytes(view) for view in mapped.chunks(size)] == [
            CONTENT[at : min(at + size, length)] for at in range(0, length, size)
        ]
        offsets: list[tuple[int, int]] = []
        mapped.chunks_mut(size).for_each_mut(lambda offset, view: offsets.append((offset, len(view))))
        assert offsets == [(at, min(size, length - at)) for at in range(0, length, size)]
        assert b"".join(mapped.chunks_owned(size)) == CONTENT[:length]


def test_pages_are_chunks_of_a_page(mapped: MemoryMappedFile) -> None:
    """Whatever a page is on this machine."""
    assert [len(page) for page in mapped.pages()] == [PAGE_SIZE] * 3 + [100]
    assert b"".join(mapped.pages_owned()) == CONTENT


def test_views_are_not_copies_and_copies_are_not_views(mapped: MemoryMappedFile) -> None:
    """What is written later shows in the one and not in the other."""
    view, owned = next(mapped.chunks(10)), next(mapped.chunks_owned(10))
    mapped.update_region(0, b"x" * 10)
    assert bytes(view) == b"x" * 10
    assert owned == CONTENT[:10]


def test_an_iterator_that_is_through_stays_so(mapped: MemoryMappedFile) -> None:
    """One that begins again makes an endless loop of ``for`` twice over the same."""
    for chunks in (mapped.chunks(SIZE), mapped.chunks_owned(SIZE)):
        assert iter(chunks) is chunks
        next(chunks)
        mapped.resize(2 * SIZE)
        for _ in range(3):
            with pytest.raises(StopIteration):
                next(chunks)
        assert operator.length_hint(chunks) == 0
        mapped.resize(SIZE)


def test_growth_meanwhile_is_not_seen(mapped: MemoryMappedFile) -> None:
    """The end was fixed when it began; a loop that appends would never end."""
    seen = 0
    for view in mapped.chunks(PAGE_SIZE):
        seen += len(view)
        mapped.resize(len(mapped) + PAGE_SIZE)
        mapped.update_region(len(mapped) - 3, b"end")
    assert seen == SIZE
    assert len(mapped) == SIZE + 4 * PAGE_SIZE


def test_growth_beyond_the_reservation_meanwhile_moves_nothing(path: Path) -> None:
    """The iterator goes on in the old mapping, of the same pages."""
    with MemoryMappedFile.open_rw(path, reserve=4 * PAGE_SIZE) as mapped:
        chunks = mapped.chunks(PAGE_SIZE)
        first = next(chunks)
        mapped.resize(1000 * PAGE_SIZE)
        mapped.update_region(PAGE_SIZE, b"late")
        assert bytes(first) == CONTENT[:PAGE_SIZE]
        assert bytes(next(chunks))[:4] == b"late"
        assert [len(view) for view in chunks] == [PAGE_SIZE, 100]
        assert mapped.reserved >= 1000 * PAGE_SIZE


@pytest.mark.parametrize("kind", ["chunks", "chunks_owned"])
def test_the_file_cannot_be_cut_while_it_is_gone_through(
    mapped: MemoryMappedFile, path: Path, kind: str
) -> None:
    """What is still to come must be there when it comes; after the last piece nothing stands in the way."""
    chunks = getattr(mapped, kind)(PAGE_SIZE)
    next(chunks)
    with unchanged(path.parent), pytest.raises(ResizeFailed, match=f"live view reaches to byte {SIZE}"):
        mapped.resize(PAGE_SIZE)
    collections.deque(chunks, maxlen=0)
    mapped.resize(2 * PAGE_SIZE)
    abandoned = getattr(mapped, kind)(PAGE_SIZE)
    next(abandoned)
    del abandoned
    mapped.resize(PAGE_SIZE)
    assert len(mapped) == PAGE_SIZE


def test_going_through_a_file_that_is_closed_meanwhile(path: Path) -> None:
    """As a view, it goes on; whatever asks the handle is refused."""
    mapped = MemoryMappedFile.open_rw(path)
    chunks, owned = mapped.chunks(PAGE_SIZE), mapped.chunks_owned(PAGE_SIZE)
    next(chunks)
    mapped.close()
    assert sum(map(len, chunks)) == SIZE - PAGE_SIZE
    assert b"".join(owned) == CONTENT
    with pytest.raises(Closed):
        mapped.chunks(1)


def test_going_through_a_file_that_others_cut(mapped: MemoryMappedFile, path: Path) -> None:
    """An exception; zeros would be taken for what the file holds."""
    chunks, owned = mapped.chunks(PAGE_SIZE), mapped.chunks_owned(PAGE_SIZE)
    first = next(chunks)
    os.truncate(path, PAGE_SIZE)
    assert next(owned) == bytes(first) == CONTENT[:PAGE_SIZE]
    with pytest.raises(MappingFault):
        next(owned)
    with pytest.raises(MappingFault):
        bytes(next(chunks))
    mapped.refresh()
    assert [len(view) for view in mapped.chunks(PAGE_SIZE)] == [PAGE_SIZE]


SIZES: list[tuple[Any, type[Exception]]] = [
    (0, InvalidSize),
    (-1, InvalidSize),
    (2**63, InvalidSize),
    (2**70, InvalidSize),
    (-(2**70), InvalidSize),
    (1.5, TypeError),
    ("1", TypeError),
    (None, TypeError),
]


@pytest.mark.parametrize(("size", "kind"), SIZES, ids=repr)
def test_a_size_that_no_piece_can_have(mapped: MemoryMappedFile, size: Any, kind: type[Exception]) -> None:
    """Pieces of nothing make an endless loop. It is said at once, not at the first piece."""
    for make in (mapped.chunks, mapped.chunks_owned, mapped.chunks_mut):
        with pytest.raises(kind, match=str(size) if kind is InvalidSize else None):
            make(size)


def test_writable_pieces_are_handed_over_in_order(mapped: MemoryMappedFile, path: Path) -> None:
    """Each with its offset, and what is stored in it is in the file."""
    offsets = []

    def work(offset: int, view: MappedSliceMut) -> None:
        assert type(view) is MappedSliceMut
        assert bytes(view) == CONTENT[offset : offset + len(view)]
        offsets.append((offset, len(view)))
        view[0:2] = offset.to_bytes(2, "little")

    mapped.chunks_mut(PAGE_SIZE).for_each_mut(work)
    assert offsets == [
        (0, PAGE_SIZE),
        (PAGE_SIZE, PAGE_SIZE),
        (2 * PAGE_SIZE, PAGE_SIZE),
        (3 * PAGE_SIZE, 100),
    ]
    for offset, _ in offsets:
        assert path.read_bytes()[offset : offset + 2] == offset.to_bytes(2, "little")


def test_each_writable_piece_is_on_the_books_once(mapped: MemoryMappedFile) -> None:
    """In the crate these writes are invisible to flush, which then skips."""
    mapped.flush()
    pending = []
    mapped.chunks_mut(PAGE_SIZE).for_each_mut(lambda offset, view: pending.append(mapped.pending_bytes))
    assert pending == [PAGE_SIZE, 2 * PAGE_SIZE, 3 * PAGE_SIZE, SIZE]
    assert mapped.pending_bytes == SIZE
    assert mapped.needs_flush()


def test_what_the_function_raises_ends_it_and_is_raised(mapped: MemoryMappedFile) -> None:
    """The pieces before stay written, the view is given back, and the exception is the very same."""
    views: list[MappedSliceMut] = []
    mistake = ZeroDivisionError("mine")

    def work(offset: int, view: MappedSliceMut) -> None:
        views.append(view)
        view[0] = 255
        if offset == PAGE_SIZE:
            raise mistake

    with pytest.raises(ZeroDivisionError) as raised:
        mapped.chunks_mut(PAGE_SIZE).for_each_mut(work)
    assert raised.value is mistake
    assert [view.is_released for view in views] == [True, True]
    assert [mapped[0], mapped[PAGE_SIZE], mapped[2 * PAGE_SIZE]] == [255, 255, CONTENT[2 * PAGE_SIZE]]
    assert mapped.pending_bytes == 2 * PAGE_SIZE


def test_the_old_way_returns_what_the_function_raises(mapped: MemoryMappedFile) -> None:
    """Its failure, or None. What is no failure of the function is raised all the same."""

    def work(offset: int, view: MappedSliceMut) -> None:
        view[0] = 255
        if offset == PAGE_SIZE:
            raise mistake

    mistake: BaseException = ZeroDivisionError("mine")
    pieces = mapped.chunks_mut(PAGE_SIZE)
    assert pieces.for_each_mut_legacy(work) is mistake
    assert [mapped[0], mapped[PAGE_SIZE], mapped[2 * PAGE_SIZE]] == [255, 255, CONTENT[2 * PAGE_SIZE]]
    assert pieces.for_each_mut_legacy(lambda offset, view: None) is None
    mistake = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        pieces.for_each_mut_legacy(work)
    mistake = Closed(9, "the function's own")
    assert pieces.for_each_mut_legacy(work) is mistake
    mapped.close()
    with pytest.raises(Closed, match="open it again"):
        pieces.for_each_mut_legacy(work)


def test_a_function_that_closes_the_file(mapped: MemoryMappedFile) -> None:
    """The next piece cannot be had; the one at hand can be given back."""
    with pytest.raises(Closed):
        mapped.chunks_mut(PAGE_SIZE).for_each_mut(lambda offset, view: mapped.close())


def test_a_function_that_changes_the_length(mapped: MemoryMappedFile) -> None:
    """Longer is not seen; shorter is an error, for the next piece is no longer there."""
    seen: list[int] = []

    def work(offset: int, view: MappedSliceMut) -> None:
        seen.append(offset)
        if len(seen) == 1:
            mapped.resize(10 * PAGE_SIZE)
        if len(seen) == 6:
            with pytest.raises(ResizeFailed):
                mapped.resize(offset + len(view) - 1)
            mapped.resize(offset + len(view))

    pieces = mapped.chunks_mut(PAGE_SIZE)
    pieces.for_each_mut(work)
    assert seen == [0, PAGE_SIZE, 2 * PAGE_SIZE, 3 * PAGE_SIZE]
    with pytest.raises(OutOfBounds):
        pieces.for_each_mut(work)
    assert len(mapped) == 2 * PAGE_SIZE


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_iterator_cannot_be_copied_or_pickled(
    mapped: MemoryMappedFile, duplicate: Callable[[object], object]
) -> None:
    """A duplicate would not be on the list of views that a resize waits for."""
    with pytest.raises(TypeError):
        duplicate(mapped.chunks(1))
