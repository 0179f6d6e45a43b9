"""Whatever is wrong, with an argument, the file or the system: a typed error that gives the numbers."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapio import (
    PAGE_SIZE,
    InvalidMode,
    InvalidSize,
    MappingFault,
    MemoryMappedFile,
    Misaligned,
    MmapAdvice,
    MmapIoError,
    MmapMode,
    OutOfBounds,
    ResizeFailed,
    Segment,
    SegmentMut,
    copy_mmap,
    create_mmap,
    delete_mmap,
    load_mmap,
    write_mmap,
)
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import outcome, unprivileged
from tests.unit.mmapio.volume import VOLUME_BYTES, fill, small_volume  # noqa: F401

SIZE = 4096 + 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with something in it."""
    made = tmp_path / "file"
    made.write_bytes(os.urandom(SIZE))
    return made


@pytest.fixture
def mapped(path: Path) -> Iterator[MemoryMappedFile]:
    """It, for reading and writing."""
    with MemoryMappedFile.open_rw(path) as made:
        yield made


OPENERS: dict[str, Callable[[Any], Any]] = {
    "open_rw": MemoryMappedFile.open_rw,
    "open_ro": MemoryMappedFile.open_ro,
    "open_cow": MemoryMappedFile.open_cow,
    "builder.open": lambda path: MemoryMappedFile.builder(path).open(),
    "load_mmap": load_mmap,
    "write_mmap": lambda path: write_mmap(path, 0, b"x"),
}
CREATORS: dict[str, Callable[[Any], Any]] = {
    "create_rw": lambda path: MemoryMappedFile.create_rw(path, 4096),
    "open_or_create": lambda path: MemoryMappedFile.open_or_create(path, 4096),
    "builder.create": lambda path: MemoryMappedFile.builder(path).size(4096).create(),
    "builder.open_or_create": lambda path: MemoryMappedFile.builder(path).size(4096).open_or_create(),
    "create_mmap": lambda path: create_mmap(path, 4096),
}
ALL = OPENERS | CREATORS


class Named:
    """What ``os.fspath`` takes, and no more."""

    def __init__(self, path: str | bytes) -> None:
        self.path = path

    def __fspath__(self) -> str | bytes:
        return self.path


SPELLINGS: dict[str, Callable[[Path], Any]] = {
    "str": os.fspath,
    "bytes": os.fsencode,
    "Path": lambda path: path,
    "PathLike of str": lambda path: Named(os.fspath(path)),
    "PathLike of bytes": lambda path: Named(os.fsencode(path)),
    "relative": lambda path: os.path.relpath(path),
}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_path_may_be_spelt_in_any_way(
    path: Path, make: Callable[[Any], Any], spell: Callable[[Path], Any]
) -> None:
    """As ``open`` has it. What a handle tells is text or bytes, as given."""
    made = make(spell(path))
    if made is not None:
        assert type(made.path) is (bytes if isinstance(os.fspath(spell(path)), bytes) else str)
        assert Path(os.fsdecode(made.path)).samefile(path)
        made.close()


def test_a_name_that_is_no_text_is_a_name(tmp_path: Path) -> None:
    """The system's names are bytes; those that are no UTF-8 come as surrogates or as bytes."""
    raw = os.fsencode(tmp_path) + b"/\xff\xfe"
    with MemoryMappedFile.create_rw(raw, 10) as mapped:
        mapped.update_region(0, b"abc")
        mapped.flush()
        assert "\\xff" in repr(mapped)
    with MemoryMappedFile.open_ro(os.fsdecode(raw)) as mapped:
        assert mapped[0:3] == b"abc"
    copy_mmap(raw, raw + b"2")
    delete_mmap(raw)
    with pytest.raises(OutOfBounds) as raised:
        MemoryMappedFile.open_ro(raw + b"2").read_bytes(0, 11)
    assert raised.value.filename == raw + b"2"


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("wrong", [None, 5, 1.5, ["x"], object()], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_path_is_refused(tmp_path: Path, make: Callable[[Any], Any], wrong: object) -> None:
    """A descriptor's number is no path either: from_file takes those."""
    with unchanged(tmp_path), pytest.raises(TypeError):
        make(wrong)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("", FileNotFoundError),
        ("missing/file", FileNotFoundError),
        ("file/below", NotADirectoryError),
        ("loop", OSError),
        ("n" * 300, OSError),
        ("nul\0", ValueError),
    ],
    ids=["empty", "missing", "below a file", "loop", "too long", "nul"],
)
def test_a_path_that_leads_nowhere_is_the_systems_error(
    path: Path, make: Callable[[Any], Any], name: str, kinds: type[Exception]
) -> None:
    """Its subclass, its number, the name; and nothing is left behind."""
    (path.parent / "loop").symlink_to("loop")
    place = f"{path.parent}/{name}" if name else ""
    with unchanged(path.parent), pytest.raises(kinds) as raised:
        make(place)
    if isinstance(raised.value, OSError):
        assert raised.value.errno
        assert raised.value.filename == place


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, make: Callable[[Any], Any]) -> None:
    """Opening a FIFO waits for the other end; a device, a socket or a directory cannot be mapped."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    with unchanged(tmp_path):
        with pytest.raises(IsADirectoryError) as raised:
            make(tmp_path / "directory")
        assert raised.value.filename == str(tmp_path / "directory")
        for strange in (tmp_path / "fifo", Path(os.devnull)):
            with pytest.raises(OSError, match="not a regular file"):
                make(strange)


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_permissions_count(path: Path, make: Callable[[Any], Any]) -> None:
    """PermissionError, whatever the mode; the file may be its own or lie in a directory that is sealed."""
    path.chmod(0)

    def work() -> list[str]:
        found = [outcome(lambda: make(path))[0]]
        os.chmod(path, 0o600)  # noqa: PTH101
        os.chmod(path.parent, 0)  # noqa: PTH101
        return [*found, outcome(lambda: make(path))[0], outcome(lambda: make(path.with_name("new")))[0]]

    assert unprivileged(work) == ["PermissionError"] * 3
    path.parent.chmod(0o700)
    assert [each.name for each in path.parent.iterdir()] == ["file"]


RANGES: dict[str, Callable[[MemoryMappedFile, int, int], object]] = {
    "as_slice": lambda mapped, offset, length: mapped.as_slice(offset, length),
    "as_slice_mut": lambda mapped, offset, length: mapped.as_slice_mut(offset, length),
    "read_bytes": lambda mapped, offset, length: mapped.read_bytes(offset, length),
    "flush_range": lambda mapped, offset, length: mapped.flush_range(offset, length),
    "Segment": lambda mapped, offset, length: Segment(mapped, offset, length),
    "SegmentMut": lambda mapped, offset, length: SegmentMut(mapped, offset, length),
    "advise": lambda mapped, offset, length: mapped.advise(offset, length, MmapAdvice.NORMAL),
    "prefetch_range": lambda mapped, offset, length: mapped.prefetch_range(offset, length),
    "lock": lambda mapped, offset, length: mapped.lock(offset, length),
    "unlock": lambda mapped, offset, length: mapped.unlock(offset, length),
    "touch_pages_range": lambda mapped, offset, length: mapped.touch_pages_range(offset, length),
    "resident": lambda mapped, offset, length: mapped.resident(offset, length),
    "punch_hole": lambda mapped, offset, length: mapped.punch_hole(offset, length),
}


@pytest.mark.parametrize("use", RANGES.values(), ids=RANGES.keys())
@pytest.mark.parametrize(
    ("offset", "length"),
    [(SIZE + 1, 0), (SIZE, 1), (10, SIZE), (0, SIZE + 1), (SIZE - 1, 2**62), (2**62, 2**62)],
)
def test_a_range_outside_gives_offset_length_and_size(
    mapped: MemoryMappedFile,
    path: Path,
    use: Callable[[MemoryMappedFile, int, int], object],
    offset: int,
    length: int,
) -> None:
    """All three: with one missing, the mistake is looked for in the wrong place."""
    with unchanged(path.parent), pytest.raises(OutOfBounds) as raised:
        use(mapped, offset, length)
    text = str(raised.value)
    for number in (offset, length, SIZE):
        assert re.search(rf"\b{number}\b", text), text
    assert (raised.value.errno, raised.value.filename) == (errno.EINVAL, str(path))


BUFFERS: dict[str, Callable[[MemoryMappedFile, Any], object]] = {
    "update_region": lambda mapped, data: mapped.update_region(0, data),
    "a range": lambda mapped, data: mapped.__setitem__(slice(0, 3), data),
    "a view's range": lambda mapped, data: mapped.as_slice_mut().__setitem__(slice(0, 3), data),
    "a segment": lambda mapped, data: SegmentMut(mapped, 0, 100).write(data),
    "write_mmap": lambda mapped, data: write_mmap(mapped.path, 0, data),
}


@pytest.mark.parametrize("write", BUFFERS.values(), ids=BUFFERS.keys())
def test_only_a_contiguous_buffer_can_be_written(
    mapped: MemoryMappedFile, path: Path, write: Callable[[MemoryMappedFile, Any], object]
) -> None:
    """There is no encoding to guess, and no order of bytes; a buffer with holes is none in a row."""
    with unchanged(path.parent):
        for wrong in ("abc", None, 3, 1.5, [1, 2, 3], object()):
            with pytest.raises(TypeError):
                write(mapped, wrong)
        for holes in (memoryview(b"abcdef")[::2], memoryview(b"abc")[::-1]):
            with pytest.raises(BufferError):
                write(mapped, holes)


def test_numpy_arrays_are_contiguous_or_refused(mapped: MemoryMappedFile, path: Path) -> None:
    """A column of a matrix is a buffer with holes; a matrix in either order is none."""
    numpy = pytest.importorskip("numpy", reason="no numpy: NOT TESTED that arrays with holes are refused")
    matrix = numpy.arange(12, dtype="u1").reshape(3, 4)
    mapped.update_region(0, matrix)
    assert mapped[0:12] == bytes(range(12))
    assert mapped.read_into(0, matrix) == 12
    with unchanged(path.parent):
        for holes in (matrix[:, 1], matrix[:, ::2], matrix.T):
            with pytest.raises((BufferError, ValueError)):
                mapped.update_region(0, holes)
            with pytest.raises((BufferError, ValueError)):
                mapped.read_into(0, holes)


def test_only_a_writable_buffer_can_be_read_into(mapped: MemoryMappedFile) -> None:
    """Bytes that change are worse than an error."""
    for wrong in (
        b"abc",
        "abc",
        None,
        5,
        memoryview(b"abc"),
        mapped.as_slice(0, 3),
        memoryview(bytearray(6))[::2],
    ):
        with pytest.raises((TypeError, BufferError)):
            mapped.read_into(0, wrong)  # type: ignore[arg-type]
    buffer = bytearray(b"kept")
    with pytest.raises(OutOfBounds, match=f"4 bytes at offset {SIZE - 3} .* {SIZE} bytes"):
        mapped.read_into(SIZE - 3, buffer)
    assert buffer == b"kept"


@pytest.mark.parametrize("size", [0, -1, -(2**70), 0x7FFFFFFFFFFFF001, 2**64])
def test_a_size_that_no_file_has_gives_the_limits(mapped: MemoryMappedFile, path: Path, size: int) -> None:
    """And which file it was for."""
    uses: list[Callable[[], object]] = [
        lambda: mapped.resize(size),
        lambda: MemoryMappedFile.create_rw(path, size),
        lambda: MemoryMappedFile.open_or_create(path, size),
        lambda: MemoryMappedFile.builder(path).size(size).create(),
        lambda: create_mmap(path, size),
    ]
    with unchanged(path.parent):
        for use in uses:
            with pytest.raises(InvalidSize, match=f"between 1 and .*{size}") as raised:
                use()
            assert isinstance(raised.value, ValueError)
            assert isinstance(raised.value, BufferError)
            assert raised.value.errno == errno.EINVAL


@pytest.mark.parametrize("offset", [1, 2, 3, 5, 6, 7])
def test_a_word_that_is_not_aligned_gives_the_numbers(mapped: MemoryMappedFile, offset: int) -> None:
    """Across two cache lines it would not be atomic."""
    makers: list[tuple[int, Callable[[int], object]]] = [
        (4, mapped.atomic_u32),
        (8, mapped.atomic_u64),
        (4, lambda at: mapped.atomic_u32_slice(at, 2)),
        (8, lambda at: mapped.atomic_u64_slice(at, 2)),
    ]
    for size, make in makers:
        if offset % size:
            with pytest.raises(
                Misaligned, match=rf"\b{offset}\b.*\b{size}\b|\b{size}\b.*\b{offset}\b"
            ) as raised:
                make(offset)
            assert isinstance(raised.value, ValueError)
            assert raised.value.filename == mapped.path


def test_no_space_is_an_error_of_whoever_needs_it(small_volume: Path) -> None:  # noqa: F811
    """Before anything is written; what was there is whole, and goes on working."""
    path = small_volume / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        mapped.update_region(0, b"kept")
        fill(small_volume, leaving=PAGE_SIZE)
        uses: list[Callable[[], object]] = [
            lambda: mapped.resize(VOLUME_BYTES // 2),
            lambda: MemoryMappedFile.create_rw(small_volume / "new", VOLUME_BYTES // 2),
            lambda: MemoryMappedFile.open_or_create(small_volume / "new", VOLUME_BYTES // 2),
        ]
        for use in uses:
            with pytest.raises(ResizeFailed, match=str(VOLUME_BYTES // 2)) as raised:
                use()
            assert raised.value.errno == errno.ENOSPC
            assert raised.value.filename in (str(path), str(small_volume / "new"))
        assert (len(mapped), path.stat().st_size, (small_volume / "new").exists()) == (
            PAGE_SIZE,
            PAGE_SIZE,
            False,
        )
        mapped.update_region(0, b"KEPT")
        mapped.flush()
        with MemoryMappedFile.create_rw(small_volume / "sparse", VOLUME_BYTES, sparse=True) as sparse:
            with pytest.raises(MappingFault, match="disk is full"):
                sparse.touch_pages(write=True)
            view = sparse.as_slice_mut()
            with pytest.raises(MappingFault):
                view[:] = bytes(VOLUME_BYTES)
            with pytest.raises(MappingFault):
                view.release()
            assert sparse.refresh() == VOLUME_BYTES
    assert path.read_bytes()[:5] == b"KEPT\0"


def test_every_refusal_is_an_error_of_this_library_and_of_the_system(path: Path) -> None:
    """One ``except OSError`` is enough for whoever does not care which."""
    with MemoryMappedFile.open_ro(path) as mapped, pytest.raises(InvalidMode) as raised:
        mapped.update_region(0, b"x")
    assert isinstance(raised.value, MmapIoError)
    assert isinstance(raised.value, OSError)
    assert (raised.value.errno, raised.value.filename) == (errno.EACCES, str(path))
    assert mapped.mode is MmapMode.READ_ONLY
