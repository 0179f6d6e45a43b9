"""Files that grow and shrink below their mapping."""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path

import pytest

from mmapio import PAGE_SIZE, MemoryMappedFile, OutOfBounds, ResizeFailed
from tests.unit.mmapio.processes import in_child
from tests.unit.mmapio.tracing import traced
from tests.unit.mmapio.volume import small_volume  # noqa: F401


def address(view: object) -> int:
    """Where a buffer lies in this process."""

    class Py_buffer(ctypes.Structure):  # noqa: N801
        _fields_ = (("buf", ctypes.c_void_p), ("rest", ctypes.c_char * 128))

    found = Py_buffer()
    api = ctypes.pythonapi
    assert api.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(found), 0) == 0
    where = found.buf
    api.PyBuffer_Release(ctypes.byref(found))
    return where or 0


def test_growth_moves_nothing(tmp_path: Path) -> None:
    """A view that was taken before must not point into unmapped memory after."""
    with MemoryMappedFile.create_rw(tmp_path / "file", PAGE_SIZE) as mapped:
        early = mapped.as_slice()
        where = address(early)
        for exponent in range(1, 13):
            mapped.resize(PAGE_SIZE << exponent)
            mapped.update_region((PAGE_SIZE << exponent) - 3, b"end")
            assert address(mapped.as_slice()) == where
        mapped.update_region(0, b"begin")
        assert bytes(early[:5]) == b"begin"
        assert len(early) == PAGE_SIZE
        assert len(mapped) == PAGE_SIZE << 12


def test_growth_allocates_and_reads_as_zeros(tmp_path: Path) -> None:
    """Space that is promised and not there is a signal at the first store."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 10) as mapped:
        mapped.update_region(0, b"0123456789")
        mapped.resize(1_000_001)
        assert bytes(mapped.as_slice()) == b"0123456789" + bytes(999_991)
    assert path.stat().st_size == 1_000_001
    assert path.stat().st_blocks * 512 >= 1_000_001


def test_growth_beyond_the_reservation_maps_anew_and_keeps_old_views(tmp_path: Path) -> None:
    """Both mappings are of the same pages: what one writes, the other shows."""
    with MemoryMappedFile.create_rw(tmp_path / "file", PAGE_SIZE, reserve=PAGE_SIZE) as mapped:
        early = mapped.as_slice()
        mapped.resize(100 * PAGE_SIZE)
        assert mapped.reserved >= 100 * PAGE_SIZE
        mapped.update_region(5, b"late")
        assert bytes(early[5:9]) == b"late"
        mapped.update_region(99 * PAGE_SIZE, b"far")
        assert mapped.read_bytes(99 * PAGE_SIZE, 3) == b"far"


def test_shrinking_cuts_the_file_and_the_bounds(tmp_path: Path) -> None:
    """What was cut off must not come back when the file grows again."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 3 * PAGE_SIZE) as mapped:
        mapped.update_region(0, b"x" * (3 * PAGE_SIZE))
        mapped.resize(PAGE_SIZE + 1)
        assert path.stat().st_size == len(mapped) == PAGE_SIZE + 1
        with pytest.raises(OutOfBounds):
            mapped.as_slice(PAGE_SIZE + 1, 1)
        mapped.resize(3 * PAGE_SIZE)
        assert mapped.read_bytes(0, 3 * PAGE_SIZE) == b"x" * (PAGE_SIZE + 1) + bytes(2 * PAGE_SIZE - 1)


def test_another_handle_learns_of_growth_when_it_asks(tmp_path: Path) -> None:
    """Until then its bounds are the old ones: it must not read beyond what it knows."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 10) as mapped, MemoryMappedFile.open_ro(path, reserve=1) as other:

        def grow() -> None:
            with MemoryMappedFile.open_rw(path) as third:
                third.resize(20 * PAGE_SIZE)
                third.update_region(20 * PAGE_SIZE - 3, b"end")

        in_child(grow)
        for handle in (mapped, other):
            assert len(handle) == 10
            with pytest.raises(OutOfBounds):
                handle.as_slice(0, 11)
            assert handle.refresh() == 20 * PAGE_SIZE
            assert bytes(handle.as_slice(20 * PAGE_SIZE - 3)) == b"end"


def test_a_full_disk_refuses_growth_and_leaves_the_file_usable(small_volume: Path) -> None:  # noqa: F811
    """The store that meets a full disk has to be told by an exception, before it writes anything."""
    path = small_volume / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        mapped.update_region(0, b"kept")
        with pytest.raises(ResizeFailed, match="No space left") as raised:
            mapped.resize(1 << 30)
        assert raised.value.errno == errno.ENOSPC
        assert path.stat().st_size == len(mapped) == PAGE_SIZE
        mapped.resize(2 * PAGE_SIZE)
        mapped.update_region(PAGE_SIZE, b"more")
        with pytest.raises(ResizeFailed):
            MemoryMappedFile.create_rw(small_volume / "other", 1 << 30)
        assert not (small_volume / "other").exists()
        mapped.flush()
    assert path.read_bytes()[:4] == b"kept"


BEYOND_THE_LIMIT = """
import resource
from mmapio import MemoryMappedFile, ResizeFailed
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
told = []
path, other = arguments
with MemoryMappedFile.create_rw(path, 4096) as mapped:
    for size in ((1 << 20) + 1, 64 << 20, 1 << 62):
        for work in (lambda: mapped.resize(size), lambda: MemoryMappedFile.create_rw(other, size)):
            try:
                work()
            except ResizeFailed as error:
                told.append(error.errno)
    mapped.resize(1 << 20)
    answer([told, len(mapped)])
"""


def test_what_is_beyond_the_limit_of_a_file_takes_nothing_of_the_disk(tmp_path: Path) -> None:
    """Blocks are set aside before the length, and that is what the kernel compares with the limit: a mistaken
    size took all of a disk for a third of a second, and whoever else wrote was told that it is full."""
    answer, calls = traced(
        BEYOND_THE_LIMIT,
        tmp_path / "file",
        tmp_path / "other",
        events="fallocate",
        trace=tmp_path / "trace",
        lacking="what a refused growth takes",
    )
    assert answer == [[errno.EFBIG] * 6, 1 << 20]
    assert calls
    for call in calls:
        assert int(call.arguments[2]) + int(call.arguments[3]) <= 1 << 20, call
