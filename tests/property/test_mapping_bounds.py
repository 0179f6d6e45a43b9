"""Every call that takes an offset, a length or a size, at every edge of a machine word, against bytes."""

from __future__ import annotations

import io
import operator
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmapio import (
    PAGE_SIZE,
    Closed,
    FlushPolicy,
    InvalidSize,
    MemoryMappedFile,
    Misaligned,
    MmapAdvice,
    MmapIoError,
    MmapMode,
    OutOfBounds,
    ResizeFailed,
    Segment,
    SegmentMut,
    SharedMutex,
    update_region,
    write_mmap,
)

SIZE = 2 * PAGE_SIZE + 24
CONTENT = bytes((at + at // PAGE_SIZE) % 251 + 1 for at in range(SIZE))
SIZE_MAX = 1 << 20
"""No file of these tests may grow beyond, so that what is too large is refused, and not made."""

NUMBERS_MAX = 2**70
CORNERS = [
    0,
    PAGE_SIZE,
    SIZE,
    2**31,
    2**32,
    2**62,
    2**63 - PAGE_SIZE,
    2**63,
    2**64 - SIZE,
    2**64,
    NUMBERS_MAX,
]
EDGES = sorted(
    {sign * (corner + step) for corner in CORNERS for step in (-8, -1, 0, 1, 8) for sign in (1, -1)}
)


class Index:
    """What has an ``__index__``, and is no ``int``."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"Index({self.value})"


numbers = st.integers(0, SIZE) | st.sampled_from(EDGES) | st.integers(-NUMBERS_MAX, NUMBERS_MAX)
forms = numbers | numbers.map(Index) | st.booleans()
modes = st.sampled_from(list(MmapMode))
junk = st.sampled_from([1.0, float("nan"), "1", b"1", [1], 1j, object, Ellipsis])

#: What is done with a range: gives its bytes, or nothing where there is nothing to give.
Call = Callable[[MemoryMappedFile, Any, Any], bytes | None]


def ignore(result: object) -> None:
    """For calls that give no bytes."""


def read_into(mapped: MemoryMappedFile, offset: Any, length: Any) -> bytes:
    """As the other calls; a buffer that nobody can have is not asked for."""
    target = bytearray(min(max(operator.index(length), 0), 2 * SIZE))
    assert mapped.read_into(offset, target) == len(target)
    return bytes(target)


READS: dict[str, Call] = {
    "as_slice": lambda m, o, n: bytes(m.as_slice(o, n)),
    "read_bytes": lambda m, o, n: m.read_bytes(o, n),
    "a segment": lambda m, o, n: bytes(Segment(m, o, n).as_slice()),
    "flush_range": lambda m, o, n: ignore(m.flush_range(o, n)),
    "flush_range without waiting": lambda m, o, n: ignore(m.flush_range(o, n, wait=False)),
    "prefetch_range": lambda m, o, n: m.prefetch_range(o, n),
    "lock": lambda m, o, n: m.lock(o, n),
    "unlock": lambda m, o, n: m.unlock(o, n),
    "touch_pages_range": lambda m, o, n: m.touch_pages_range(o, n),
    "resident": lambda m, o, n: ignore(m.resident(o, n)),
} | {f"advise {advice.name}": lambda m, o, n, advice=advice: m.advise(o, n, advice) for advice in MmapAdvice}
del READS["advise POPULATE_WRITE"], READS["advise DONT_NEED"]

#: Calls that a read-only mapping refuses, none of which changes a byte.
MUTABLE: dict[str, Call] = {
    "as_slice_mut": lambda m, o, n: bytes(m.as_slice_mut(o, n)),
    "a writable segment": lambda m, o, n: bytes(SegmentMut(m, o, n).as_slice_mut()),
    "touch_pages_range for writing": lambda m, o, n: m.touch_pages_range(o, n, write=True),
    "advise POPULATE_WRITE": lambda m, o, n: m.advise(o, n, MmapAdvice.POPULATE_WRITE),
}

#: Calls that write bytes at an offset.
WRITES: dict[str, Callable[[MemoryMappedFile, Any, bytes], None]] = {
    "update_region": lambda m, o, data: m.update_region(o, data),
    "update_region of a view": lambda m, o, data: m.update_region(o, memoryview(bytearray(data))),
    "the module's update_region": update_region,
    "a segment": lambda m, o, data: SegmentMut(m, o, len(data)).write(data),
    "a writable view": lambda m, o, data: m.as_slice_mut(o, len(data)).__setitem__(slice(None), data),
}


@contextmanager
def opened(mode: MmapMode = MmapMode.READ_WRITE) -> Iterator[MemoryMappedFile]:
    """A file with `CONTENT`. When the block ends, no view may have been left behind."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        path.write_bytes(CONTENT)
        # What is written need not be durable, and waiting for that would be most of the time.
        builder = MemoryMappedFile.builder(path).mode(mode).reserve(1).flush_policy(FlushPolicy.NEVER)
        with builder.open() as mapped:
            yield mapped
            if mode is MmapMode.READ_WRITE and not mapped.closed:
                mapped.resize(1)


def stored(mapped: MemoryMappedFile) -> bytes:
    """What the file holds, past the mapping."""
    return os.pread(mapped.fileno(), SIZE_MAX, 0)


def unchanged(mapped: MemoryMappedFile) -> None:
    """A call that was refused has done nothing."""
    assert stored(mapped) == CONTENT
    assert len(mapped) == SIZE
    assert mapped.read_bytes(0, SIZE) == mapped.as_slice() == CONTENT
    assert mapped.pending_bytes == 0
    assert not mapped.needs_flush()


def is_inside(offset: int, length: int) -> bool:
    """Whether the file has such a range; with numbers that do not wrap around."""
    return offset >= 0 and length >= 0 and offset + length <= SIZE


def check_range(mapped: MemoryMappedFile, call: Call, offset: Any, length: Any) -> None:
    """Served exactly, or refused with the numbers and without a trace."""
    start, count = operator.index(offset), operator.index(length)
    if is_inside(start, count):
        found = call(mapped, offset, length)
        assert found is None or found == CONTENT[start : start + count]
        return
    with pytest.raises(OutOfBounds) as raised:
        call(mapped, offset, length)
    assert isinstance(raised.value, (IndexError, MmapIoError))
    assert raised.value.filename == mapped.path
    assert str(start) in str(raised.value) or str(count) in str(raised.value)
    unchanged(mapped)


@settings(max_examples=120)
@given(modes, st.sampled_from(sorted(READS)), forms, forms)
def test_a_range_is_served_exactly_or_refused(mode: MmapMode, name: str, offset: Any, length: Any) -> None:
    """One sum that wraps around, or one number that is cut, and a call goes anywhere in memory."""
    with opened(mode) as mapped:
        check_range(mapped, READS[name], offset, length)
        unchanged(mapped)


@settings(max_examples=60)
@given(st.sampled_from(list(MmapMode)[1:]), st.sampled_from(sorted(MUTABLE)), forms, forms)
def test_a_writable_range_is_served_exactly_or_refused(
    mode: MmapMode, name: str, offset: Any, length: Any
) -> None:
    """A store through it would go where the call above only looks."""
    with opened(mode) as mapped:
        check_range(mapped, MUTABLE[name], offset, length)


@settings(max_examples=40)
@given(modes, forms, forms)
def test_a_buffer_is_filled_or_left_alone(mode: MmapMode, offset: Any, length: Any) -> None:
    """Its length is a number like any other."""
    with opened(mode) as mapped:
        count = min(max(operator.index(length), 0), 2 * SIZE)
        target = bytearray(b"\xee" * count)
        start = operator.index(offset)
        if is_inside(start, count):
            assert mapped.read_into(offset, target) == count
            assert target == CONTENT[start : start + count]
        else:
            with pytest.raises(OutOfBounds):
                mapped.read_into(offset, target)
            assert target == b"\xee" * count
        unchanged(mapped)


@settings(max_examples=80)
@given(st.sampled_from(list(MmapMode)[1:]), st.sampled_from(sorted(WRITES)), forms, st.integers(0, SIZE + 9))
def test_a_write_is_made_whole_or_not_at_all(mode: MmapMode, name: str, offset: Any, length: int) -> None:
    """Neither the part of it that fits, nor somewhere else."""
    start, data = operator.index(offset), bytes(255 - at % 3 for at in range(length))
    with opened(mode) as mapped:
        if not is_inside(start, length):
            with pytest.raises(OutOfBounds):
                WRITES[name](mapped, offset, data)
            unchanged(mapped)
            return
        WRITES[name](mapped, offset, data)
        expected = CONTENT[:start] + data + CONTENT[start + length :]
        assert mapped.read_bytes(0, SIZE) == mapped.as_slice() == expected
        shared = mode is MmapMode.READ_WRITE
        assert stored(mapped) == (expected if shared else CONTENT)
        assert mapped.pending_bytes == (length if shared else 0)


@settings(max_examples=40)
@given(forms, st.integers(0, SIZE + 9))
def test_a_hole_is_punched_there_or_nowhere(offset: Any, length: int) -> None:
    """The system takes the numbers as they come: a hole in the wrong place is data lost."""
    start = operator.index(offset)
    with opened() as mapped:
        if is_inside(start, length):
            mapped.punch_hole(offset, length)
            expected = CONTENT[:start] + bytes(length) + CONTENT[start + length :]
            assert stored(mapped) == mapped.read_bytes(0, SIZE) == expected
            return
        with pytest.raises(OutOfBounds):
            mapped.punch_hole(offset, length)
        unchanged(mapped)


@settings(max_examples=30)
@given(forms, st.integers(0, SIZE + 9))
def test_the_function_of_the_module_writes_whole_or_not_at_all(offset: Any, length: int) -> None:
    """It opens the file by itself, and leaves it as it found it."""
    start, data = operator.index(offset), b"\xee" * length
    with opened() as mapped:
        if is_inside(start, length):
            write_mmap(mapped.path, offset, data)
            assert mapped.read_bytes(0, SIZE) == CONTENT[:start] + data + CONTENT[start + length :]
            return
        with pytest.raises(OutOfBounds):
            write_mmap(mapped.path, offset, data)
        unchanged(mapped)


bounds = st.none() | forms
strides = st.sampled_from([None, 1, True, 2, 3, -1, -7, PAGE_SIZE, 2**63, -(2**63), 2**64, -(2**70)])


def check_keys(held: Any, start: Any, stop: Any, step: Any) -> None:
    """Of the file or of a view of it."""
    if step in (None, 1) or isinstance(held, MemoryMappedFile):
        assert bytes(held[start:stop:step]) == CONTENT[start:stop:step]
    else:
        with pytest.raises(ValueError, match="step"):
            held[start:stop:step]
    if start is None:
        return
    try:
        expected = CONTENT[start]
    except IndexError:
        with pytest.raises(IndexError):
            held[start]
    else:
        assert held[start] == expected


@settings(max_examples=120)
@given(modes, bounds, bounds, strides)
def test_a_key_is_that_of_bytes(mode: MmapMode, start: Any, stop: Any, step: Any) -> None:
    """Cut to what there is; the same bytes, the same errors."""
    with opened(mode) as mapped:
        check_keys(mapped, start, stop, step)
        check_keys(mapped.as_slice(), start, stop, step)
        if mode is not MmapMode.READ_ONLY:
            check_keys(mapped.as_slice_mut(), start, stop, step)


def check_assignments(held: Any, start: Any, stop: Any, excess: int, value: Any) -> None:
    """To the file or to a view of it."""
    expected = bytearray(CONTENT)
    count = len(CONTENT[start:stop])
    data = b"\xee" * (count + excess)
    if excess:
        with pytest.raises(ValueError, match=f"{count} bytes cannot be assigned {count + excess}"):
            held[start:stop] = data
    else:
        held[start:stop] = data
        expected[start:stop] = data
    assert held[:] == expected
    if start is None:
        return
    try:
        expected[start] = value
    except (IndexError, ValueError):
        with pytest.raises((IndexError, ValueError)):
            held[start] = value
    else:
        held[start] = value
    assert held[:] == expected


@settings(max_examples=80)
@given(bounds, bounds, st.integers(0, 3), st.booleans(), forms)
def test_an_assignment_is_that_of_a_bytearray_that_keeps_its_length(
    start: Any, stop: Any, excess: int, through_a_view: bool, value: Any
) -> None:
    """Where the lengths differ, or the number is no byte or no index, nothing is stored."""
    with opened() as mapped:
        check_assignments(mapped.as_slice_mut() if through_a_view else mapped, start, stop, excess, value)


@contextmanager
def small_files() -> Iterator[None]:
    """No file grows beyond `SIZE_MAX` meanwhile."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE_MAX, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@settings(max_examples=60)
@given(forms)
def test_a_size_is_reached_exactly_or_refused(size: Any) -> None:
    """A size that is cut to 32 bits, or taken for signed, is a file cut to nothing."""
    count = operator.index(size)
    with opened() as mapped, small_files():
        if 0 < count <= SIZE_MAX:
            mapped.resize(size)
            expected = CONTENT[:count].ljust(count, b"\0")
            assert stored(mapped) == mapped.read_bytes(0, count) == expected
            return
        with pytest.raises(ResizeFailed) as raised:
            mapped.resize(size)
        assert isinstance(raised.value, InvalidSize) or 0 < count < 2**63
        assert str(count) in str(raised.value)
        unchanged(mapped)


@settings(max_examples=60)
@given(st.sampled_from(["create_rw", "open_or_create", "sparse"]), forms)
def test_a_file_is_made_of_its_size_or_not_at_all(name: str, size: Any) -> None:
    """One that is left behind half made is found by the next, and believed."""
    count = operator.index(size)
    with tempfile.TemporaryDirectory() as directory, small_files():
        path = Path(directory) / "file"
        makers: dict[str, Callable[[], MemoryMappedFile]] = {
            "create_rw": lambda: MemoryMappedFile.create_rw(path, size),
            "open_or_create": lambda: MemoryMappedFile.open_or_create(path, size),
            "sparse": lambda: MemoryMappedFile.create_rw(path, size, sparse=True),
        }
        if 0 < count <= SIZE_MAX:
            with makers[name]() as mapped:
                assert len(mapped) == path.stat().st_size == count
            return
        with pytest.raises(ResizeFailed):
            makers[name]()
        assert list(Path(directory).iterdir()) == []


@settings(max_examples=60)
@given(modes, forms)
def test_chunks_are_of_their_size_or_there_are_none(mode: MmapMode, size: Any) -> None:
    """A step of 0 goes on for ever, one that overflows goes backwards."""
    step = operator.index(size)
    with opened(mode) as mapped:
        if not 0 < step < 2**63:
            for make in (mapped.chunks, mapped.chunks_owned):
                with pytest.raises(InvalidSize, match=str(step)):
                    make(size)
            return
        expected = [CONTENT[at : at + step] for at in range(0, SIZE, step)][:5]
        chunks = mapped.chunks(size)
        assert operator.length_hint(chunks) == -(-SIZE // step)
        assert [bytes(chunk) for chunk, _ in zip(chunks, range(5), strict=False)] == expected
        assert [chunk for chunk, _ in zip(mapped.chunks_owned(size), range(5), strict=False)] == expected
        del chunks


@settings(max_examples=40)
@given(forms)
def test_address_space_is_kept_as_far_as_there_is_some(reserve: Any) -> None:
    """More than there is leaves less; what is no size is refused before a file is opened."""
    count = operator.index(reserve)
    with opened() as other:
        if not 0 < count < 2**63:
            with pytest.raises(InvalidSize):
                MemoryMappedFile.open_rw(other.path, reserve=reserve)
            return
        try:
            mapped = MemoryMappedFile.open_rw(other.path, reserve=reserve)
        except InvalidSize:
            assert count > 2**63 - PAGE_SIZE
            return
        with mapped:
            assert SIZE <= mapped.reserved <= max(count, SIZE) + PAGE_SIZE
            assert mapped[:] == CONTENT


@settings(max_examples=40)
@given(forms)
def test_a_mutex_lies_whole_in_the_file_and_on_a_multiple(offset: Any) -> None:
    """It is 128 bytes that the C library writes to."""
    start = operator.index(offset)
    with opened() as mapped:
        mapped.update_region(0, bytes(SIZE))
        inside = is_inside(start, SharedMutex.SIZE)
        if inside and start % 8 == 0:
            with SharedMutex(mapped, offset) as mutex:
                assert mutex.offset == start
            del mutex
            return
        expected = (*(() if inside else (OutOfBounds,)), *((Misaligned,) if start % 8 else ()))
        with pytest.raises(expected):
            SharedMutex(mapped, offset)
        assert mapped[:] == bytes(SIZE)


@settings(max_examples=60)
@given(st.lists(st.tuples(forms, st.sampled_from(list(range(3))), st.none() | forms), max_size=4))
def test_a_cursor_is_that_of_a_file(steps: list[tuple[Any, int, Any]]) -> None:
    """Wherever it is put: beyond the end there is nothing to read, before the beginning it cannot go."""
    with opened(MmapMode.READ_ONLY) as mapped:
        reader, at = mapped.reader(), 0
        for offset, whence, count in steps:
            to = (0, at, SIZE)[whence] + operator.index(offset)
            if to < 0:
                with pytest.raises(OutOfBounds):
                    reader.seek(operator.index(offset), whence)
            else:
                at = to
                assert reader.seek(operator.index(offset), whence) == reader.tell() == at
            want = None if count is None else operator.index(count)
            expected = CONTENT[at:] if want is None or want < 0 else CONTENT[at : at + want]
            assert reader.read(want) == expected
            at += len(expected)
            assert reader.tell() == at
        assert isinstance(reader, io.RawIOBase)


class Acting(Index):
    """A number that does something when it is asked for."""

    def __init__(self, value: int, action: Callable[[], object]) -> None:
        super().__init__(value)
        self.action = action

    def __index__(self) -> int:
        self.action()
        return self.value


@settings(max_examples=80)
@given(
    st.sampled_from(sorted(READS | MUTABLE)),
    st.sampled_from(["close", "cut", "grow"]),
    st.sampled_from([0, 1, 100, PAGE_SIZE, SIZE]),
    st.sampled_from([0, 1, 100, PAGE_SIZE, SIZE]),
    st.sampled_from(["offset", "length"]),
)
def test_a_number_that_changes_the_file_while_it_is_read(
    name: str, what: str, offset: int, length: int, which: str
) -> None:
    """The call looks at the file as it is once all numbers are known, not as it was before."""
    with opened() as mapped:
        after = {"close": b"", "cut": CONTENT[:1], "grow": CONTENT.ljust(100 * PAGE_SIZE, b"\0")}[what]
        action = mapped.close if what == "close" else lambda: mapped.resize(len(after))
        start: Any = Acting(offset, action) if which == "offset" else offset
        count: Any = Acting(length, action) if which == "length" else length
        call = (READS | MUTABLE)[name]
        if what == "close":
            with pytest.raises(Closed):
                call(mapped, start, count)
            return
        if offset + length > len(after):
            with pytest.raises(OutOfBounds):
                call(mapped, start, count)
        else:
            found = call(mapped, start, count)
            assert found is None or found == after[offset : offset + length]
        assert mapped[:] == after


@settings(max_examples=40)
@given(
    st.sampled_from(["close", "cut", "cut a little", "grow"]),
    st.sampled_from([-SIZE, -100, 0, 1, 100, PAGE_SIZE, SIZE]),
    st.sampled_from([None, 0, 1, 200, PAGE_SIZE + 1, SIZE]),
    st.sampled_from([1, 2, -1]),
)
def test_a_key_that_changes_the_file_while_it_is_read(what: str, start: int, stop: Any, step: int) -> None:
    """A slice of a length that is no more would be of bytes that are nobody's."""
    with opened() as mapped:
        size = {"close": 0, "cut": 1, "cut a little": SIZE - 8, "grow": 100 * PAGE_SIZE}[what]
        after = CONTENT[:size].ljust(size, b"\0")
        action = mapped.close if what == "close" else lambda: mapped.resize(size)
        key = slice(Acting(start, action), stop, step)
        if what == "close":
            with pytest.raises(Closed):
                mapped[key]
            return
        try:
            found = mapped[key]
        except IndexError:
            assert size < SIZE
        else:
            # As of the file before, where that is in the file after, or as of the file after.
            kept = max(range(*slice(start, stop, step).indices(SIZE)), default=0) < size
            assert found == after[start:stop:step] or (kept and found == CONTENT[start:stop:step])
        assert mapped[:] == after


@settings(max_examples=60)
@given(modes, st.sampled_from(sorted(READS)), junk, st.booleans())
def test_what_is_no_number_is_a_type_error(mode: MmapMode, name: str, wrong: Any, as_offset: bool) -> None:
    """A float that is cut is an offset that nobody asked for."""
    with opened(mode) as mapped:
        with pytest.raises(TypeError):
            READS[name](mapped, *((wrong, 1) if as_offset else (0, wrong)))
        unchanged(mapped)


TOO_LONG = 10**5000
"""More digits than Python prints of a number, unless told to."""


@pytest.mark.parametrize("number", [TOO_LONG, -TOO_LONG], ids=["positive", "negative"])
def test_a_number_too_long_to_be_printed_is_refused_like_any_other(number: int) -> None:
    """The message has the number in it: making it may fail, and the error is another then."""
    with opened() as mapped:
        for call in (READS | MUTABLE).values():
            for offset, length in ((number, 1), (0, number), (number, number)):
                with pytest.raises(OutOfBounds):
                    call(mapped, offset, length)
        unchanged(mapped)


def test_a_size_too_long_to_be_printed_is_refused_like_any_other() -> None:
    """As an offset."""
    with opened() as mapped:
        for call in (mapped.resize, mapped.chunks, mapped.chunks_owned, mapped.chunks_mut):
            for number in (TOO_LONG, -TOO_LONG):
                with pytest.raises(InvalidSize):
                    call(number)
        unchanged(mapped)


@pytest.mark.parametrize("number", [TOO_LONG, -TOO_LONG], ids=["positive", "negative"])
def test_an_index_too_long_to_be_printed_is_refused_like_any_other(number: int) -> None:
    """As of ``bytes``."""
    with opened() as mapped:
        held: Any = [mapped, mapped.as_slice(), mapped.as_slice_mut(), mapped.atomic_u64_slice(0, 3)]
        while held:
            with pytest.raises(IndexError):
                held.pop()[number]
        assert mapped[number:] == CONTENT[number:]


def test_a_planted_wrap_around_is_caught() -> None:
    """The control: a search that never came to a sum beyond 64 bits would pass on this file, too."""

    def wrapping(mapped: MemoryMappedFile, offset: Any, length: Any) -> bytes:
        start, count = (operator.index(number) % 2**64 for number in (offset, length))
        wraps = (start + count) % 2**64 <= SIZE
        return CONTENT[start : start + count] if wraps else mapped.read_bytes(start, count)

    @settings(settings.get_profile("control"), max_examples=2000)
    @given(numbers, numbers)
    def search(offset: int, length: int) -> None:
        with opened() as mapped:
            check_range(mapped, wrapping, offset, length)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        search()
