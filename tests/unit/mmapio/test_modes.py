"""The three modes: what a private copy shows and hides, and what each mode refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmapio import (
    PAGE_SIZE,
    InvalidMode,
    MappingFault,
    MemoryMappedFile,
    MmapMode,
    OutOfBounds,
    SegmentMut,
)
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import in_child, unprivileged

PAGES = 3
CONTENT = b"".join(bytes([65 + page]) * PAGE_SIZE for page in range(PAGES))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of three pages: A, B, C."""
    made = tmp_path / "file"
    made.write_bytes(CONTENT)
    return made


@pytest.fixture
def private(path: Path) -> Iterator[MemoryMappedFile]:
    """A private copy of it."""
    with MemoryMappedFile.open_cow(path) as made:
        yield made


def through_a_view(mapped: MemoryMappedFile) -> None:
    """Write through a writable view's buffer, as foreign code does."""
    with mapped.as_slice_mut(0, 1) as view, memoryview(view) as buffer:
        buffer[0] = 0x78


def through_chunks(mapped: MemoryMappedFile) -> None:
    """Write in pieces."""
    mapped.chunks_mut(PAGE_SIZE).for_each_mut(lambda offset, view: view.__setitem__(0, 0x78))


WRITES: dict[str, Callable[[MemoryMappedFile], object]] = {
    "update_region": lambda mapped: mapped.update_region(0, b"x"),
    "an item": lambda mapped: mapped.__setitem__(0, 0x78),
    "a range": lambda mapped: mapped.__setitem__(slice(0, 3), b"xyz"),
    "a view": through_a_view,
    "chunks": through_chunks,
    "a segment": lambda mapped: SegmentMut(mapped, 0, 10).write(b"xyz"),
    "an atomic": lambda mapped: mapped.atomic_u32(0).store(0x78),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_private_copy_changes_neither_the_file_nor_other_mappings(
    path: Path, write: Callable[[MemoryMappedFile], object]
) -> None:
    """A what-if that leaks into the file is a corrupted file."""
    with (
        MemoryMappedFile.open_ro(path) as reader,
        MemoryMappedFile.open_rw(path) as writer,
        MemoryMappedFile.open_cow(path) as second,
        MemoryMappedFile.open_cow(path) as private,
        unchanged(path.parent),
    ):
        early = private.as_slice(0, 1)
        write(private)
        assert private[0] == 0x78
        assert bytes(early) == b"x"
        assert (private.pending_bytes, private.needs_flush()) == (0, False)
        private.flush()
        private.flush_range(0, PAGE_SIZE)
        for other in (reader, writer, second):
            assert other[0 : len(CONTENT)] == CONTENT
            assert bytes(other.as_slice()) == CONTENT
        assert in_child(lambda: MemoryMappedFile.open_ro(path)[0]) == ord("A")
        private.close()
        assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_the_same_writes_reach_the_file_of_a_shared_mapping(
    path: Path, write: Callable[[MemoryMappedFile], object]
) -> None:
    """The control of the test above: its writes do write."""
    with MemoryMappedFile.open_rw(path) as shared:
        write(shared)
        assert path.read_bytes()[0] == 0x78
        assert shared.needs_flush()


def test_a_private_copy_shows_what_others_write_on_pages_it_did_not_touch(
    path: Path, private: MemoryMappedFile
) -> None:
    """It copies by pages, and only those that were written: whoever takes it for a snapshot is wrong."""
    private.update_region(PAGE_SIZE + 5, b"mine")
    with MemoryMappedFile.open_rw(path) as other:
        other.update_region(0, b"theirs")
        other.update_region(PAGE_SIZE, b"theirs")
        other.update_region(2 * PAGE_SIZE, b"theirs")
    assert private.read_bytes(0, 7) == b"theirsA"
    assert private.read_bytes(PAGE_SIZE, 10) == b"BBBBBmineB"
    assert private.read_bytes(2 * PAGE_SIZE, 7) == b"theirsC"


def test_a_private_copy_needs_no_permission_to_write(path: Path) -> None:
    """Opening the file for writing, which a private mapping does not need, shuts out who may only read."""
    path.chmod(0o400)

    def work() -> bytes:
        with pytest.raises(PermissionError):
            MemoryMappedFile.open_rw(path)
        with MemoryMappedFile.open_cow(path) as private:
            private.update_region(0, b"mine")
            return private.read_bytes(0, 5)

    with unchanged(path.parent):
        assert unprivileged(work) == b"mineA"


@pytest.mark.parametrize("size", [1, PAGE_SIZE, len(CONTENT), len(CONTENT) + 1, 100 * PAGE_SIZE])
def test_a_private_copy_cannot_change_the_length(path: Path, private: MemoryMappedFile, size: int) -> None:
    """The length is the file's, and the file is not to be changed."""
    with unchanged(path.parent), pytest.raises(InvalidMode, match="open_rw") as raised:
        private.resize(size)
    assert raised.value.filename == str(path)
    assert len(private) == len(CONTENT)


def test_a_private_copy_has_no_blocks_to_give_back(path: Path, private: MemoryMappedFile) -> None:
    """A hole would be punched into the file."""
    with unchanged(path.parent), pytest.raises(InvalidMode, match="private"):
        private.punch_hole(0, PAGE_SIZE)


def test_a_private_copy_of_a_file_that_others_cut(path: Path, private: MemoryMappedFile) -> None:
    """The kernel takes the pages beyond the end away, changed ones too; that is an exception, not the end."""
    private.update_region(0, b"mine")
    private.update_region(2 * PAGE_SIZE, b"gone")
    with path.open("r+b") as file:
        file.truncate(PAGE_SIZE)
    with pytest.raises(MappingFault):
        private.read_bytes(2 * PAGE_SIZE, 4)
    for use in (
        lambda: private.update_region(0, b"x"),
        lambda: private.as_slice(0, 1),
        lambda: private[0],
        lambda: private.as_slice_mut(0, 1),
    ):
        with pytest.raises(MappingFault, match="refresh"):
            use()
    assert private.refresh() == len(private) == PAGE_SIZE
    assert private.read_bytes(PAGE_SIZE - 2, 2) == b"AA"
    with pytest.raises(OutOfBounds):
        private.read_bytes(PAGE_SIZE, 1)


def test_foreign_code_below_a_private_copy_of_a_file_that_others_cut(path: Path) -> None:
    """Where no store can reach the file, zero pages keep the process alive: to read from, and to store to."""

    def work() -> bytes:
        private = MemoryMappedFile.open_cow(path)
        reading, writing = memoryview(private.as_slice()), memoryview(private.as_slice_mut())
        with path.open("r+b") as file:
            file.truncate(0)
        writing[2 * PAGE_SIZE] = 7
        with pytest.raises(MappingFault):
            private.read_bytes(0, 1)
        return reading[PAGE_SIZE : PAGE_SIZE + 3].tobytes()

    assert in_child(work) == bytes(3)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("longer", [1, PAGE_SIZE, 100 * PAGE_SIZE])
def test_a_private_copy_keeps_its_changes_when_another_extends_the_file(
    path: Path, private: MemoryMappedFile, longer: int
) -> None:
    """``refresh()`` may not exchange the copy for a fresh one: what was written to it exists nowhere else."""
    private.update_region(0, b"mine")
    view = private.as_slice(0, 4)
    with path.open("ab") as file:
        file.write(bytes(longer))
    private.refresh()
    assert (private.read_bytes(0, 4), bytes(view)) == (b"mine", b"mine")
    private.update_region(0, b"more")
    assert (private.read_bytes(0, 4), bytes(view)) == (b"more", b"more")


def test_a_private_copy_keeps_the_length_it_was_opened_with(path: Path, private: MemoryMappedFile) -> None:
    """As documented, and as the mapping is long: one page more, and its bounds would lie."""
    with path.open("ab") as file:
        file.write(bytes(PAGE_SIZE))
    assert private.refresh() == len(private) == len(CONTENT)


def test_a_private_copy_of_an_empty_file(tmp_path: Path) -> None:
    """There is nothing to map; that is no error."""
    (tmp_path / "empty").touch()
    with MemoryMappedFile.open_cow(tmp_path / "empty") as private:
        assert len(private) == 0
        assert private.is_empty()
        assert bytes(private.as_slice()) == b""
        private.update_region(0, b"")
        with pytest.raises(OutOfBounds):
            private.update_region(0, b"x")


def test_a_child_has_a_private_copy_of_the_private_copy(private: MemoryMappedFile) -> None:
    """Nothing that either writes can harm the other, so there is no reason to refuse the child."""
    private.update_region(0, b"parent")

    def child() -> bytes:
        private.update_region(0, b"child")
        return private.read_bytes(0, 6)

    assert in_child(child) == b"childt"
    assert private.read_bytes(0, 6) == b"parent"


@pytest.mark.parametrize(
    ("opener", "mode", "shown"),
    [
        (MemoryMappedFile.open_ro, MmapMode.READ_ONLY, "read-only"),
        (MemoryMappedFile.open_rw, MmapMode.READ_WRITE, "read-write"),
        (MemoryMappedFile.open_cow, MmapMode.COPY_ON_WRITE, "copy-on-write"),
    ],
    ids=["ro", "rw", "cow"],
)
def test_a_handle_tells_its_mode(
    path: Path, opener: Callable[[Path], MemoryMappedFile], mode: MmapMode, shown: str
) -> None:
    """Library code that is handed a mapping decides by it."""
    with opener(path) as mapped:
        assert mapped.mode is mode
        assert shown in repr(mapped)
    assert mapped.mode is mode


def test_bytes_of_a_read_write_mapping_are_not_handed_out_the_old_way(path: Path) -> None:
    """The shim refuses what the crate refused; callers that switch on the error still work."""
    for opener in (MemoryMappedFile.open_ro, MemoryMappedFile.open_cow):
        with opener(path) as mapped:
            view = mapped.as_slice_bytes(PAGE_SIZE - 1, 2)
            assert isinstance(view, memoryview)
            assert view.tobytes() == b"AB"
            assert view.readonly
            with pytest.raises(OutOfBounds):
                mapped.as_slice_bytes(0, len(CONTENT) + 1)
        assert view.tobytes() == b"AB"
    with MemoryMappedFile.open_rw(path) as mapped, pytest.raises(InvalidMode, match="as_slice"):
        mapped.as_slice_bytes(0, 1)
