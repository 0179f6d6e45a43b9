"""Zero-copy views: what they show, how they compare, how long they live."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import MappedSlice, MemoryMappedFile

CONTENT = bytes(range(200))


def view_of(tmp_path: Path, content: bytes = CONTENT) -> MappedSlice:
    """A view of a file that nobody else refers to."""
    path = tmp_path / "viewed"
    path.write_bytes(content)
    with MemoryMappedFile.open_ro(path) as mapped:
        return mapped.as_slice()


def test_a_view_outlives_its_handle_and_its_file(tmp_path: Path) -> None:
    """A view on unmapped memory is SIGSEGV."""
    view = view_of(tmp_path)
    (tmp_path / "viewed").unlink()
    part = view[50:60]
    exported = memoryview(view)
    del view
    gc.collect()
    assert bytes(part) == CONTENT[50:60]
    del part
    gc.collect()
    assert exported[100] == 100
    assert exported.tobytes() == CONTENT


def test_a_view_is_a_read_only_buffer(tmp_path: Path) -> None:
    """Whoever could write through it would change a record that is sealed."""
    view = view_of(tmp_path)
    exported = memoryview(view)
    assert (exported.readonly, exported.format, exported.itemsize, exported.shape) == (True, "B", 1, (200,))
    assert exported.c_contiguous
    assert exported.nbytes == 200
    with pytest.raises(TypeError):
        exported[0] = 1
    with pytest.raises((BufferError, TypeError)):
        io.BytesIO(CONTENT).readinto(view)
    assert bytes(exported[10:20].cast("H")) == CONTENT[10:20]
    assert b"".join([view, view[:3]]) == CONTENT + CONTENT[:3]


def test_a_view_copies_to_bytes(tmp_path: Path) -> None:
    """Three spellings of the same."""
    view = view_of(tmp_path)
    assert bytes(view) == view.tobytes() == memoryview(view).tobytes() == CONTENT
    assert len(view) == 200
    assert repr(view) == "<MappedSlice of 200 bytes>"
    with view as same:
        assert same is view


@pytest.mark.parametrize("other", [CONTENT, bytearray(CONTENT), memoryview(CONTENT)])
def test_a_view_equals_what_has_its_bytes(tmp_path: Path, other: bytes) -> None:
    """Either side may be the view."""
    view = view_of(tmp_path)
    assert view == other
    assert other == view
    assert view == other
    assert view[1:] != other
    assert view[:0] == b""


@pytest.mark.parametrize("other", ["text", None, 5, [1], memoryview(CONTENT)[::2]])
def test_a_view_differs_from_everything_else(tmp_path: Path, other: object) -> None:
    """Comparing is no reason to raise."""
    view = view_of(tmp_path)
    assert view != other
    assert view != other


def test_a_view_is_neither_ordered_nor_hashable(tmp_path: Path) -> None:
    """Its bytes may change, so it must not be a key."""
    view = view_of(tmp_path)
    with pytest.raises(TypeError):
        hash(view)
    with pytest.raises(TypeError):
        view < CONTENT  # type: ignore[operator]  # noqa: B015


@pytest.mark.parametrize("index", [200, -201, 10**6, 2**63, -(2**63) - 1, 2**70])
def test_an_index_outside_is_an_index_error(tmp_path: Path, index: int) -> None:
    """As with bytes, whatever the size of the number."""
    with pytest.raises(IndexError):
        view_of(tmp_path)[index]


@pytest.mark.parametrize("index", ["1", 1.5, None, (1, 2)])
def test_an_index_that_is_none_is_a_type_error(tmp_path: Path, index: object) -> None:
    """As with bytes."""
    with pytest.raises(TypeError):
        view_of(tmp_path)[index]  # type: ignore[index]


@pytest.mark.parametrize("step", [2, -1, 3])
def test_a_slice_with_a_step_is_refused(tmp_path: Path, step: int) -> None:
    """A view is contiguous; a copy made in silence would not be zero-copy."""
    with pytest.raises(ValueError, match="step must be 1"):
        view_of(tmp_path)[::step]


def test_a_view_cannot_be_made_by_hand() -> None:
    """It would point nowhere."""
    with pytest.raises(TypeError, match="as_slice"):
        MappedSlice()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_view_cannot_be_copied_or_pickled(tmp_path: Path, duplicate: Callable[[object], object]) -> None:
    """A duplicate made member by member once kept a pointer into memory that was already free."""
    view = view_of(tmp_path, b"abc\0def")
    with pytest.raises(TypeError):
        duplicate(view)
    assert bytes(view) == b"abc\0def"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_handle_cannot_be_copied_or_pickled(tmp_path: Path, duplicate: Callable[[object], object]) -> None:
    """Two handles that think they own one mapping would unmap it twice."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 4096) as mapped, pytest.raises(TypeError):
        duplicate(mapped)


def test_taking_and_dropping_views_leaks_nothing(tmp_path: Path) -> None:
    """Each view holds the mapping; the last one to go must unmap it."""

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("viewed")

    gc.collect()
    assert mappings() == 0
    views = [view_of(tmp_path)[index : index + 3] for index in range(5)]
    assert mappings() == 5
    del views
    gc.collect()
    assert mappings() == 0
