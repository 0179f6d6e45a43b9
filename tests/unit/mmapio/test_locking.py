"""Locking pages into memory: which pages, how long, and what the limit does."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmapio import PAGE_SIZE, Closed, LockFailed, MemoryMappedFile
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import in_child, outcome, unprivileged

PAGES = 8
SIZE = PAGES * PAGE_SIZE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of eight pages."""
    made = tmp_path / "file"
    made.write_bytes(os.urandom(SIZE))
    return made


@pytest.fixture
def mapped(path: Path) -> Iterator[MemoryMappedFile]:
    """It, for reading and writing."""
    with MemoryMappedFile.open_rw(path) as made:
        yield made


def locked() -> int:
    """The bytes of this process that are locked, as the kernel counts them."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Locked:"))


@pytest.fixture(autouse=True, scope="module")
def _locks_are_locks() -> None:
    """AddressSanitizer takes the place of mlock and does nothing: then there is nothing to be seen."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, PAGE_SIZE) as page:
        libc.mlock(ctypes.byref(ctypes.c_char.from_buffer(page)), ctypes.c_size_t(PAGE_SIZE))
        real = locked() > 0
        libc.munlock(ctypes.byref(ctypes.c_char.from_buffer(page)), ctypes.c_size_t(PAGE_SIZE))
    if not real:
        pytest.skip(
            "mlock locks nothing in this process (a sanitizer's does not): NOT TESTED that pages are locked"
        )


OPENERS = [MemoryMappedFile.open_ro, MemoryMappedFile.open_rw, MemoryMappedFile.open_cow]


@pytest.mark.parametrize("opener", OPENERS, ids=["ro", "rw", "cow"])
def test_locked_pages_are_in_memory(path: Path, opener: Callable[[Path], MemoryMappedFile]) -> None:
    """All that the range touches, whole, until they are unlocked; the kernel is asked, not our own books."""
    with unchanged(path.parent), opener(path) as mapped:
        assert locked() == 0
        mapped.lock(PAGE_SIZE - 1, 2)
        assert locked() == 2 * PAGE_SIZE
        mapped.lock(PAGE_SIZE, 2 * PAGE_SIZE)
        assert locked() == 3 * PAGE_SIZE
        mapped.unlock(PAGE_SIZE, 1)
        assert locked() == 2 * PAGE_SIZE
        mapped.unlock_all()
        assert locked() == 0
        mapped.lock_all()
        assert locked() == SIZE == mapped.resident()
        mapped.unlock(0, SIZE)
        assert locked() == 0


def test_closing_unlocks(path: Path) -> None:
    """Or a process that opens many files one after the other meets the limit."""
    for _ in range(3):
        with MemoryMappedFile.open_rw(path) as mapped:
            mapped.lock_all()
            assert locked() == SIZE
        assert locked() == 0


def test_locking_is_not_counted(mapped: MemoryMappedFile) -> None:
    """A second lock of the same page needs no second unlock: as documented, locked or not, they go."""
    mapped.unlock_all()
    mapped.lock(0, 1)
    mapped.lock(0, 1)
    mapped.unlock(0, 1)
    assert locked() == 0


def test_nothing_can_be_locked(mapped: MemoryMappedFile, tmp_path: Path) -> None:
    """An empty range, at either end or of an empty file, is no error."""
    mapped.lock(0, 0)
    mapped.lock(SIZE, 0)
    mapped.unlock(SIZE, 0)
    (tmp_path / "empty").touch()
    with MemoryMappedFile.open_rw(tmp_path / "empty") as empty:
        empty.lock_all()
        empty.unlock_all()
    assert locked() == 0


def test_locking_brings_pages_in_and_dirties_nothing(mapped: MemoryMappedFile) -> None:
    """It reads; the flush that follows has nothing to write."""
    mapped.flush()
    mapped.lock_all()
    assert (mapped.pending_bytes, mapped.needs_flush()) == (0, False)
    mapped.unlock_all()


@pytest.mark.parametrize(
    ("limit", "number"), [(0, errno.EPERM), (2 * PAGE_SIZE, errno.ENOMEM)], ids=["none", "two pages"]
)
def test_beyond_the_limit_is_an_error_that_names_it(path: Path, limit: int, number: int) -> None:
    """ENOMEM alone sends people looking for memory; half a lock would count against the next."""

    def work() -> tuple[int | None, str, str | None, bool, bool, int, int]:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
        mapped = MemoryMappedFile.open_rw(path)
        with pytest.raises(LockFailed) as raised:
            mapped.lock(PAGE_SIZE, 5 * PAGE_SIZE)
        error = raised.value
        after = locked()
        if limit:
            mapped.lock(0, 2 * PAGE_SIZE)
        kinds = isinstance(error, OSError), mapped.closed
        return (error.errno, str(error), error.filename, *kinds, after, locked())

    found, text, name, is_os_error, closed, after, possible = unprivileged(work)
    assert (found, name) == (number, str(path))
    assert f"{5 * PAGE_SIZE} bytes at offset {PAGE_SIZE}" in text
    assert "ulimit -l" in text
    assert (is_os_error, closed) == (True, False)
    assert (after, possible) == (0, limit)


def test_a_child_does_not_inherit_locks(mapped: MemoryMappedFile) -> None:
    """They are the process', and the child is another; the parent's stay."""
    mapped.lock_all()
    assert in_child(locked) == 0
    assert locked() == SIZE


def test_growth_in_place_keeps_the_locks(mapped: MemoryMappedFile) -> None:
    """Pages that were locked stay so; those that came after are for the caller to lock."""
    mapped.lock_all()
    mapped.resize(2 * SIZE)
    assert locked() >= SIZE
    mapped.lock_all()
    assert locked() == 2 * SIZE
    mapped.resize(SIZE)
    mapped.unlock_all()


def test_a_closed_handle_locks_nothing(path: Path) -> None:
    """There is no address to lock."""
    mapped = MemoryMappedFile.open_rw(path)
    mapped.close()
    for use in (mapped.lock_all, mapped.unlock_all):
        assert outcome(use)[0] == Closed.__name__
