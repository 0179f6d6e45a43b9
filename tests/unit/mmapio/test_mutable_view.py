"""Writable views: what is stored in them is in the file, on the books, and safe while anybody holds on."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapio import (
    PAGE_SIZE,
    Closed,
    FlushPolicy,
    MappedSliceMut,
    MappingFault,
    MemoryMappedFile,
)
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import in_child, outcome

SIZE = 4 * PAGE_SIZE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of these tests lies."""
    return tmp_path / "file"


@pytest.fixture
def mapped(path: Path) -> Iterator[MemoryMappedFile]:
    """A file of four pages that begins with ``abcdef``."""
    with MemoryMappedFile.create_rw(path, SIZE) as made:
        made.update_region(0, b"abcdef")
        made.flush()
        yield made


def test_a_writable_view_is_a_writable_buffer(mapped: MemoryMappedFile, path: Path) -> None:
    """Whatever fills a bytearray can fill a file."""
    with mapped.as_slice_mut(0, 6) as view:
        exported = memoryview(view)
        assert (exported.readonly, exported.format, exported.itemsize) == (False, "B", 1)
        assert (exported.shape, exported.strides, exported.c_contiguous) == ((6,), (1,), True)
        exported[0] = ord("A")
        exported[1:3] = b"BC"
        assert io.BytesIO(b"xy").readinto(view) == 2
        struct.pack_into("<H", view, 4, 0x6261)
        assert path.read_bytes()[:7] == b"xyCdab\0"
        assert b"".join([view, view[:2]]) == b"xyCdabxy"
        exported.release()


def test_a_file_is_read_into_a_writable_view(mapped: MemoryMappedFile, path: Path) -> None:
    """The kernel stores to it directly: no buffer in between."""
    source = path.with_name("source")
    source.write_bytes(os.urandom(SIZE))
    with source.open("rb", buffering=0) as file, mapped.as_slice_mut() as view:
        assert file.readinto(view) == SIZE
    assert path.read_bytes() == source.read_bytes()


def test_numpy_writes_a_file_without_copying(mapped: MemoryMappedFile, path: Path) -> None:
    """An array that is a copy loses what is stored in it; one that does not hold the mapping is SIGSEGV."""
    numpy = pytest.importorskip("numpy", reason="no numpy: NOT TESTED that arrays write through a view")
    view = mapped.as_slice_mut(PAGE_SIZE, PAGE_SIZE)
    array = numpy.frombuffer(view, dtype="<u4")
    assert array.flags.writeable
    assert array.ctypes.data == mapped.address + PAGE_SIZE
    array[:] = numpy.arange(PAGE_SIZE // 4)
    assert path.read_bytes()[PAGE_SIZE + 8 : PAGE_SIZE + 16] == struct.pack("<II", 2, 3)
    part = array[-2:]
    view.release()
    del array, view
    mapped.close()
    gc.collect()
    part[1] = 7
    assert path.read_bytes()[2 * PAGE_SIZE - 4 : 2 * PAGE_SIZE] == struct.pack("<I", 7)
    assert not numpy.frombuffer(MemoryMappedFile.open_ro(path).as_slice(), dtype="u1").flags.writeable


def test_items_and_ranges_are_stored(mapped: MemoryMappedFile) -> None:
    """As to a bytearray that keeps its length; reading copies."""
    with mapped.as_slice_mut(0, 6) as view:
        view[0], view[-1] = ord("A"), ord("F")
        view[1:3] = bytearray(b"BC")
        view[3:4] = memoryview(b"xDx")[1:2]
        early = view[1:5]
        view[1:1] = b""
        view[2:] = view[1:5]
        assert (view[0], view[-1], view[10:]) == (ord("A"), ord("e"), b"")
        assert bytes(view) == view.tobytes() == b"ABBCDe"
        assert early == b"BCDe"
        assert (len(view), repr(view)) == (6, "<MappedSliceMut of 6 bytes>")
    assert repr(view) == "<MappedSliceMut of 6 bytes, released>"


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        (6, 1, IndexError),
        (-7, 1, IndexError),
        (2**70, 1, IndexError),
        (0, 256, ValueError),
        (0, -1, ValueError),
        (0, 2**70, ValueError),
        (0, "x", TypeError),
        (0, None, TypeError),
        (0, b"x", TypeError),
        (0, 1.0, TypeError),
        ("0", 1, TypeError),
        (slice(0, 3), b"ab", ValueError),
        (slice(0, 3), b"abcd", ValueError),
        (slice(4, 9), b"abc", ValueError),
        (slice(0, 4, 2), b"ab", ValueError),
        (slice(None, None, 2**70), b"a", ValueError),
        (slice(0, 3), "abc", TypeError),
        (slice(0, 3), [1, 2, 3], TypeError),
        (slice(0, 3), memoryview(b"abcdef")[::2], BufferError),
    ],
    ids=repr,
)
def test_a_wrong_assignment_stores_nothing(
    mapped: MemoryMappedFile, path: Path, key: Any, value: Any, kind: type[Exception]
) -> None:
    """And is the error that a bytearray would give."""
    with unchanged(path.parent), mapped.as_slice_mut(0, 6) as view, pytest.raises(kind):
        view[key] = value
    view_of_all: Any = mapped.as_slice_mut()
    with pytest.raises(TypeError, match="resize"):
        del view_of_all[0]


@pytest.mark.parametrize("step", [2, -1, 2**63, -(2**70)])
def test_a_step_is_refused(mapped: MemoryMappedFile, step: int) -> None:
    """A view is contiguous, whichever kind it is, and the error says so whatever the number."""
    for view in (mapped.as_slice_mut(0, 6), mapped.as_slice(0, 6)):
        with pytest.raises(ValueError, match="step must be 1"):
            view[::step]


def test_a_released_view_is_of_no_use(mapped: MemoryMappedFile, path: Path) -> None:
    """A store that is made after the flush it should have been part of is lost without a word."""
    view = mapped.as_slice_mut(0, 6)
    view.release()
    view.release()
    assert view.is_released
    assert len(view) == 6
    uses: list[Callable[[], object]] = [
        lambda: view[0],
        lambda: view[0:1],
        lambda: bytes(view),
        lambda: view.tobytes(),
        lambda: memoryview(view),
        lambda: view.__setitem__(0, 1),
        lambda: view.__setitem__(slice(0, 1), b"x"),
        lambda: view.__enter__(),
    ]
    with unchanged(path.parent):
        for use in uses:
            with pytest.raises(Closed, match="released") as raised:
                use()
            assert raised.value.filename == str(path)


def test_leaving_the_block_releases(mapped: MemoryMappedFile) -> None:
    """After an exception too, which goes on its way; and what was stored before it stays."""
    with pytest.raises(ZeroDivisionError), mapped.as_slice_mut(0, 6) as view:
        view[0] = ord("x")
        raise ZeroDivisionError
    assert view.is_released
    assert mapped[0] == ord("x")


def test_code_that_releases_the_view_while_it_stores(mapped: MemoryMappedFile) -> None:
    """An index may be an object with code of its own."""
    view = mapped.as_slice_mut(0, 6)

    class Release:
        def __index__(self) -> int:
            view.release()
            return 0

    for key, value in ((Release(), 1), (0, Release())):
        view = mapped.as_slice_mut(0, 6)
        with pytest.raises(Closed):
            view[key] = value
        assert mapped[0] == ord("a")


POLICIES = [FlushPolicy.NEVER, FlushPolicy.MANUAL, FlushPolicy.ALWAYS, FlushPolicy.every_writes(1)]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_view_outlives_its_handle(path: Path, policy: FlushPolicy) -> None:
    """Its buffers stay valid; giving it back to a closed handle must not flush some other file."""

    def work() -> tuple[str, ...]:
        mapped = MemoryMappedFile.create_rw(path, SIZE, flush_policy=policy)
        view, other = mapped.as_slice_mut(0, 6), mapped.as_slice_mut(8, 1)
        buffer = memoryview(view)
        mapped.close()
        buffer[0:2] = b"xy"
        kinds = [outcome(use)[0] for use in (lambda: view[0], lambda: view.__setitem__(0, 1))]
        kinds += [outcome(use)[0] for use in (view.release, buffer.release, other.release)]
        return (*kinds, outcome(mapped.flush)[0])

    assert in_child(work) == ("Closed", "Closed", "", "", "", "Closed")
    assert path.read_bytes()[:2] == b"xy"


def test_a_view_keeps_a_dropped_handle(path: Path) -> None:
    """The handle is closed, and flushed, when the last view has gone."""
    view = MemoryMappedFile.create_rw(path, SIZE).as_slice_mut(0, 6)
    gc.collect()
    view[0:6] = b"stored"
    view.release()
    assert path.read_bytes()[:6] == b"stored"


def test_a_cycle_of_handle_and_view_is_collected(path: Path) -> None:
    """The collector takes members away in any order: a view must not touch a mapping that went before it."""

    class Holder(MemoryMappedFile):
        pass

    holder: Any = Holder.create_rw(path, SIZE)
    holder.view = holder.as_slice_mut(0, 6)
    holder.view[0:3] = b"xyz"
    holder.buffer = memoryview(holder.view)
    before = Path("/proc/self/maps").read_text().count(str(path))
    del holder
    gc.collect()
    assert (before > 0, Path("/proc/self/maps").read_text().count(str(path))) == (True, 0)
    assert path.read_bytes()[:3] == b"xyz"


def test_a_forked_child_cannot_store_through_an_inherited_view(mapped: MemoryMappedFile) -> None:
    """It belongs to the parent, as the handle does."""
    view = mapped.as_slice_mut(0, 6)
    assert in_child(lambda: outcome(lambda: view.__setitem__(0, 1))[0]) == "Closed"
    assert in_child(lambda: outcome(lambda: memoryview(view))[0]) == "Closed"
    view[0] = 1


def test_a_view_compares_by_content(mapped: MemoryMappedFile) -> None:
    """With anything that has bytes, from either side; and is no key, for its bytes change."""
    with (
        mapped.as_slice_mut(0, 6) as view,
        mapped.as_slice_mut(0, 6) as same,
        mapped.as_slice_mut(1, 6) as other,
    ):
        equal: list[Any] = [
            b"abcdef",
            bytearray(b"abcdef"),
            memoryview(b"abcdef"),
            mapped.as_slice(0, 6),
            same,
        ]
        for each in equal:
            assert view == each
            assert each == view
            assert (view != each) is False
        different: list[Any] = [b"abcdeF", b"abcde", "abcdef", None, 5, other, memoryview(b"abcdef")[::2]]
        for each in different:
            assert view != each
            assert (view == each) is False
        view[5] = ord("F")
        assert same == b"abcdeF"
        with pytest.raises(TypeError):
            hash(view)
        with pytest.raises(TypeError):
            view < b"x"  # type: ignore[operator]  # noqa: B015


@pytest.mark.parametrize("left", ["as_slice", "as_slice_mut"])
@pytest.mark.parametrize("right", ["as_slice", "as_slice_mut"])
def test_comparing_what_others_cut_is_a_fault(path: Path, left: str, right: str) -> None:
    """Either side may be what is not there: comparing is our own access, and must not end the process."""

    def work() -> str:
        mapped = MemoryMappedFile.create_rw(path, SIZE)
        one, two = getattr(mapped, left)(PAGE_SIZE, 10), getattr(mapped, right)(PAGE_SIZE, 10)
        os.truncate(path, 10)
        return outcome(lambda: one == two)[0]

    assert in_child(work) == "MappingFault"


def test_storing_where_others_cut_is_a_fault(mapped: MemoryMappedFile, path: Path) -> None:
    """By item and by range; the handle is marked until it looks again."""
    first, second = mapped.as_slice_mut(PAGE_SIZE, 10), mapped.as_slice_mut(PAGE_SIZE, 10)
    os.truncate(path, 10)
    with pytest.raises(MappingFault):
        first[0] = 1
    with pytest.raises(MappingFault):
        second[0:1] = b"x"
    for use in (lambda: second[0], lambda: mapped[0], second.tobytes):
        with pytest.raises(MappingFault):
            use()
    assert mapped.refresh() == 10
    assert mapped[0] == ord("a")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_view_cannot_be_copied_or_pickled(
    mapped: MemoryMappedFile, duplicate: Callable[[object], object]
) -> None:
    """The duplicate would be on the books twice, or not at all."""
    with mapped.as_slice_mut() as view, pytest.raises(TypeError, match=r"bytes\(view\)"):
        duplicate(view)
    with pytest.raises(TypeError, match="as_slice_mut"):
        MappedSliceMut()  # type: ignore[call-arg]
