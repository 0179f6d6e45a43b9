"""Every offset and length is checked against the file, and nothing wraps around."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmapio import MemoryMappedFile, MmapIoError, OutOfBounds, ResizeFailed
from tests.unit.mmapio.footprint import footprint

SIZE = 4096
HUGE = 2**63
OUTSIDE = [
    (-1, 1), (0, -1), (-HUGE, 1), (0, -HUGE),
    (SIZE, 1), (SIZE + 1, 0), (0, SIZE + 1), (1, SIZE), (SIZE - 1, 2),
    (HUGE - 1, 1), (HUGE, 0), (HUGE + 1, 1), (2**64 - 1, 1), (2**64, 0), (2**64 + 1, 1), (2**70, 0),
    (0, HUGE - 1), (0, HUGE), (1, HUGE - 1), (1, 2**64 - 1), (0, 2**64), (SIZE, 2**64 - SIZE), (0, 2**70),
    (HUGE - 1, HUGE - 1), (HUGE, HUGE),
]  # fmt: skip
INSIDE = [(0, 0), (0, 1), (0, SIZE), (SIZE, 0), (SIZE - 1, 1), (17, 100)]


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[MemoryMappedFile]:
    """A file of one page holding 0, 1, 2, ..."""
    with MemoryMappedFile.create_rw(tmp_path / "file", SIZE) as made:
        made.update_region(0, bytes(range(256)) * (SIZE // 256))
        yield made


@pytest.mark.parametrize(("offset", "length"), OUTSIDE)
def test_a_range_outside_is_an_error_that_gives_the_numbers(
    mapped: MemoryMappedFile, offset: int, length: int
) -> None:
    """One unchecked sum that wraps, and a look goes anywhere in memory."""
    for read in (mapped.as_slice, mapped.read_bytes):
        with pytest.raises(OutOfBounds, match=f"{SIZE} bytes") as raised:
            read(offset, length)
        assert isinstance(raised.value, IndexError)
        assert isinstance(raised.value, MmapIoError)
        assert raised.value.filename == mapped.path


@pytest.mark.parametrize(("offset", "length"), INSIDE)
def test_a_range_inside_is_served(mapped: MemoryMappedFile, offset: int, length: int) -> None:
    """The last byte and the empty range at the very end belong to the file."""
    expected = (bytes(range(256)) * (SIZE // 256))[offset : offset + length]
    assert bytes(mapped.as_slice(offset, length)) == expected
    assert mapped.read_bytes(offset, length) == expected


def test_a_slice_without_a_length_goes_to_the_end(mapped: MemoryMappedFile) -> None:
    """And from beyond the end it goes nowhere."""
    assert len(mapped.as_slice()) == SIZE
    assert len(mapped.as_slice(SIZE - 5)) == 5
    assert len(mapped.as_slice(SIZE)) == 0
    for offset in (SIZE + 1, HUGE, 2**64, -1):
        with pytest.raises(OutOfBounds):
            mapped.as_slice(offset)


@pytest.mark.parametrize("offset", [-1, SIZE - 2, SIZE, SIZE + 1, HUGE - 1, HUGE, 2**64 - 1, 2**64, 2**70])
def test_a_write_that_reaches_outside_writes_nothing(
    mapped: MemoryMappedFile, tmp_path: Path, offset: int
) -> None:
    """Not even the part of it that fits."""
    before = footprint(tmp_path)
    with pytest.raises(OutOfBounds):
        mapped.update_region(offset, b"abc")
    assert footprint(tmp_path) == before


def test_a_write_at_the_very_end_fits(mapped: MemoryMappedFile) -> None:
    """An off-by-one in the check above would refuse it."""
    mapped.update_region(SIZE - 3, b"abc")
    mapped.update_region(SIZE, b"")
    assert bytes(mapped.as_slice(SIZE - 4)) == b"\xfcabc"


@pytest.mark.parametrize("wrong", [1.5, "1", None, b"1", [1]])
def test_an_offset_that_is_no_integer_is_a_type_error(mapped: MemoryMappedFile, wrong: object) -> None:
    """A float that is cut silently is an offset that nobody asked for."""
    for call in (
        lambda: mapped.as_slice(wrong, 1),
        lambda: mapped.read_bytes(wrong, 1),
        lambda: mapped.read_bytes(0, wrong),
        lambda: mapped.update_region(wrong, b"x"),
    ):
        with pytest.raises(TypeError):
            call()


def test_anything_with_an_index_is_an_integer(mapped: MemoryMappedFile) -> None:
    """Numbers of array libraries are no ``int``."""

    class Three:
        def __index__(self) -> int:
            return 3

    assert bytes(mapped.as_slice(Three(), Three())) == b"\3\4\5"


@pytest.mark.parametrize("wrong", ["text", None, 5, 1.5, [1, 2], object()])
def test_what_is_no_buffer_cannot_be_written(mapped: MemoryMappedFile, wrong: object) -> None:
    """There is no encoding to guess."""
    with pytest.raises(TypeError, match="bytes-like"):
        mapped.update_region(0, wrong)


def test_a_buffer_with_holes_cannot_be_written(mapped: MemoryMappedFile) -> None:
    """Its bytes do not lie in a row."""
    with pytest.raises(BufferError):
        mapped.update_region(0, memoryview(b"abcdef")[::2])
    assert mapped.read_bytes(0, 3) == b"\0\1\2"


@pytest.mark.parametrize("data", [b"abc", bytearray(b"abc"), memoryview(b"xabcx")[1:4]])
def test_any_contiguous_buffer_can_be_written(mapped: MemoryMappedFile, data: bytes) -> None:
    """Copying to bytes first would double the cost."""
    mapped.update_region(10, data)
    assert mapped.read_bytes(9, 5) == b"\x09abc\x0d"


def test_a_file_can_be_written_from_its_own_slice(mapped: MemoryMappedFile) -> None:
    """Source and target overlap, which a plain copy may garble."""
    expected = bytearray(mapped.read_bytes(0, SIZE))
    expected[1:3001] = expected[0:3000]
    mapped.update_region(1, mapped.as_slice(0, 3000))
    assert mapped.read_bytes(0, SIZE) == bytes(expected)
    expected[0:3000] = expected[5:3005]
    mapped.update_region(0, mapped.as_slice(5, 3000))
    assert mapped.read_bytes(0, SIZE) == bytes(expected)


@pytest.mark.parametrize("size", [0, -1, 0x7FFFFFFFFFFFF001, 2**63, 2**64, 2**70])
def test_an_impossible_new_size_is_refused(mapped: MemoryMappedFile, tmp_path: Path, size: int) -> None:
    """Nothing of the file may be gone afterwards."""
    before = footprint(tmp_path)
    with pytest.raises(ValueError, match=str(size)):
        mapped.resize(size)
    assert footprint(tmp_path) == before
    assert len(mapped) == SIZE


@pytest.mark.parametrize("wrong", [1.5, "8192", None])
def test_a_new_size_that_is_no_integer_is_refused(
    mapped: MemoryMappedFile, tmp_path: Path, wrong: object
) -> None:
    """``resize(1.5)`` once cut a file down to one byte."""
    before = footprint(tmp_path)
    with pytest.raises(TypeError):
        mapped.resize(wrong)
    assert footprint(tmp_path) == before


def test_a_size_that_the_system_refuses_leaves_the_file_as_it_was(
    mapped: MemoryMappedFile, tmp_path: Path
) -> None:
    """Half a growth is a file whose end nobody knows."""
    before = (tmp_path / "file").read_bytes()
    with pytest.raises(ResizeFailed, match="cannot grow from 4096 to") as raised:
        mapped.resize(1 << 60)
    assert isinstance(raised.value, BufferError)
    assert raised.value.errno
    assert (tmp_path / "file").read_bytes() == before
    mapped.resize(2 * SIZE)
    assert len(mapped) == 2 * SIZE
