"""Giving the mapping up and keeping the file."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import PAGE_SIZE, Closed, FlushPolicy, MemoryMappedFile
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import in_child, run_python


def descriptors_of(path: Path) -> int:
    """How many descriptors this process has of a file."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += entry.readlink() == path
        except FileNotFoundError:
            # The one that the listing went through.
            continue
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of a page."""
    made = tmp_path / "file"
    made.write_bytes(b"x" * PAGE_SIZE)
    return made


def test_the_file_comes_back_open_for_reading_and_writing(path: Path) -> None:
    """Positioned at its begin, with what was written through the mapping in it."""
    mapped = MemoryMappedFile.open_rw(path)
    mapped.update_region(0, b"mapped")
    with mapped.unmap() as file:
        assert mapped.closed
        assert (file.readable(), file.writable(), file.seekable()) == (True, True, True)
        assert file.read(7) == b"mappedx"
        file.seek(0)
        file.write(b"filed")
    assert path.read_bytes()[:7] == b"filedd" + b"x"


@pytest.mark.parametrize("opener", [MemoryMappedFile.open_ro, MemoryMappedFile.open_cow], ids=["ro", "cow"])
def test_a_file_that_was_opened_for_reading_comes_back_so(
    path: Path, opener: Callable[[Path], MemoryMappedFile]
) -> None:
    """What was stored to a private copy stays in it."""
    mapped = opener(path)
    with mapped.unmap() as file:
        assert not file.writable()
        assert file.read() == b"x" * PAGE_SIZE
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"y")


def test_what_was_private_does_not_come_back(path: Path) -> None:
    """The file never had it."""
    mapped = MemoryMappedFile.open_cow(path)
    mapped.update_region(0, b"mine")
    with mapped.unmap() as file:
        assert file.read(4) == b"xxxx"


def test_a_handle_gives_its_file_once(path: Path) -> None:
    """A second file would be a descriptor that nobody asked for."""
    mapped = MemoryMappedFile.open_rw(path)
    mapped.unmap().close()
    for use in (mapped.unmap, mapped.as_slice, mapped.fileno):
        with pytest.raises(Closed):
            use()
    mapped.close()


def test_nothing_but_the_file_stays_open(path: Path) -> None:
    """The descriptor behind the mapping goes with it, and the file's own when that is closed."""
    mapped = MemoryMappedFile.open_rw(path)
    file = mapped.unmap()
    assert descriptors_of(path) == 1
    file.close()
    assert descriptors_of(path) == 0


def test_the_file_is_not_inherited(path: Path) -> None:
    """A descriptor that a started program inherits keeps the file open for as long as that runs."""
    with MemoryMappedFile.open_rw(path).unmap() as file:
        assert not os.get_inheritable(file.fileno())


def test_live_views_keep_their_pages(path: Path) -> None:
    """As after close: unmapping below a view is SIGSEGV."""
    mapped = MemoryMappedFile.open_rw(path)
    view, buffer = mapped.as_slice(0, 3), memoryview(mapped.as_slice_mut(0, 3))
    with mapped.unmap() as file:
        buffer[0] = ord("y")
        assert bytes(view) == file.read(3) == b"yxx"


def test_the_file_of_an_unlinked_mapping_can_be_had(path: Path) -> None:
    """Opening it again by its name is no longer possible: that is what unmap is for."""
    mapped = MemoryMappedFile.open_rw(path)
    path.unlink()
    with mapped.unmap() as file:
        assert file.read(3) == b"xxx"


def test_the_callers_file_stays_apart(path: Path) -> None:
    """Of from_file: closing what unmap gave must not close what it was made from."""
    with path.open("r+b") as file:
        with MemoryMappedFile.from_file(file).unmap() as again:
            assert again.fileno() != file.fileno()
        assert file.read(3) == b"xxx"


def test_a_child_may_take_the_file_and_leave_the_parents_alone(path: Path) -> None:
    """It takes a copy of a descriptor, and writes nothing."""
    with MemoryMappedFile.open_rw(path, flush_policy=FlushPolicy.ALWAYS) as mapped:
        assert in_child(lambda: mapped.unmap().read(3)) == b"xxx"
        mapped.update_region(0, b"y")


@pytest.mark.parametrize(
    ("policy", "syncs"), [("MANUAL", 1), ("NEVER", 0), ("every_millis(60000)", 1)], ids=str
)
def test_it_flushes_as_close_does(path: Path, interposer: Path, policy: str, syncs: int) -> None:
    """What the policy promised on close must not be lost because the file is kept."""
    code = (
        PRELUDE
        + f"""
import threading
from mmapio import FlushPolicy, MemoryMappedFile
mapped = MemoryMappedFile.open_rw(arguments[0], flush_policy=FlushPolicy.{policy})
mapped.update_region(0, b"x")
answer([synced_by(lambda: mapped.unmap().close()), threading.active_count()])
"""
    )
    assert run_python(code, path, preload=interposer) == [syncs, 1]


def test_a_failed_flush_raises_and_keeps_nothing_open(path: Path, interposer: Path) -> None:
    """A file that is handed back as if all were well hides the loss; one that is not, and open, leaks."""
    code = (
        PRELUDE
        + """
import os
from mmapio import MemoryMappedFile
mapped = MemoryMappedFile.open_rw(arguments[0])
mapped.update_region(0, b"x")
fail(FDATASYNC, 1, errno.EIO)
before = len(os.listdir("/proc/self/fd"))
answer([outcome(mapped.unmap), mapped.closed, before - len(os.listdir("/proc/self/fd"))])
"""
    )
    assert run_python(code, path, preload=interposer) == ["FlushFailed", True, 1]
