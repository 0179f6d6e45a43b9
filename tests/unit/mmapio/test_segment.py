"""Segments: ranges that hold no memory and are looked up again at every use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapio import (
    PAGE_SIZE,
    Closed,
    InvalidMode,
    MappingFault,
    MemoryMappedFile,
    OutOfBounds,
    Segment,
    SegmentMut,
)
from tests.unit.mmapio.footprint import unchanged

SIZE = 2 * PAGE_SIZE
KINDS = [Segment, SegmentMut]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two pages, x and y."""
    made = tmp_path / "file"
    made.write_bytes(b"x" * PAGE_SIZE + b"y" * PAGE_SIZE)
    return made


@pytest.fixture
def mapped(path: Path) -> Iterator[MemoryMappedFile]:
    """It, for reading and writing."""
    with MemoryMappedFile.open_rw(path) as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_says_what_it_is(mapped: MemoryMappedFile, kind: type[Segment]) -> None:
    """Its file, its offset, its length."""
    segment = kind(mapped, PAGE_SIZE - 1, 2)
    assert segment.parent is mapped
    assert (segment.offset, len(segment), segment.is_empty(), segment.is_valid()) == (
        PAGE_SIZE - 1,
        2,
        False,
        True,
    )
    assert bytes(segment.as_slice()) == b"xy"
    assert kind.__name__ in repr(segment)
    assert f"2 bytes at offset {PAGE_SIZE - 1}" in repr(segment)
    assert issubclass(SegmentMut, Segment)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [(0, 0), (SIZE, 0), (SIZE - 1, 1), (0, SIZE)])
def test_a_range_at_the_edge_is_inside(
    mapped: MemoryMappedFile, kind: type[Segment], where: tuple[int, int]
) -> None:
    """The empty one at the very end, too."""
    segment = kind(mapped, *where)
    assert segment.is_valid()
    assert segment.is_empty() == (where[1] == 0)
    assert len(segment.as_slice()) == where[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "where", [(-1, 1), (0, -1), (SIZE, 1), (SIZE + 1, 0), (1, SIZE), (2**63, 1), (1, 2**64 - 1)]
)
def test_a_range_outside_is_refused_at_once(
    mapped: MemoryMappedFile, kind: type[Segment], where: tuple[int, int]
) -> None:
    """With the numbers; a segment that was never valid is a mistake of whoever makes it."""
    with pytest.raises(OutOfBounds, match=f"{SIZE} bytes"):
        kind(mapped, *where)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [("0", 1), (0, 1.5), (None, 1)])
def test_what_is_no_number_is_refused(
    mapped: MemoryMappedFile, kind: type[Segment], where: tuple[Any, Any]
) -> None:
    """Nor a float that happens to be whole."""
    with pytest.raises(TypeError):
        kind(mapped, *where)


@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_stands_in_the_way_of_nothing(mapped: MemoryMappedFile, kind: type[Segment]) -> None:
    """And notices what happened: outside after a cut, inside again when the file is longer, and closed."""
    segment = kind(mapped, PAGE_SIZE, 10)
    mapped.resize(PAGE_SIZE + 9)
    assert not segment.is_valid()
    with pytest.raises(OutOfBounds, match=f"10 bytes at offset {PAGE_SIZE}"):
        segment.as_slice()
    assert (segment.offset, len(segment)) == (PAGE_SIZE, 10)
    mapped.resize(PAGE_SIZE + 10)
    assert segment.is_valid()
    assert bytes(segment.as_slice()) == b"y" * 9 + b"\0"
    mapped.close()
    assert not segment.is_valid()
    with pytest.raises(Closed):
        segment.as_slice()


def test_a_segment_follows_growth_beyond_the_reservation(path: Path) -> None:
    """It holds no address that could be the old one."""
    with MemoryMappedFile.open_rw(path, reserve=SIZE) as mapped:
        segment = SegmentMut(mapped, 0, 3)
        mapped.resize(1000 * PAGE_SIZE)
        segment.write(b"abc")
        assert bytes(segment.as_slice()) == mapped[0:3] == b"abc"


@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_of_a_file_that_others_cut_is_not_valid(
    mapped: MemoryMappedFile, path: Path, kind: type[Segment]
) -> None:
    """Asking uses no bytes: the answer is no, and not an exception, until the handle has looked again."""
    segment = kind(mapped, PAGE_SIZE, 10)
    os.truncate(path, 10)
    with pytest.raises(MappingFault):
        mapped.read_bytes(PAGE_SIZE, 1)
    assert segment.is_valid() is False
    with pytest.raises(MappingFault):
        segment.as_slice()
    mapped.refresh()
    assert segment.is_valid() is False
    with pytest.raises(OutOfBounds):
        segment.as_slice()


def test_a_segment_is_written_from_its_beginning(mapped: MemoryMappedFile, path: Path) -> None:
    """Any contiguous buffer; what is shorter leaves the rest as it was, and all of it is counted."""
    mapped.flush()
    segment = SegmentMut(mapped, PAGE_SIZE - 2, 4)
    segment.write(b"ab")
    assert path.read_bytes()[PAGE_SIZE - 3 : PAGE_SIZE + 3] == b"xabyyy"
    segment.write(memoryview(b"-AbCd-")[1:5])
    assert path.read_bytes()[PAGE_SIZE - 3 : PAGE_SIZE + 3] == b"xAbCdy"
    assert mapped.pending_bytes == 6
    segment.write(b"")
    with segment.as_slice_mut() as view:
        assert len(view) == 4
        view[3] = ord("Z")
    assert bytes(segment.as_slice()) == b"AbCZ"


def test_what_is_longer_than_the_segment_is_not_written(mapped: MemoryMappedFile, path: Path) -> None:
    """The crate runs over into the neighbour. Bytes are counted, not items."""
    segment = SegmentMut(mapped, 0, 4)
    with unchanged(path.parent):
        with pytest.raises(OutOfBounds, match="5 bytes do not fit into a segment of 4") as raised:
            segment.write(b"abcde")
        assert raised.value.filename == str(path)
        with pytest.raises(OutOfBounds, match="8 bytes"):
            segment.write(memoryview(bytes(8)).cast("Q"))
        with pytest.raises(OutOfBounds):
            SegmentMut(mapped, SIZE, 0).write(b"a")


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ("ab", TypeError),
        (None, TypeError),
        (5, TypeError),
        ([1], TypeError),
        (memoryview(b"abcd")[::2], BufferError),
    ],
    ids=repr,
)
def test_what_is_no_contiguous_buffer_is_not_written(
    mapped: MemoryMappedFile, path: Path, wrong: Any, kind: type[Exception]
) -> None:
    """As with update_region."""
    with unchanged(path.parent), pytest.raises(kind):
        SegmentMut(mapped, 0, 4).write(wrong)


def test_a_segment_that_was_cut_is_not_written_in_part(mapped: MemoryMappedFile, path: Path) -> None:
    """Not even when the data would fit into what is left: the range is no longer what it was."""
    segment = SegmentMut(mapped, 0, SIZE)
    mapped.resize(PAGE_SIZE)
    with unchanged(path.parent):
        for use in (lambda: segment.write(b"a"), lambda: segment.write(b""), segment.as_slice_mut):
            with pytest.raises(OutOfBounds):
                use()


def test_a_writable_segment_needs_a_writable_mapping(path: Path) -> None:
    """Said when it is made, not at the first write; a private copy will do."""
    with MemoryMappedFile.open_ro(path) as mapped:
        with pytest.raises(InvalidMode, match="open_rw"):
            SegmentMut(mapped, 0, 1)
        assert bytes(Segment(mapped, 0, 2).as_slice()) == b"xx"
    with MemoryMappedFile.open_cow(path) as private, unchanged(path.parent):
        SegmentMut(private, 0, 1).write(b"m")
        assert private[0] == ord("m")
