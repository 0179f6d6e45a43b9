"""A file cannot be cut below what somebody looks at: any kind of view, from any thread, in any mapping."""

from __future__ import annotations

import gc
import math
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapio import (
    PAGE_SIZE,
    Closed,
    FlushPolicy,
    MappedSlice,
    MappingFault,
    MemoryMappedFile,
    ResizeFailed,
    Segment,
    SegmentMut,
)
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.gate import PRELUDE, gate  # noqa: F401
from tests.unit.mmapio.processes import TIMEOUT_SECONDS, run_python

SIZE = 4 * PAGE_SIZE
END = 2 * PAGE_SIZE + 8
"""Where the views of these tests end: bytes 2 * PAGE_SIZE to END."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of these tests lies."""
    return tmp_path / "file"


@pytest.fixture
def mapped(path: Path) -> Iterator[MemoryMappedFile]:
    """A file of four pages."""
    with MemoryMappedFile.create_rw(path, SIZE) as made:
        yield made


def begun(mapped: MemoryMappedFile, kind: str) -> object:
    """An iterator that has come as far as the view's begin, over a file that ends where it ends."""
    mapped.resize(END)
    chunks = getattr(mapped, kind)(2 * PAGE_SIZE)
    next(chunks)
    return chunks


AT, LENGTH = 2 * PAGE_SIZE, 8
VIEWS: dict[str, Callable[[MemoryMappedFile], Any]] = {
    "as_slice": lambda mapped: mapped.as_slice(AT, LENGTH),
    "a slice of a slice": lambda mapped: mapped.as_slice()[AT:END],
    "a memoryview of a slice": lambda mapped: memoryview(mapped.as_slice(AT, LENGTH)),
    "a cast of a memoryview": lambda mapped: memoryview(mapped.as_slice(AT, LENGTH)).cast("Q"),
    "as_slice_mut": lambda mapped: mapped.as_slice_mut(AT, LENGTH),
    "a memoryview of a writable slice": lambda mapped: memoryview(mapped.as_slice_mut(AT, LENGTH)),
    "a segment's slice": lambda mapped: Segment(mapped, AT, LENGTH).as_slice(),
    "a segment's writable slice": lambda mapped: SegmentMut(mapped, AT, LENGTH).as_slice_mut(),
    "atomic_u32": lambda mapped: mapped.atomic_u32(END - 4),
    "atomic_u64": lambda mapped: mapped.atomic_u64(AT),
    "atomic_u32_slice": lambda mapped: mapped.atomic_u32_slice(AT, 2),
    "atomic_u64_slice": lambda mapped: mapped.atomic_u64_slice(0, END // 8),
    "a word of an atomic slice": lambda mapped: mapped.atomic_u64_slice(0, END // 8)[AT // 8],
    "chunks": lambda mapped: begun(mapped, "chunks"),
    "chunks_owned": lambda mapped: begun(mapped, "chunks_owned"),
    "a view and one that reaches less far": lambda mapped: (
        mapped.as_slice(AT, LENGTH),
        mapped.as_slice(0, 5),
    ),
}


@pytest.mark.parametrize("look", VIEWS.values(), ids=VIEWS.keys())
def test_a_live_view_refuses_a_cut_below_its_end(
    mapped: MemoryMappedFile, path: Path, look: Callable[[MemoryMappedFile], Any]
) -> None:
    """To the byte; the bytes it shows would be gone, and a look at them SIGBUS. When it goes, so may they."""
    held = look(mapped)
    for size in (1, AT, END - 1):
        with (
            unchanged(path.parent),
            pytest.raises(ResizeFailed, match=f"cannot shrink to {size} .* byte {END}") as raised,
        ):
            mapped.resize(size)
        assert isinstance(raised.value, BufferError)
        assert raised.value.filename == str(path)
    mapped.resize(END)
    mapped.resize(SIZE)
    mapped.resize(END)
    del held
    gc.collect()
    mapped.resize(1)
    assert len(mapped) == path.stat().st_size == 1


HARMLESS: dict[str, Callable[[MemoryMappedFile], Any]] = {
    "an empty view at the end": lambda mapped: mapped.as_slice(SIZE, 0),
    "an empty writable view": lambda mapped: mapped.as_slice_mut(AT, 0),
    "a segment": lambda mapped: SegmentMut(mapped, AT, LENGTH),
    "a reader": lambda mapped: mapped.reader(),
    "writable chunks": lambda mapped: mapped.chunks_mut(PAGE_SIZE),
    "bytes": lambda mapped: mapped.read_bytes(AT, LENGTH),
    "an iterator that is through": lambda mapped: [mapped.chunks(SIZE), next(mapped.chunks(SIZE)) and None][
        0:0
    ],
    "a released view": lambda mapped: mapped.as_slice_mut(AT, LENGTH).release(),
    "a view of another handle": lambda mapped: MemoryMappedFile.open_ro(mapped.path).as_slice(0, 1),
}


@pytest.mark.parametrize("hold", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_points_nowhere_stands_in_the_way_of_nothing(
    mapped: MemoryMappedFile, hold: Callable[[MemoryMappedFile], Any]
) -> None:
    """A cut that is refused for no reason is a file that only grows."""
    held = hold(mapped)
    mapped.resize(1)
    assert len(mapped) == 1
    del held


def test_numpy_arrays_are_views(mapped: MemoryMappedFile) -> None:
    """They hold the buffer, and a part of an array holds all of it."""
    numpy = pytest.importorskip("numpy", reason="no numpy: NOT TESTED that arrays refuse a cut")
    part = numpy.frombuffer(mapped.as_slice(AT, LENGTH), dtype="u1")[2:3]
    with pytest.raises(ResizeFailed, match=f"byte {END}"):
        mapped.resize(AT)
    del part
    mapped.resize(AT)


@pytest.mark.parametrize("reserve", [SIZE, 1 << 30], ids=["anew", "in place"])
@pytest.mark.parametrize("look", VIEWS.values(), ids=VIEWS.keys())
def test_a_view_survives_growth_and_still_refuses_a_cut(
    path: Path, look: Callable[[MemoryMappedFile], Any], reserve: int
) -> None:
    """Beyond the reservation the handle maps anew, and must not forget who looks at the old mapping."""
    with MemoryMappedFile.create_rw(path, SIZE, reserve=reserve) as mapped:
        held = look(mapped)
        mapped.resize(1000 * PAGE_SIZE)
        assert (mapped.reserved == reserve) == (reserve > SIZE)
        newer = mapped.as_slice(0, 5)
        with pytest.raises(ResizeFailed, match=f"byte {END}"):
            mapped.resize(END - 1)
        mapped.resize(3 * SIZE)
        mapped.resize(2000 * PAGE_SIZE)
        with pytest.raises(ResizeFailed, match=f"byte {END}"):
            mapped.resize(AT)
        del held
        gc.collect()
        mapped.resize(AT)
        assert bytes(newer) == bytes(5)


def test_a_writable_view_from_before_growth_writes_the_file(path: Path) -> None:
    """From a view of the new mapping, too: the same pages at two addresses overlap and do not look it."""
    with MemoryMappedFile.create_rw(path, SIZE, reserve=SIZE) as mapped:
        content = bytearray(n * 7 % 251 for n in range(SIZE))
        mapped.update_region(0, content)
        view = mapped.as_slice_mut(0, SIZE)
        mapped.resize(1000 * PAGE_SIZE)
        view[0:3] = b"abc"
        content[0:3] = b"abc"
        view[1:8001] = mapped.as_slice(0, 8000)
        content[1:8001] = content[0:8000]
        assert mapped.read_bytes(0, SIZE) == path.read_bytes()[:SIZE] == content


@pytest.mark.parametrize(("to", "source"), [(1, 0), (0, 1), (64, 0), (7, 0)])
def test_a_file_is_written_from_a_view_of_another_handle(path: Path, to: int, source: int) -> None:
    """As from its own: the copy overlaps itself, whichever addresses the pages have."""
    with MemoryMappedFile.create_rw(path, SIZE) as mapped, MemoryMappedFile.open_ro(path) as other:
        content = bytearray(n * 7 % 251 for n in range(SIZE))
        mapped.update_region(0, content)
        mapped.update_region(to, other.as_slice(source, 8000))
        content[to : to + 8000] = content[source : source + 8000]
        assert mapped.read_bytes(0, SIZE) == content


def in_thread(work: Callable[[], object]) -> threading.Thread:
    """Start it; whoever started it joins it."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("look", VIEWS.values(), ids=VIEWS.keys())
def test_a_cut_waits_for_a_view_in_another_thread(
    mapped: MemoryMappedFile, look: Callable[[MemoryMappedFile], Any]
) -> None:
    """And is made when the view goes, in whichever thread; the waiting lets that thread run."""
    taken, waiting = threading.Event(), threading.Event()

    def hold() -> None:
        held = look(mapped)
        taken.set()
        assert waiting.wait(TIMEOUT_SECONDS)
        del held

    thread = in_thread(hold)
    assert taken.wait(TIMEOUT_SECONDS)
    with pytest.raises(ResizeFailed):
        mapped.resize(AT, timeout=0.001)
    waiting.set()
    mapped.resize(AT, timeout=TIMEOUT_SECONDS)
    thread.join()
    assert len(mapped) == AT


def test_waiting_for_views_ends_when_the_handle_is_closed(mapped: MemoryMappedFile) -> None:
    """There is nothing to cut any more; waiting on would be for ever."""
    view = mapped.as_slice()
    ends: list[BaseException] = []

    def cut() -> None:
        try:
            mapped.resize(AT, timeout=math.inf)
        except OSError as error:
            ends.append(error)

    thread = in_thread(cut)
    mapped.close()
    thread.join(TIMEOUT_SECONDS)
    assert [type(end) for end in ends] == [Closed]
    assert len(view) == SIZE


def test_growth_does_not_wait_for_a_cut_that_waits(mapped: MemoryMappedFile) -> None:
    """A thread that waits for views holds nothing that others need."""
    view = mapped.as_slice()
    thread = in_thread(lambda: mapped.resize(AT, timeout=TIMEOUT_SECONDS))
    mapped.resize(2 * SIZE)
    mapped.update_region(2 * SIZE - 3, b"end")
    mapped.flush()
    assert len(view) == SIZE
    del view
    thread.join()
    assert len(mapped) == AT


@pytest.mark.parametrize("wrong", ["1", None, b"1"], ids=repr)
def test_a_timeout_that_is_none_is_refused(mapped: MemoryMappedFile, path: Path, wrong: Any) -> None:
    """Whether or not there is anything to wait for: else the mistake shows on a busy day."""
    with unchanged(path.parent):
        for size in (AT, 2 * SIZE):
            with pytest.raises(TypeError):
                mapped.resize(size, timeout=wrong)


def test_views_that_come_and_go_meet_no_cut(path: Path) -> None:
    """Two threads look, one cuts and grows: every look is at bytes that are there, and no call is a fault."""
    stop = threading.Event()
    problems: list[str] = []
    looks: set[int] = set()

    def look() -> None:
        while not stop.is_set():
            try:
                view: MappedSlice = shared.as_slice()
                looks.add(len(bytes(view)))
            except MappingFault as error:
                problems.append(str(error))
                return
            del view

    shared = MemoryMappedFile.create_rw(path, SIZE, flush_policy=FlushPolicy.NEVER)
    threads = [in_thread(look) for _ in range(2)]
    interval = sys.getswitchinterval()
    # The more often threads take turns, the sooner nobody looks.
    sys.setswitchinterval(1e-4)
    try:
        for _ in range(50):
            shared.resize(PAGE_SIZE, timeout=TIMEOUT_SECONDS)
            shared.resize(SIZE)
    except MappingFault as error:
        problems.append(str(error))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    shared.close()
    assert problems == []
    assert looks <= {PAGE_SIZE, SIZE}


@pytest.mark.parametrize("kind", ["as_slice", "as_slice_mut", "atomic_u64", "chunks"])
def test_no_view_is_taken_of_what_is_being_cut(path: Path, gate: Path, kind: str) -> None:  # noqa: F811
    """From the moment that no view stood in the way, the new length counts: one that slips in is a fault."""
    code = (
        PRELUDE
        + """
from mmapio import MemoryMappedFile, PAGE_SIZE
mapped = MemoryMappedFile.create_rw(arguments[0], 4 * PAGE_SIZE)
mapped.as_slice()
views = []
takes = {
    "as_slice": lambda: mapped.as_slice(2 * PAGE_SIZE, 8),
    "as_slice_mut": lambda: mapped.as_slice_mut(2 * PAGE_SIZE, 8),
    "atomic_u64": lambda: mapped.atomic_u64(2 * PAGE_SIZE),
    "chunks": lambda: [view for view in mapped.chunks(8)][2 * PAGE_SIZE // 8],
}
ends = meanwhile(FTRUNCATE, lambda: mapped.resize(PAGE_SIZE), lambda: views.append(takes[arguments[1]]()))
answer([*ends, len(mapped) // PAGE_SIZE, len(views)])
"""
    )
    cut, look, pages, views = run_python(code, path, kind, preload=gate)
    refused = (cut, look, pages, views) == ("", "OutOfBounds", 1, 0) or look == "IndexError"
    in_time = (cut, look, pages, views) == ("ResizeFailed", "", 4, 1)
    assert refused or in_time, (cut, look, pages, views)


@pytest.mark.parametrize("use", ["read_into", "update_region"])
def test_a_cut_waits_for_a_copy_in_another_thread(path: Path, use: str) -> None:
    """A large copy runs without the GIL, and holds the bytes as a view does; else it reads what is gone."""
    size = 64 << 20
    with MemoryMappedFile.create_rw(path, size, sparse=True) as mapped:
        buffer = bytearray(size)
        problems: list[str] = []
        begun = threading.Event()

        def copy() -> None:
            begun.set()
            try:
                getattr(mapped, use)(0, buffer)
            except MappingFault as error:
                problems.append(str(error))
            except IndexError:
                pass  # it began after the cut

        for _ in range(10):
            begun.clear()
            thread = in_thread(copy)
            assert begun.wait(TIMEOUT_SECONDS)
            mapped.resize(PAGE_SIZE, timeout=TIMEOUT_SECONDS)
            thread.join()
            mapped.refresh()
            mapped.resize(size)
        assert problems == []


def test_a_failed_growth_takes_nothing_from_another(path: Path, gate: Path) -> None:  # noqa: F811
    """Undoing it by cutting the file back takes away what others have added and written since."""
    code = (
        PRELUDE
        + """
from mmapio import MemoryMappedFile, PAGE_SIZE
mapped = MemoryMappedFile.create_rw(arguments[0], PAGE_SIZE)
other = MemoryMappedFile.open_rw(arguments[0])
def grow_and_write():
    other.resize(3 * PAGE_SIZE)
    other.update_region(2 * PAGE_SIZE, b"precious")
number = getattr(errno, arguments[1])
ends = meanwhile(FALLOCATE, lambda: mapped.resize(100 * PAGE_SIZE), grow_and_write, number)
other.refresh()
found = open(arguments[0], "rb").read()
answer([*ends, len(found) // PAGE_SIZE, found[2 * PAGE_SIZE:][:8].decode()])
"""
    )
    assert run_python(code, path, "ENOSPC", preload=gate) == ["ResizeFailed", "", 3, "precious"]
    assert run_python(code, path, "EOPNOTSUPP", preload=gate) == ["", "", 100, "precious"]
