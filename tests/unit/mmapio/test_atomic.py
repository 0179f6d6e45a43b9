"""Atomic words of a mapped file: where they may lie, who may change them, what they cost the books."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmapio import (
    PAGE_SIZE,
    AtomicSliceU32,
    AtomicSliceU64,
    AtomicU32,
    AtomicU64,
    Closed,
    FlushPolicy,
    InvalidMode,
    MappingFault,
    MemoryMappedFile,
    Misaligned,
    Ordering,
    OutOfBounds,
    ResizeFailed,
)
from tests.unit.mmapio.crew import answers
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import in_child, outcome, run_python

Word = AtomicU32 | AtomicU64
Maker = Callable[[MemoryMappedFile, int], Word]

WORDS: dict[int, Maker] = {4: MemoryMappedFile.atomic_u32, 8: MemoryMappedFile.atomic_u64}
SLICES: dict[int, Callable[..., Any]] = {
    4: MemoryMappedFile.atomic_u32_slice,
    8: MemoryMappedFile.atomic_u64_slice,
}

#: Every operation that may change the word, done so that it changes a 5.
CHANGES: dict[str, Callable[[Word], object]] = {
    "store": lambda word: word.store(1),
    "swap": lambda word: word.swap(1),
    "compare_exchange": lambda word: word.compare_exchange(5, 1),
    "fetch_add": lambda word: word.fetch_add(1),
    "fetch_sub": lambda word: word.fetch_sub(1),
    "fetch_and": lambda word: word.fetch_and(1),
    "fetch_or": lambda word: word.fetch_or(2),
    "fetch_xor": lambda word: word.fetch_xor(1),
    "fetch_min": lambda word: word.fetch_min(1),
    "fetch_max": lambda word: word.fetch_max(9),
}

width = pytest.mark.parametrize("width", [4, 8])
change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())


def test_every_operation_is_in_the_table() -> None:
    """A new one must be added there, or say here why it changes nothing."""
    public = {name for name in dir(AtomicU64) if not name.startswith("_")}
    assert public - {"load", "wait", "notify", "offset"} == set(CHANGES)


@width
def test_only_multiples_of_the_width_are_taken(tmp_path: Path, width: int) -> None:
    """A word across two cache lines is not atomic, and on some machines a signal."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        mapped[:] = bytes(range(64))
        for offset in range(17):
            if offset % width == 0:
                word = WORDS[width](mapped, offset)
                assert word.load() == int.from_bytes(mapped[offset : offset + width], "little")
                assert word.offset == SLICES[width](mapped, offset, 2).offset == offset
                continue
            for attempt in (lambda: WORDS[width](mapped, offset), lambda: SLICES[width](mapped, offset, 1)):  # noqa: B023
                with pytest.raises(Misaligned, match=rf"multiple of {width}, not {offset}") as raised:
                    attempt()
                assert isinstance(raised.value, ValueError)
                assert raised.value.filename == mapped.path


@width
@pytest.mark.parametrize("size", range(1, 26))
def test_the_last_word_ends_where_the_file_does(tmp_path: Path, width: int, size: int) -> None:
    """What is behind the end of the file may be behind the end of the page, and that is a signal."""
    with MemoryMappedFile.create_rw(tmp_path / "file", size) as mapped:
        fitting = [offset for offset in range(0, size + 9, width) if offset + width <= size]
        for offset in range(0, size + 9, width):
            if offset in fitting:
                WORDS[width](mapped, offset).store(7)
            else:
                with pytest.raises(OutOfBounds, match=str(size)):
                    WORDS[width](mapped, offset)
        assert len(SLICES[width](mapped, 0, len(fitting))) == len(fitting)
        with pytest.raises(OutOfBounds):
            SLICES[width](mapped, 0, len(fitting) + 1)


@width
@pytest.mark.parametrize("offset", [-8, -1, 2**31, 2**32, 2**62, 2**63 - 8, 2**63, 2**64 - 8, 2**64, 2**70])
def test_offsets_far_outside_are_refused(tmp_path: Path, width: int, offset: int) -> None:
    """Numbers that are negative or zero to a machine must not become an address."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        with pytest.raises(OutOfBounds, match=str(offset)) as raised:
            WORDS[width](mapped, offset)
        assert isinstance(raised.value, IndexError)
        for count in (0, 1):
            with pytest.raises(OutOfBounds):
                SLICES[width](mapped, offset, count)


@width
@pytest.mark.parametrize("count", [-1, 17, 2**29, 2**30, 2**32, 2**60, 2**61, 2**62, 2**63, 2**64, 2**65])
def test_counts_whose_bytes_wrap_around_are_refused(tmp_path: Path, width: int, count: int) -> None:
    """2**61 words of 8 bytes end where they begin, to who multiplies without looking."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped, pytest.raises(OutOfBounds):
        SLICES[width](mapped, 0, count)


@width
def test_an_empty_file_has_no_words(tmp_path: Path, width: int) -> None:
    """But a slice of none of them."""
    (tmp_path / "file").touch()
    with MemoryMappedFile.open_rw(tmp_path / "file") as mapped:
        with pytest.raises(OutOfBounds):
            WORDS[width](mapped, 0)
        assert list(SLICES[width](mapped, 0, 0)) == []


@width
@pytest.mark.parametrize("wrong", [None, "0", 0.0, b"0"])
def test_offsets_counts_and_values_are_whole_numbers(tmp_path: Path, width: int, wrong: object) -> None:
    """A float that happens to be whole hides a bug of the caller."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        word = WORDS[width](mapped, 0)
        attempts: list[Callable[..., object]] = [
            lambda: WORDS[width](mapped, wrong),  # type: ignore[arg-type]
            lambda: word.compare_exchange(wrong, 0),  # type: ignore[arg-type]
            lambda: word.compare_exchange(0, wrong),  # type: ignore[arg-type]
            lambda: word.wait(wrong, 0),  # type: ignore[arg-type]
        ]
        if wrong is not None:
            attempts.append(lambda: SLICES[width](mapped, 0, wrong))  # type: ignore[arg-type]
            attempts.append(lambda: word.notify(wrong))  # type: ignore[arg-type]
        names = set(CHANGES) - {"compare_exchange"}
        attempts += [lambda name=name: getattr(word, name)(wrong) for name in names]
        for attempt in attempts:
            with pytest.raises(TypeError):
                attempt()
        assert word.load() == 0

        class Seven:
            def __index__(self) -> int:
                return 7

        word.store(Seven())
        assert word.compare_exchange(Seven(), True) == (True, 7)
        assert word.load() == 1


@width
def test_a_value_that_closes_the_file(tmp_path: Path, width: int) -> None:
    """Making a number of it may run any code; the word must be looked at after that."""

    class Closer:
        def __index__(self) -> int:
            mapped.close()
            return 1

    for name in set(CHANGES) - {"compare_exchange"}:
        mapped = MemoryMappedFile.create_rw(tmp_path / "file", 64)
        with pytest.raises(Closed):
            getattr(WORDS[width](mapped, 0), name)(Closer())
    mapped = MemoryMappedFile.create_rw(tmp_path / "file", 64)
    with pytest.raises(Closed):
        WORDS[width](mapped, 0).compare_exchange(0, Closer())


@width
def test_orders_that_make_no_sense_are_refused(tmp_path: Path, width: int) -> None:
    """A load that releases orders nothing: who writes it expects something that does not happen."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        word = WORDS[width](mapped, 0)
        for order in (Ordering.RELEASE, Ordering.ACQ_REL):
            with pytest.raises(ValueError, match="load cannot be"):
                word.load(order)
        for order in (Ordering.ACQUIRE, Ordering.ACQ_REL):
            with pytest.raises(ValueError, match="store cannot be"):
                word.store(1, order)
        for order in Ordering:
            assert word.fetch_add(1, order) == order
            assert word.compare_exchange(99, 1, order) == (False, order + 1)
        wrong: Any
        for wrong in (None, 5, -1, "SEQ_CST"):
            for call in (word.load, lambda order: word.store(1, order), lambda order: word.swap(1, order)):
                with pytest.raises(ValueError):
                    call(wrong)
        assert word.load() == len(Ordering)


@width
@change
def test_a_read_only_mapping_allows_loads_alone(
    tmp_path: Path, width: int, change: Callable[[Word], object]
) -> None:
    """A store there would be a signal."""
    path = tmp_path / "file"
    path.write_bytes((5).to_bytes(width, "little"))
    with MemoryMappedFile.open_ro(path) as mapped:
        word = WORDS[width](mapped, 0)
        with pytest.raises(InvalidMode, match="read-only"):
            change(word)
        with pytest.raises(InvalidMode):
            change(SLICES[width](mapped, 0, 1)[0])
        assert word.load() == 5


@width
@change
def test_a_private_copy_keeps_its_changes(
    tmp_path: Path, width: int, change: Callable[[Word], object]
) -> None:
    """They reach neither the file nor another mapping, and nothing is owed to the file."""
    path = tmp_path / "file"
    path.write_bytes((5).to_bytes(width, "little"))
    with MemoryMappedFile.open_cow(path) as private, MemoryMappedFile.open_rw(path) as shared:
        word = WORDS[width](private, 0)
        change(word)
        assert word.load() != 5
        assert private[0] != 5
        assert private.pending_bytes == 0
        assert shared[0] == path.read_bytes()[0] == 5


@width
@change
def test_after_close_a_word_can_be_read_alone(
    tmp_path: Path, width: int, change: Callable[[Word], object]
) -> None:
    """Nobody flushes any more what would be stored."""
    mapped = MemoryMappedFile.create_rw(tmp_path / "file", 64)
    word, words = WORDS[width](mapped, 8), SLICES[width](mapped, 8, 2)
    word.store(5)
    mapped.close()
    with pytest.raises(Closed, match="open it again"):
        change(word)
    assert word.load() == words[0].load() == 5
    with pytest.raises(Closed):
        change(words[0])
    with MemoryMappedFile.open_rw(tmp_path / "file") as other:
        WORDS[width](other, 8).store(6)
    assert word.load() == 6


@width
@change
def test_a_forked_child_may_load_and_not_store(
    tmp_path: Path, width: int, change: Callable[[Word], object]
) -> None:
    """Two processes that both think they are the writer write twice."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        word, words = WORDS[width](mapped, 0), SLICES[width](mapped, 0, 1)
        word.store(5)
        found = in_child(
            lambda: (word.load(), outcome(lambda: change(word)), outcome(lambda: change(words[0])))
        )
        assert found[0] == 5
        assert [kind for kind, _ in found[1:]] == ["Closed", "Closed"]
        assert "child" in found[1][1]
        assert word.load() == 5
        change(word)


def test_a_word_whose_page_is_gone(tmp_path: Path) -> None:
    """Each operation is an error and no signal; what the file still has can be used after refresh()."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 2 * PAGE_SIZE) as mapped:
        word = mapped.atomic_u64(PAGE_SIZE)
        os.truncate(path, PAGE_SIZE)
        for use in (AtomicU64.load, *CHANGES.values(), lambda word: word.wait(0, 0), AtomicU64.notify):
            with pytest.raises(MappingFault):
                use(word)
        assert mapped.refresh() == PAGE_SIZE
        with pytest.raises(MappingFault):
            word.load()
        with pytest.raises(OutOfBounds):
            mapped.atomic_u64(PAGE_SIZE)
        assert mapped.atomic_u64(0).fetch_add(1) == 0


@width
@change
def test_a_change_is_on_the_books(tmp_path: Path, width: int, change: Callable[[Word], object]) -> None:
    """What is not on them is not flushed when the policy's bound is reached, nor on close."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        word = WORDS[width](mapped, 0)
        word.store(5)
        mapped.flush()
        assert mapped.pending_bytes == 0
        change(word)
        assert mapped.pending_bytes == width
        assert mapped.needs_flush()
        change(SLICES[width](mapped, 32, 1)[0])
        assert mapped.pending_bytes == (width if change is CHANGES["compare_exchange"] else 2 * width)


@width
def test_what_changes_nothing_is_not_on_the_books(tmp_path: Path, width: int) -> None:
    """A loop of exchanges that fail would sync each time under ALWAYS."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        mapped.flush()
        word = WORDS[width](mapped, 0)
        assert word.load() == 0
        assert word.wait(1)
        word.notify()
        assert mapped.pending_bytes == 0
        assert not mapped.needs_flush()
        assert word.compare_exchange(1, 2) == (False, 0)
        assert mapped.pending_bytes == 0
        assert not mapped.needs_flush()


@width
def test_bounds_of_policies_count_words(tmp_path: Path, width: int) -> None:
    """The bound is exact: the change that reaches it flushes, the one before does not."""
    for policy in (FlushPolicy.every_writes(3), FlushPolicy.every_bytes(3 * width)):
        with MemoryMappedFile.create_rw(tmp_path / "file", 64, flush_policy=policy) as mapped:
            word = WORDS[width](mapped, 0)
            pending = []
            for _ in range(6):
                word.fetch_add(1)
                pending.append(mapped.pending_bytes)
            assert pending == [width, 2 * width, 0] * 2


def test_under_always_each_change_syncs_once(tmp_path: Path, interposer: Path) -> None:
    """Seen from the C library, since the counters could be wrong in the same way."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy, MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 64, flush_policy=FlushPolicy.ALWAYS)
word, words = mapped.atomic_u64(0), mapped.atomic_u32_slice(8, 2)
word.store(0)
answer([
    synced_by(lambda: word.store(1)), synced_by(lambda: word.fetch_add(1)),
    synced_by(lambda: word.compare_exchange(2, 3)), synced_by(lambda: words[1].fetch_max(3)),
    synced_by(lambda: word.load()), synced_by(lambda: word.wait(9, 1)), synced_by(lambda: word.notify()),
    synced_by(lambda: word.compare_exchange(2, 3)),
])
"""
    )
    assert run_python(code, tmp_path / "file", preload=interposer) == [1, 1, 1, 1, 0, 0, 0, 0]


@width
def test_a_live_word_refuses_a_cut(tmp_path: Path, width: int) -> None:
    """A store behind the end of the file is a signal."""
    size = 2 * PAGE_SIZE
    with MemoryMappedFile.create_rw(tmp_path / "file", size) as mapped:
        makers: list[Callable[[], object]] = [
            lambda: WORDS[width](mapped, PAGE_SIZE),
            lambda: SLICES[width](mapped, PAGE_SIZE - width, 2),
            lambda: SLICES[width](mapped, PAGE_SIZE, 1)[0],
        ]
        for make in makers:
            live = make()
            with pytest.raises(ResizeFailed, match=f"byte {PAGE_SIZE + width}") as raised:
                mapped.resize(PAGE_SIZE)
            assert isinstance(raised.value, BufferError)
            mapped.resize(PAGE_SIZE + width)
            mapped.resize(size)
            del live
            mapped.resize(PAGE_SIZE)
            mapped.resize(size)


def test_a_word_of_another_thread_is_waited_for(tmp_path: Path) -> None:
    """And refuses for as long as that thread has it."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 2 * PAGE_SIZE) as mapped:
        taken, enough = threading.Event(), threading.Event()

        def keep() -> None:
            word = mapped.atomic_u64(PAGE_SIZE)
            taken.set()
            enough.wait()
            word.store(1)

        thread = threading.Thread(target=keep)
        thread.start()
        taken.wait()
        with pytest.raises(ResizeFailed):
            mapped.resize(PAGE_SIZE, timeout=0.01)
        enough.set()
        mapped.resize(PAGE_SIZE, timeout=60)
        thread.join()
        assert len(mapped) == PAGE_SIZE


@pytest.mark.parametrize("reserve", [PAGE_SIZE, 64 * PAGE_SIZE], ids=["beyond", "within"])
def test_words_outlive_growth(tmp_path: Path, reserve: int) -> None:
    """Within the reservation nothing moves; beyond it the old mapping shows the same pages."""
    with MemoryMappedFile.create_rw(tmp_path / "file", PAGE_SIZE, reserve=reserve) as mapped:
        early, words = mapped.atomic_u64(8), mapped.atomic_u32_slice(8, 2)
        early.store(1)
        address = mapped.address
        mapped.resize(64 * PAGE_SIZE)
        assert (mapped.address == address) == (reserve > PAGE_SIZE)
        late = mapped.atomic_u64(8)
        assert late.fetch_add(1 << 32) == 1
        assert early.load() == (1 << 32) + 1
        assert early.compare_exchange((1 << 32) + 1, 7) == (True, (1 << 32) + 1)
        assert late.load() == 7
        assert words[0].swap(9) == 7
        assert mapped[8] == 9
        # Words of the old mapping are still in the way of a cut.
        far = mapped.atomic_u64(PAGE_SIZE - 8)
        with pytest.raises(ResizeFailed):
            mapped.resize(12)
        del far, late, early
        with pytest.raises(ResizeFailed):
            mapped.resize(12)
        del words
        mapped.resize(12)


def test_threads_count_while_the_file_grows(tmp_path: Path) -> None:
    """No addition may go to memory that was replaced."""
    with MemoryMappedFile.create_rw(tmp_path / "file", PAGE_SIZE, reserve=PAGE_SIZE) as mapped:
        go = threading.Event()

        def count() -> None:
            word = mapped.atomic_u64(0)
            go.wait()
            for _ in range(5000):
                word.fetch_add(1)
                mapped.atomic_u64(0).fetch_add(1)

        threads = [threading.Thread(target=count) for _ in range(3)]
        for thread in threads:
            thread.start()
        go.set()
        size = PAGE_SIZE
        while any(thread.is_alive() for thread in threads) and size < 4096 * PAGE_SIZE:
            size += 3 * PAGE_SIZE
            mapped.resize(size)
        for thread in threads:
            thread.join()
        assert mapped.atomic_u64(0).load() == 30_000


def add_up(path: str, wide: bool, rounds: int) -> int:
    """Add 3 to two words `rounds` times, to one at a stroke, to the other by exchanges; counts failures."""
    with MemoryMappedFile.open_rw(path) as mapped:
        added, exchanged = (mapped.atomic_u64_slice if wide else mapped.atomic_u32_slice)(16, 2)
        failures = 0
        for _ in range(rounds):
            added.fetch_add(3)
            seen = exchanged.load()
            while True:
                done, seen = exchanged.compare_exchange(seen, (seen + 3) % (1 << (64 if wide else 32)))
                if done:
                    break
                failures += 1
        return failures


@width
def test_four_processes_lose_nothing(tmp_path: Path, width: int) -> None:
    """A read-modify-write in several steps loses what another process did in between."""
    rounds, start = 20_000, (1 << 8 * width) - 30_000
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        added, exchanged = SLICES[width](mapped, 16, 2)
        added.store(start)
        exchanged.store(start)
        answers(add_up, *[(str(tmp_path / "file"), width == 8, rounds)] * 4)
        assert added.load() == exchanged.load() == 4 * 3 * rounds - 30_000
        assert mapped[:16] == bytes(16)
        assert mapped[16 + 2 * width :] == bytes(48 - 2 * width)


def test_two_steps_do_lose(tmp_path: Path) -> None:
    """The control: the same sum by a load and a store, with the other process' between them."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 64) as mapped:
        word = mapped.atomic_u64(16)
        seen = word.load()
        answers(add_up, (str(path), True, 10))
        word.store(seen + 3)
        assert word.load() != 3 * 11


@width
def test_a_slice_is_a_sequence_of_words(tmp_path: Path, width: int) -> None:
    """Each index is the word that lies there, from both ends."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        words = SLICES[width](mapped, 16, 3)
        assert len(words) == 3
        for number, word in enumerate(words):
            word.store(number + 1)
        expected = b"".join(number.to_bytes(width, "little") for number in (1, 2, 3))
        assert mapped[16 : 16 + 3 * width] == expected
        assert [words[index].load() for index in (0, 1, 2, -1, -2, -3, True)] == [1, 2, 3, 3, 2, 1, 2]
        assert [word.offset for word in words] == [16, 16 + width, 16 + 2 * width]
        assert all(type(word) is (AtomicU64 if width == 8 else AtomicU32) for word in words)
        for index in (3, -4, 2**31, 2**63 - 1, -(2**63), 2**63, 2**64, -(2**70)):
            with pytest.raises(IndexError, match=str(index)):
                words[index]
        for wrong in (None, "0", 0.0, slice(0, 1)):
            with pytest.raises(TypeError):
                words[wrong]  # type: ignore[index]


def test_words_say_where_they_are(tmp_path: Path) -> None:
    """For messages and logs."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        assert repr(mapped.atomic_u32(12)) == "<AtomicU32 at offset 12>"
        assert repr(mapped.atomic_u64_slice(16, 3)) == "<AtomicSliceU64 of 3 at offset 16>"
        word = mapped.atomic_u64(8)
        with pytest.raises(AttributeError):
            word.offset = 0  # type: ignore[misc]


def test_words_cannot_be_copied_pickled_or_made_from_nothing(tmp_path: Path) -> None:
    """A copy in another process would point at whatever lies there."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        for thing in (mapped.atomic_u32(0), mapped.atomic_u64(0), mapped.atomic_u32_slice(0, 1)):
            for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="pickled or copied"):
                    attempt(thing)
    for kind in (AtomicU32, AtomicU64, AtomicSliceU32, AtomicSliceU64):
        with pytest.raises(TypeError, match="not directly"):
            kind()  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [AtomicU32, AtomicU64, AtomicSliceU32, AtomicSliceU64])
def test_a_word_that_was_never_made_is_no_address(kind: Any) -> None:
    """`__new__` alone leaves a pointer to nothing: to use it is an error and no signal."""

    def use() -> list[str]:
        try:
            made = kind.__new__(kind)
        except TypeError:
            return []
        words = [lambda: made.load(), lambda: made.store(1), lambda: made.wait(1, 0), lambda: made.notify()]
        slices = [lambda: list(made), lambda: made[0], lambda: made[-1]]
        return [outcome(each)[0] for each in (words if hasattr(kind, "load") else slices)]

    assert all(kind in ("Closed", "IndexError", "TypeError", "") for kind in in_child(use))
