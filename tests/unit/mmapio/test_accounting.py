"""The books of a handle: what was written to it and is not known to be durable, by every way to write."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mmapio import (
    PAGE_SIZE,
    FlushPolicy,
    InvalidMode,
    MemoryMappedFile,
    MmapAdvice,
    OutOfBounds,
    ResizeFailed,
    SegmentMut,
    update_region,
)
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import in_child, outcome, run_python

SIZE = 1 << 20

Mapped = MemoryMappedFile


@dataclass(frozen=True)
class Way:
    """A way to write: how, how many bytes that is, and how many writes."""

    work: Callable[[Mapped], object]
    bytes: int
    writes: int = 1


def with_a_view(mapped: Mapped) -> None:
    with mapped.as_slice_mut(100, 7) as view:
        view[0] = 1
        view[1:3] = b"xy"


def with_a_buffer_that_outlives_the_view(mapped: Mapped) -> None:
    with mapped.as_slice_mut(100, 7) as view:
        buffer = memoryview(view)[2:4]
    buffer[0] = 1


def with_an_array(mapped: Mapped) -> None:
    numpy = pytest.importorskip(
        "numpy", reason="no numpy: NOT TESTED that what an array stores is on the books"
    )
    with mapped.as_slice_mut(0, 80) as view:
        words = numpy.frombuffer(view, dtype="<u8")[2:4].reshape(1, 2)
    words[0, 1] = 7


def fill(offset: int, view: Any) -> None:
    view[:] = b"z" * len(view)


#: Every way to change what a file holds.
WRITES: dict[str, Way] = {
    "update_region": Way(lambda mapped: mapped.update_region(10, b"abc"), 3),
    "update_region of many bytes": Way(lambda mapped: mapped.update_region(1, bytes(SIZE - 1)), SIZE - 1),
    "the module's update_region": Way(lambda mapped: update_region(mapped, 10, b"abc"), 3),
    "an item": Way(lambda mapped: mapped.__setitem__(-1, 7), 1),
    "a slice": Way(lambda mapped: mapped.__setitem__(slice(10, 14), b"abcd"), 4),
    "a view": Way(with_a_view, 7),
    "a view that is dropped": Way(lambda mapped: mapped.as_slice_mut(100, 7), 7),
    "a buffer that outlives its view": Way(with_a_buffer_that_outlives_the_view, 7),
    "an array that outlives its view": Way(with_an_array, 80),
    "a file read into a view": Way(lambda mapped: io.BytesIO(b"abc").readinto(mapped.as_slice_mut(9, 3)), 3),
    "chunks": Way(lambda mapped: mapped.chunks_mut(SIZE // 4).for_each_mut(fill), SIZE, 4),
    "chunks, one shorter": Way(lambda mapped: mapped.chunks_mut(SIZE - 1).for_each_mut_legacy(fill), SIZE, 2),
    "a segment": Way(lambda mapped: SegmentMut(mapped, 50, 10).write(b"abcde"), 5),
    "a segment's view": Way(lambda mapped: SegmentMut(mapped, 50, 10).as_slice_mut().release(), 10),
    "punch_hole": Way(lambda mapped: mapped.punch_hole(5, 2 * PAGE_SIZE), 2 * PAGE_SIZE),
    "touch_pages": Way(lambda mapped: mapped.touch_pages(write=True), 0),
    "touch_pages_range": Way(lambda mapped: mapped.touch_pages_range(1, 1, write=True), 0),
    "a 32-bit word of a slice": Way(lambda mapped: mapped.atomic_u32_slice(4, 9)[8].store(7), 4),
    "a 64-bit word of a slice": Way(lambda mapped: mapped.atomic_u64_slice(8, 9)[-1].store(7), 8),
    "a word, exchanged": Way(lambda mapped: mapped.atomic_u32(0).compare_exchange(0, 0), 4),
    "a wide word, exchanged": Way(lambda mapped: mapped.atomic_u64(0).compare_exchange(0, 0), 8),
}  # fmt: skip


def operating(name: str, wide: bool) -> Way:
    def work(mapped: Mapped) -> None:
        getattr((mapped.atomic_u64 if wide else mapped.atomic_u32)(8), name)(0)

    return Way(work, 8 if wide else 4)


for _name in (
    "store",
    "swap",
    *(f"fetch_{each}" for each in ("add", "sub", "and", "or", "xor", "min", "max")),
):
    WRITES[f"a word, {_name}"] = operating(_name, wide=False)
    WRITES[f"a wide word, {_name}"] = operating(_name, wide=True)

#: What changes the file's length and no byte: not a write, but to be flushed.
SIZES: dict[str, Callable[[Mapped], object]] = {
    "growing": lambda mapped: mapped.resize(SIZE + 1),
    "growing beyond the reservation": lambda mapped: mapped.resize(3 * SIZE),
    "shrinking": lambda mapped: mapped.resize(SIZE - 1),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file of these tests lies."""
    return tmp_path / "file"


def created(path: Path, policy: FlushPolicy = FlushPolicy.MANUAL) -> Mapped:
    """A file of zeros that is flushed."""
    mapped = Mapped.create_rw(path, SIZE, flush_policy=policy, reserve=2 * SIZE)
    mapped.flush()
    return mapped


@pytest.fixture
def mapped(path: Path) -> Iterator[Mapped]:
    """A file of zeros that is flushed, and is flushed only when told to."""
    with created(path) as made:
        yield made


def books(mapped: Mapped) -> tuple[int, bool]:
    """What is pending, and whether anything is."""
    return mapped.pending_bytes, mapped.needs_flush()


@pytest.mark.parametrize("way", WRITES.values(), ids=WRITES.keys())
def test_every_way_to_write_is_on_the_books(mapped: Mapped, way: Way) -> None:
    """A write that the books miss is one that close() does not flush, and no bound counts."""
    way.work(mapped)
    assert books(mapped) == (way.bytes, True)
    way.work(mapped)
    assert books(mapped) == (2 * way.bytes, True)
    mapped.flush()
    assert books(mapped) == (0, False)


@pytest.mark.parametrize("way", WRITES.values(), ids=WRITES.keys())
def test_every_way_to_write_counts_its_writes_once(path: Path, way: Way) -> None:
    """Counted twice, on the way through two layers, or not at all, a bound on writes is another bound."""
    with created(path, FlushPolicy.every_writes(way.writes + 1)) as mapped:
        way.work(mapped)
        assert books(mapped) == (way.bytes, True)
    with created(path, FlushPolicy.every_writes(way.writes)) as mapped:
        way.work(mapped)
        assert books(mapped) == (0, False)


@pytest.mark.parametrize("work", SIZES.values(), ids=SIZES.keys())
def test_another_length_is_to_be_flushed(mapped: Mapped, work: Callable[[Mapped], object]) -> None:
    """It is metadata, which a power cut takes back as it does bytes; and then it takes the bytes along."""
    work(mapped)
    assert books(mapped) == (0, True)
    mapped.flush()
    assert books(mapped) == (0, False)
    mapped.resize(len(mapped))
    assert books(mapped) == (0, False)


READS: dict[str, Callable[[Mapped], object]] = {
    "as_slice": lambda mapped: bytes(mapped.as_slice()),
    "read_into": lambda mapped: mapped.read_into(0, bytearray(9)),
    "an item": lambda mapped: (mapped[0], mapped[:9], mapped[::-7]),
    "chunks": lambda mapped: list(mapped.chunks(SIZE // 2)),
    "chunks_owned": lambda mapped: list(mapped.chunks_owned(SIZE // 2)),
    "pages": lambda mapped: next(mapped.pages()),
    "pages_owned": lambda mapped: next(mapped.pages_owned()),
    "reader": lambda mapped: mapped.reader().read(),
    "load": lambda mapped: mapped.atomic_u64(0).load(),
    "an exchange that fails": lambda mapped: mapped.atomic_u64(0).compare_exchange(1, 2),
    "a wait": lambda mapped: mapped.atomic_u32(0).wait(0, timeout=0),
    "a notify": lambda mapped: mapped.atomic_u32(0).notify(),
    "touch_pages": lambda mapped: mapped.touch_pages(),
    "prefetch_range": lambda mapped: mapped.prefetch_range(0, SIZE),
    "resident": lambda mapped: mapped.resident(),
    "advise": lambda mapped: mapped.advise(0, None, MmapAdvice.DONT_NEED),
    "refresh": lambda mapped: mapped.refresh(),
    "is_empty": lambda mapped: (mapped.is_empty(), len(mapped), repr(mapped)),
}


#: By name: what is in the tables under other words, and what neither reads nor writes.
LISTED = {
    "as_slice_mut": "a view",
    "atomic_u32": "a word",
    "atomic_u64": "a wide word",
    "atomic_u32_slice": "a 32-bit word of a slice",
    "atomic_u64_slice": "a 64-bit word of a slice",
    "chunks_mut": "chunks",
    "resize": "growing",
}
NEITHER = {
    "address", "as_slice_bytes", "builder", "close", "closed", "create_rw", "fileno", "flush", "flush_policy",
    "flush_range", "from_descriptor", "from_file", "huge_pages", "lock", "lock_all", "mode", "needs_flush",
    "open_cow", "open_or_create", "open_ro", "open_rw", "path", "pending_bytes", "read_bytes", "region",
    "reserved", "unlock", "unlock_all", "unmap", "watch",
}  # fmt: skip


def test_every_public_method_is_in_a_table() -> None:
    """A way to write that is added and not listed here would be tested nowhere."""
    named = " ".join([*WRITES, *SIZES, *READS])
    for name in dir(Mapped):
        if not name.startswith("_") and not name.endswith("_async") and name not in NEITHER:
            assert LISTED.get(name, name) in named, f"{name} is in no table of this file"


@pytest.mark.parametrize("work", READS.values(), ids=READS.keys())
def test_reading_is_no_write(mapped: Mapped, work: Callable[[Mapped], object]) -> None:
    """A read that counts makes a policy sync for nothing, and a reader's close wait for the disk."""
    work(mapped)
    assert books(mapped) == (0, False)


FAILURES: dict[str, tuple[type[Exception], Callable[[Mapped], object]]] = {
    "beyond the end": (OutOfBounds, lambda mapped: mapped.update_region(SIZE - 1, b"ab")),
    "an item beyond the end": (IndexError, lambda mapped: mapped.__setitem__(SIZE, 1)),
    "a slice of another length": (ValueError, lambda mapped: mapped.__setitem__(slice(0, 2), b"abc")),
    "no byte": (ValueError, lambda mapped: mapped.__setitem__(0, 256)),
    "no buffer": (TypeError, lambda mapped: mapped.update_region(0, "text")),  # type: ignore[arg-type]
    "a view beyond the end": (OutOfBounds, lambda mapped: mapped.as_slice_mut(SIZE, 1)),
    "a segment's end": (OutOfBounds, lambda mapped: SegmentMut(mapped, 0, 2).write(b"abc")),
    "a hole beyond the end": (OutOfBounds, lambda mapped: mapped.punch_hole(SIZE - 1, 2)),
    "a number too large": (OverflowError, lambda mapped: mapped.atomic_u32(0).store(1 << 32)),
    "a length too large": (ValueError, lambda mapped: mapped.resize(1 << 63)),
    "pages beyond the end": (OutOfBounds, lambda mapped: mapped.touch_pages_range(0, SIZE + 1, write=True)),
}


@pytest.mark.parametrize(("error", "work"), FAILURES.values(), ids=FAILURES.keys())
def test_what_was_refused_is_no_write(
    mapped: Mapped, error: type[Exception], work: Callable[[Mapped], object]
) -> None:
    """Nothing was stored, so nothing is owed."""
    with pytest.raises(error):
        work(mapped)
    assert books(mapped) == (0, False)


def test_nothing_written_is_no_write(mapped: Mapped) -> None:
    """A write of no bytes has nothing to make durable."""
    mapped.update_region(SIZE, b"")
    mapped[5:5] = b""
    mapped.as_slice_mut(9, 0).release()
    mapped.punch_hole(9, 0)
    mapped.touch_pages_range(9, 0, write=True)
    SegmentMut(mapped, 9, 9).write(b"")
    assert books(mapped) == (0, False)


def test_a_range_takes_off_what_it_covers_and_no_more_than_there_is(mapped: Mapped) -> None:
    """The counter is unsigned: one byte too many and it says that 16 EiB are pending, for ever."""
    mapped.update_region(0, bytes(10))
    mapped.update_region(5, bytes(20))  # written twice is counted twice
    assert mapped.pending_bytes == 30
    mapped.flush_range(0, 25)
    assert books(mapped) == (5, True)
    mapped.flush_range(0, 0)
    assert books(mapped) == (5, True)
    mapped.flush_range(PAGE_SIZE * 9, 6)  # nothing was written there, and still
    assert books(mapped) == (0, True)
    mapped.flush_range(0, SIZE)
    assert books(mapped) == (0, True)
    mapped.update_region(0, b"x")
    assert mapped.pending_bytes == 1
    mapped.flush()
    mapped.flush_range(0, SIZE)
    assert books(mapped) == (0, False)


def test_a_range_leaves_the_number_of_writes(path: Path) -> None:
    """The writes of one range are not known by it; a bound on writes goes on counting until a full flush."""
    with created(path, FlushPolicy.every_writes(4)) as mapped:
        for count in (1, 2, 3):
            mapped[0] = count
            mapped.flush_range(0, SIZE)
            assert books(mapped) == (0, True)
        mapped[0] = 4
        assert books(mapped) == (0, False)
        for _ in range(3):
            mapped[0] = 5
        assert books(mapped) == (3, True)
        mapped.flush()
        for _ in range(3):
            mapped[0] = 6
        assert books(mapped) == (3, True)


def test_a_range_puts_off_a_bound_on_bytes(path: Path) -> None:
    """What it covered is durable, and does not count towards the next flush."""
    with created(path, FlushPolicy.every_bytes(100)) as mapped:
        mapped.update_region(0, bytes(99))
        mapped.flush_range(0, 50)
        mapped.update_region(200, bytes(50))
        assert books(mapped) == (99, True)
        mapped[0] = 1
        assert books(mapped) == (0, False)


def test_a_hint_leaves_the_books(mapped: Mapped) -> None:
    """The kernel was asked to begin; nothing is durable yet."""
    mapped.update_region(0, bytes(10))
    mapped.flush(wait=False)
    mapped.flush_range(0, 10, wait=False)
    assert books(mapped) == (10, True)


def test_a_range_does_not_take_off_what_a_view_may_be_storing(mapped: Mapped) -> None:
    """Flushed now, stored to a moment later: as long as it is out, a view is owed whole."""
    view = mapped.as_slice_mut(0, 100)
    mapped.update_region(200, bytes(30))
    mapped.flush_range(0, SIZE)
    assert books(mapped) == (100, True)
    mapped.flush()
    assert books(mapped) == (100, True)
    view.release()
    assert books(mapped) == (100, True)
    mapped.flush_range(0, 100)
    assert books(mapped) == (0, True)


def test_an_array_counts_until_it_is_gone(mapped: Mapped, path: Path) -> None:
    """It stores long after the block has ended, and no call of ours hears of it."""
    numpy = pytest.importorskip("numpy", reason="no numpy: NOT TESTED how long an array is on the books")
    with mapped.as_slice_mut(0, 80) as view:
        array = numpy.frombuffer(view, dtype="<u8")
    part = array[4:5]
    mapped.flush()
    assert books(mapped) == (80, True)
    del array, view
    mapped.flush()
    assert books(mapped) == (80, True)
    part[0] = 7
    assert path.read_bytes()[32] == 7
    with pytest.raises(ResizeFailed):
        mapped.resize(79)
    del part
    assert books(mapped) == (80, True)
    mapped.flush()
    assert books(mapped) == (0, False)


def test_a_view_given_back_twice_counts_once(mapped: Mapped) -> None:
    """Taken off twice, the range of a view makes the counter of what is out run below zero."""
    with mapped.as_slice_mut(0, 100) as view:
        buffer = memoryview(view)
        view.release()
        view.release()
    assert books(mapped) == (100, True)
    buffer.release()
    buffer.release()
    view.release()
    del view
    assert books(mapped) == (100, True)
    mapped.flush()
    assert books(mapped) == (0, False)


def test_two_threads_give_back_one_view(path: Path, interposer: Path) -> None:
    """The first lets the GIL go in the sync that follows; the second finds nothing left to give back."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy, MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 4096, flush_policy=FlushPolicy.ALWAYS)
mapped.flush()
view = mapped.as_slice_mut(0, 6)
with Held(FDATASYNC, view.release) as first:
    between = [synced_by(view.release), mapped.pending_bytes]
answer([first.outcome, between, mapped.pending_bytes, mapped.needs_flush()])
"""
    )
    assert run_python(code, path, preload=interposer) == ["", [0, 6], 0, False]


def test_a_view_that_nobody_made_has_no_books(mapped: Mapped) -> None:
    """An object of the type without a file behind it: an error, not a crash."""
    kind = type(mapped.as_slice_mut(0, 0))
    uses: list[Callable[[Any], object]] = [
        lambda view: view[0],
        lambda view: view.__setitem__(0, 1),
        lambda view: view.__enter__(),
        lambda view: view == b"",
        bytes,
        memoryview,
    ]

    def work() -> list[str]:
        outcome(lambda: kind.__new__(kind).release())
        return [outcome(lambda use=use: use(kind.__new__(kind)))[0] for use in uses]

    assert set(in_child(work)) <= {"TypeError", "Closed"}


@pytest.mark.parametrize("policy", [FlushPolicy.NEVER, FlushPolicy.MANUAL, FlushPolicy.ALWAYS], ids=repr)
def test_a_view_that_comes_back_to_a_closed_handle(path: Path, policy: FlushPolicy) -> None:
    """The books are closed: nothing is owed any more, and nothing runs below zero."""

    def work() -> tuple[int, int]:
        mapped = created(path, policy)
        view = mapped.as_slice_mut(0, 100)
        mapped.close()
        first = mapped.pending_bytes
        view.release()
        return first, mapped.pending_bytes

    before, after = in_child(work)
    assert before <= 100
    assert after <= 100


@pytest.mark.skipif(
    sys.maxsize < 1 << 62, reason="NOT TESTED beyond 2^63: the address space has no room for it"
)
def test_the_bytes_pending_may_pass_2_to_the_63(path: Path) -> None:
    """In a signed counter they would be negative from there on, and a bound on bytes never reached."""
    size = 1 << 43
    try:
        made = Mapped.create_rw(path, size, sparse=True, flush_policy=FlushPolicy.NEVER)
    except ResizeFailed:
        pytest.skip(f"no files of {size} bytes: NOT TESTED that the counter passes 2^63")
    with made as mapped:
        count = (1 << 63) // size
        for _ in range(count // 2):
            mapped.as_slice_mut().release()
        views = [mapped.as_slice_mut() for _ in range(1000)]
        for _ in range(count // 2):
            mapped.as_slice_mut().release()
        assert mapped.pending_bytes == (1 << 63) + 1000 * size
        del views
        assert mapped.pending_bytes == (1 << 63) + 1000 * size
        mapped.flush_range(0, size)
        assert mapped.pending_bytes == (1 << 63) + 999 * size
        mapped.flush()
        assert books(mapped) == (0, False)


def test_a_private_copy_has_no_books(mapped: Mapped, path: Path) -> None:
    """Its writes reach no file, so that nothing could make them durable."""
    with Mapped.open_cow(path) as private:
        for name, way in WRITES.items():
            if not name.startswith("punch_hole"):
                way.work(private)
        assert books(private) == (0, False)
        with private.as_slice_mut(0, 100):
            assert books(private) == (0, False)


def test_a_read_only_mapping_has_no_books(mapped: Mapped, path: Path) -> None:
    """Every way to write is refused there, before it is on any books."""
    with Mapped.open_ro(path) as reading:
        for way in WRITES.values():
            with pytest.raises(InvalidMode):
                way.work(reading)
        reading.flush()
        with pytest.raises(OutOfBounds):
            reading.flush_range(1, SIZE)
        assert books(reading) == (0, False)


def test_each_handle_has_its_own_books(mapped: Mapped, path: Path) -> None:
    """A flush covers the file; but what another handle owes is for that one to say."""
    with Mapped.open_rw(path) as other:
        mapped.update_region(0, bytes(10))
        other.update_region(0, bytes(20))
        other.flush()
        assert (books(mapped), books(other)) == ((10, True), (0, False))


# Code of the caller's that runs in the middle of a write.

POLICIES = [
    FlushPolicy.NEVER,
    FlushPolicy.MANUAL,
    FlushPolicy.ALWAYS,
    FlushPolicy.every_bytes(1),
    FlushPolicy.every_writes(1),
    FlushPolicy.every_millis(1),
]

KEPT: list[Any] = []


def store_after_closing(mapped: Mapped, _offset: int, view: Any) -> None:
    buffer = memoryview(view)
    mapped.close()
    buffer[0] = 1


def release_twice(_mapped: Mapped, _offset: int, view: Any) -> None:
    view.release()
    view.release()


def release_and_shrink(mapped: Mapped, offset: int, view: Any) -> None:
    view.release()
    mapped.resize(offset + 1)


#: What the function that is given the chunks does, and what comes of the iteration over two of them.
DEEDS: dict[str, tuple[Callable[[Mapped, int, Any], object], str]] = {
    "close": (lambda mapped, _offset, _view: mapped.close(), "Closed"),
    "unmap": (lambda mapped, _offset, _view: mapped.unmap().close(), "Closed"),
    "close and store": (store_after_closing, "Closed"),
    "release": (release_twice, ""),
    "flush": (lambda mapped, _offset, _view: mapped.flush(), ""),
    "flush_range": (lambda mapped, offset, view: mapped.flush_range(offset, len(view)), ""),
    "grow": (lambda mapped, _offset, _view: mapped.resize(5 * SIZE), ""),
    "shrink": (lambda mapped, offset, _view: mapped.resize(offset + 1), "ResizeFailed"),
    "release and shrink": (release_and_shrink, "OutOfBounds"),
    "nest": (lambda mapped, _offset, _view: mapped.chunks_mut(SIZE).for_each_mut(fill), ""),
    "raise": (lambda _mapped, offset, _view: [][offset], "IndexError"),
    "keep": (lambda _mapped, _offset, view: KEPT.extend([view, memoryview(view)]), ""),
}


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize(("deed", "expected"), DEEDS.values(), ids=DEEDS.keys())
def test_the_function_that_writes_a_chunk_may_do_anything(
    path: Path, deed: Callable[[Mapped, int, Any], object], expected: str, policy: FlushPolicy
) -> None:
    """The view ends after it, on books that may be closed by then; that must not bring the process down."""

    def work() -> tuple[str, bool, list[tuple[int, bool]]]:
        mapped = created(path, policy)
        chunks = mapped.chunks_mut(SIZE // 2)
        kind, _ = outcome(lambda: chunks.for_each_mut(lambda offset, view: deed(mapped, offset, view)))
        seen = []
        KEPT.clear()
        if not mapped.closed:
            mapped.flush()
            seen.append(books(mapped))
            mapped[0] = 1
        closed = mapped.closed
        mapped.close()
        return kind, closed, seen

    closes = expected == "Closed"
    assert in_child(work) == (expected, closes, [] if closes else [(0, False)])


class Number:
    """It does something whenever it is asked for its value."""

    def __init__(self, deed: Callable[[], object]) -> None:
        self._deed = deed

    def __index__(self) -> int:
        self._deed()
        return 7


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("target", ["a view", "a file", "a word"])
@pytest.mark.parametrize("deed", ["release", "flush", "close"])
def test_a_number_that_is_stored_may_do_anything(
    path: Path, policy: FlushPolicy, deed: str, target: str
) -> None:
    """It is asked for its value in the middle of the store, when all has been checked already."""

    def work() -> tuple[str, int]:
        mapped = created(path, policy)
        view, word = mapped.as_slice_mut(8, 6), mapped.atomic_u64(0)
        number = Number(view.release if deed == "release" else getattr(mapped, deed))
        stores: dict[str, Callable[[], object]] = {
            "a view": lambda: view.__setitem__(0, number),
            "a file": lambda: mapped.__setitem__(0, number),
            "a word": lambda: word.store(number),
        }
        kind, _ = outcome(stores[target])
        view.release()
        if not mapped.closed:
            mapped.flush()
        return kind, mapped.pending_bytes

    refused = deed == "close" or (deed == "release" and target == "a view")
    kind, pending = in_child(work)
    assert kind == ("Closed" if refused else "")
    # The books of a closed handle may still name the view that was out.
    assert pending <= (6 if deed == "close" else 0)
