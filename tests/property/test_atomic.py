"""Atomic words against a model: a Python int that wraps around."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmapio import AtomicU32, AtomicU64, MemoryMappedFile, Misaligned, Ordering, OutOfBounds

Word = AtomicU32 | AtomicU64

EDGES = [0, 1, 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
BEYOND = [-1, -(2**31), -(2**63), -(2**64), 2**64, 2**64 + 1, 2**100]

#: What each operation that returns the old value makes of it.
FETCHES: dict[str, Callable[[int, int], int]] = {
    "swap": lambda old, value: value,
    "fetch_add": lambda old, value: old + value,
    "fetch_sub": lambda old, value: old - value,
    "fetch_and": lambda old, value: old & value,
    "fetch_or": lambda old, value: old | value,
    "fetch_xor": lambda old, value: old ^ value,
    "fetch_min": min,
    "fetch_max": max,
}
ORDERS = {
    "load": {Ordering.RELAXED, Ordering.ACQUIRE, Ordering.SEQ_CST},
    "store": {Ordering.RELAXED, Ordering.RELEASE, Ordering.SEQ_CST},
} | {name: set(Ordering) for name in [*FETCHES, "compare_exchange"]}

widths = st.sampled_from([4, 8])
values = st.sampled_from(EDGES) | st.integers(0, 2**64 - 1) | st.integers(0, 9)
operations = st.lists(
    st.tuples(st.sampled_from(sorted(ORDERS)), values, values, st.none() | st.sampled_from(list(Ordering))),
    max_size=30,
)


@contextmanager
def mapped(content: bytes) -> Iterator[MemoryMappedFile]:
    """A file with `content`, mapped for writing."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        path.write_bytes(content)
        with MemoryMappedFile.open_rw(path, reserve=1) as file:
            yield file


def word_at(file: MemoryMappedFile, offset: int, width: int) -> Word:
    """The word of `width` bytes at `offset`."""
    return file.atomic_u64(offset) if width == 8 else file.atomic_u32(offset)


def follow(
    word: Word, file: MemoryMappedFile, width: int, wanted: list[tuple[str, int, int, Ordering | None]]
) -> None:
    """Do what is wanted with `word`, at byte 8 of `file`, and compare with the model after each step."""
    mask = (1 << 8 * width) - 1
    content = file[:]
    model = int.from_bytes(content[8 : 8 + width], "little")
    for name, value, other, order in wanted:
        orders = () if order is None else (order,)
        value, other = value & mask, other & mask
        if order is not None and order not in ORDERS[name]:
            with pytest.raises(ValueError, match="cannot be"):
                word.load(order) if name == "load" else word.store(value, order)
        elif name == "load":
            assert word.load(*orders) == model
        elif name == "store":
            word.store(value, *orders)
            model = value
        elif name == "compare_exchange":
            # Half of the time with the value that is there.
            expected = model if other & 1 else other
            assert word.compare_exchange(expected, value, *orders) == (expected == model, model)
            model = value if expected == model else model
        else:
            assert getattr(word, name)(value, *orders) == model
            model = FETCHES[name](model, value) & mask
        assert file[:] == content[:8] + model.to_bytes(width, "little") + content[8 + width :]


@given(widths, st.binary(min_size=24, max_size=24), operations)
def test_operations_are_those_of_the_model(
    width: int, content: bytes, wanted: list[tuple[str, int, int, Ordering | None]]
) -> None:
    """In what they return, what they leave in the file, and in not touching the bytes before and after."""
    with mapped(content) as file:
        follow(word_at(file, 8, width), file, width, wanted)
        assert Path(os.fsdecode(file.path)).read_bytes() == file[:]


class Defective:
    """A word that goes wrong in one operation."""

    def __init__(self, word: Word, **wrong: Callable[[Word, int, int], object]) -> None:
        self._word = word
        self._wrong = wrong

    def __getattr__(self, name: str) -> Any:
        if name in self._wrong:
            return lambda first, *rest: self._wrong[name](self._word, first, rest[0] if rest else 0)
        return getattr(self._word, name)


def saturate(word: Word, value: int, _: int) -> int:
    """An addition that stops at the greatest value."""
    old = word.load()
    word.store(min(old + value, 2**64 - 1))
    return old


def signed_least(word: Word, value: int, _: int) -> int:
    """A minimum of signed numbers."""
    old = word.load()
    word.store(min(old, value, key=lambda number: number - (number >> 63 << 64)))
    return old


def always(word: Word, _: int, new: int) -> tuple[bool, int]:
    """An exchange that does not compare."""
    return True, word.swap(new)


@pytest.mark.parametrize(
    "wrong",
    [{"fetch_add": saturate}, {"fetch_min": signed_least}, {"compare_exchange": always}],
    ids=["saturates", "signed", "compares nothing"],
)
def test_the_model_notices_a_word_that_is_wrong(wrong: dict[str, Callable[[Word, int, int], object]]) -> None:
    """The control: a search that never came to an edge would pass on these words too."""

    @settings(settings.get_profile("control"))
    @given(st.binary(min_size=24, max_size=24), operations)
    def search(content: bytes, wanted: list[tuple[str, int, int, Ordering | None]]) -> None:
        with mapped(content) as file:
            follow(cast("Word", Defective(file.atomic_u64(8), **wrong)), file, 8, wanted)

    with pytest.raises(AssertionError):
        search()


@given(widths, values, st.sampled_from(sorted(ORDERS)), st.sampled_from(BEYOND) | st.integers(2**64, 2**70))
def test_values_that_the_word_cannot_hold_are_refused(width: int, before: int, name: str, value: int) -> None:
    """Cut down to the word's size they would be another number, stored without a word."""
    before &= (1 << 8 * width) - 1
    with mapped(before.to_bytes(width, "little")) as file:
        word = word_at(file, 0, width)
        calls: list[Callable[[], object]] = [lambda: word.wait(value, 0)]
        if name == "compare_exchange":
            calls += [lambda: word.compare_exchange(value, 0), lambda: word.compare_exchange(before, value)]
        elif name != "load":
            calls += [lambda: getattr(word, name)(value)]
        if width == 4:
            calls += [lambda: word.store(2**32), lambda: word.fetch_add(2**63)]
        for call in calls:
            with pytest.raises(OverflowError):
                call()
        assert word.load() == before
        assert file.pending_bytes == 0


sizes = st.integers(0, 64)
places = st.integers(-16, 80) | st.sampled_from(
    [edge + step for edge in (2**31, 2**32, 2**62, 2**63, 2**64, 2**70) for step in (-8, -4, -1, 0, 1, 4, 8)]
)


@given(widths, sizes, places)
def test_a_word_lies_whole_in_the_file_and_on_its_own_multiple(width: int, size: int, offset: int) -> None:
    """Across the end it would be a signal, across a cache line not atomic."""
    with mapped(bytes(range(size))) as file:
        inside = 0 <= offset <= size - width
        if inside and offset % width == 0:
            word = word_at(file, offset, width)
            assert word.offset == offset
            assert word.load() == int.from_bytes(file[offset : offset + width], "little")
            return
        expected = (OutOfBounds if not inside else (), Misaligned if offset % width else ())
        with pytest.raises((OutOfBounds, Misaligned)) as raised:
            word_at(file, offset, width)
        assert isinstance(raised.value, expected)
        assert str(offset) in str(raised.value)


@given(
    widths,
    sizes,
    places,
    st.integers(-2, 20) | st.sampled_from([2**61, 2**62, 2**63 - 1, 2**63, 2**64, 2**70]),
)
def test_a_slice_lies_whole_in_the_file(width: int, size: int, offset: int, count: int) -> None:
    """2**61 words of 8 bytes are 2**64 bytes, which is 0 to who does not look."""
    with mapped(bytes(range(size))) as file:
        make = file.atomic_u64_slice if width == 8 else file.atomic_u32_slice
        inside = 0 <= offset <= size and 0 <= count * width <= size - offset
        if inside and offset % width == 0:
            words = make(offset, count)
            assert len(words) == count
            assert [word.offset for word in words] == list(range(offset, offset + count * width, width))
            return
        with pytest.raises((OutOfBounds, Misaligned)) as raised:
            make(offset, count)
        assert isinstance(
            raised.value, (OutOfBounds if not inside else (), Misaligned if offset % width else ())
        )


@given(
    widths,
    st.integers(0, 8),
    st.integers(-20, 20) | st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**70, -(2**70)]),
)
def test_an_index_is_that_of_a_list(width: int, count: int, index: int) -> None:
    """The same word or the same error, whatever the number."""
    with mapped(bytes(range(16 + 8 * 8))) as file:
        words = file.atomic_u64_slice(16, count) if width == 8 else file.atomic_u32_slice(16, count)
        offsets = [16 + width * number for number in range(count)]
        try:
            expected = offsets[index]
        except IndexError:
            with pytest.raises(IndexError):
                words[index]
        else:
            assert words[index].offset == expected
            assert words[index].load() == word_at(file, expected, width).load()
