"""Sleeping on a word of a mapped file until a thread of any process says that it changed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmapio import PAGE_SIZE, AtomicU32, AtomicU64, MappingFault, MemoryMappedFile
from mmapio._wait import HAS_FUTEX
from tests.support.waiting import until
from tests.unit.mmapio.crew import answers, crew
from tests.unit.mmapio.processes import TIMEOUT_SECONDS, in_child, run_python

pytestmark = pytest.mark.skipif(
    not HAS_FUTEX, reason="no futexes: NOT TESTED that waiters are woken; they look again by themselves"
)

Word = AtomicU32 | AtomicU64

width = pytest.mark.parametrize("width", [4, 8])


def word_at(mapped: MemoryMappedFile, offset: int, width: int) -> Word:
    """The word of `width` bytes at `offset`."""
    return mapped.atomic_u64(offset) if width == 8 else mapped.atomic_u32(offset)


def until_asleep(word: Word, count: int = 1) -> None:
    """Return when `count` waiters were asleep at one moment. The word is unchanged, so they sleep on."""
    until(lambda: word.notify() == count)


def wake(word: Word, most: int, woken: list[int]) -> int:
    """`notify`, with a note of how many it woke."""
    woken.append(word.notify(most))
    return woken[-1]


class Waiter(threading.Thread):
    """A thread that waits, and keeps what came of it."""

    def __init__(self, word: Word, *arguments: Any) -> None:
        super().__init__(daemon=True)
        self._call = (word, arguments)
        self._outcome: list[object] = []
        self.start()

    def run(self) -> None:
        word, arguments = self._call
        try:
            self._outcome.append(word.wait(*arguments))
        except Exception as error:
            self._outcome.append(error)

    def outcome(self) -> object:
        """What `wait` returned or raised."""
        self.join(TIMEOUT_SECONDS)
        assert self._outcome, "the waiter sleeps on"
        return self._outcome[0]


@contextmanager
def waiting(word: Word, count: int, *arguments: Any) -> Iterator[list[Waiter]]:
    """`count` threads asleep on `word`."""
    waiters = [Waiter(word, *arguments) for _ in range(count)]
    until_asleep(word, count)
    yield waiters


def wait_for(path: str, mode: str, width: int, offset: int, expected: int) -> tuple[object, int]:
    """Wait without a limit; what came of it and the value then."""
    with getattr(MemoryMappedFile, mode)(path) as mapped:
        word = word_at(mapped, offset, width)
        try:
            return word.wait(expected), word.load()
        except MappingFault:
            return "MappingFault", 0


def play(path: str, width: int, mine: int, rounds: int) -> None:
    """Pass a ball: the word counts the strokes; this process makes those with `mine` as the lowest bit."""
    with MemoryMappedFile.open_rw(path) as mapped:
        word = word_at(mapped, 8, width)
        for stroke in range(mine, 2 * rounds, 2):
            seen = word.load()
            while seen != stroke:
                assert word.wait(seen)
                seen = word.load()
            word.store(stroke + 1)
            word.notify()


def wait_and_handle(path: str) -> tuple[bool, int]:
    """Wait; a handler counts signals in the second word and changes the first at the third."""
    with MemoryMappedFile.open_rw(path) as mapped:
        word, handled = mapped.atomic_u64_slice(0, 2)

        def handle(*_: object) -> None:
            if handled.fetch_add(1) == 2:
                word.store(1)
            handled.notify()

        signal.signal(signal.SIGUSR1, handle)
        return word.wait(0), handled.load()


def wait_and_be_interrupted(path: str) -> str:
    """Wait; what ends it."""
    with MemoryMappedFile.open_rw(path) as mapped:
        try:
            mapped.atomic_u64(0).wait(0)
        except KeyboardInterrupt:
            return "interrupted"
        return "woken"


@width
@pytest.mark.parametrize("expected", [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("mode", ["open_rw", "open_ro"])
def test_a_waiter_in_another_process_wakes(tmp_path: Path, width: int, expected: int, mode: str) -> None:
    """The two share the file and nothing else: a private wake-up would never come."""
    expected &= (1 << 8 * width) - 1
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 64) as mapped:
        word = word_at(mapped, 8, width)
        word.store(expected)
        with crew(wait_for, (str(path), mode, width, 8, expected)) as (hand,):
            until_asleep(word)
            word.fetch_xor(5)
            word.notify()
            assert hand.answer() == (True, expected ^ 5)


@width
def test_notify_reaches_through_every_kind_of_shared_mapping(tmp_path: Path, width: int) -> None:
    """A reader may wake too; so may a handle whose mapping was replaced by growth, or closed."""
    path = tmp_path / "file"
    with (
        MemoryMappedFile.create_rw(path, PAGE_SIZE, reserve=PAGE_SIZE) as mapped,
        MemoryMappedFile.open_ro(path) as reader,
        MemoryMappedFile.open_rw(path) as closed,
    ):
        early = word_at(mapped, 8, width)
        mapped.resize(8 * PAGE_SIZE)
        late, read, left = (word_at(each, 8, width) for each in (mapped, reader, closed))
        closed.close()
        for sleeper in (early, late, read, left):
            for waker in (early, late, read, left):
                with waiting(sleeper, 1, late.load()) as (waiter,):
                    until(lambda: waker.notify() == 1)  # noqa: B023
                    late.fetch_add(1)
                    waker.notify()
                    assert waiter.outcome() is True


def test_a_change_of_the_upper_half_wakes(tmp_path: Path) -> None:
    """The system compares 32 bits: a waiter of 64 must look at the rest itself."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 64) as mapped:
        word = mapped.atomic_u64(8)
        for before, after in [(5, 5 | 1 << 32), (5 | 1 << 63, 5), (0, 1 << 32)]:
            word.store(before)
            with crew(wait_for, (str(path), "open_rw", 8, 8, before)) as (hand,):
                until_asleep(word)
                word.store(after)
                word.notify()
                assert hand.answer() == (True, after)
            assert word.wait(before) is True


def test_a_change_of_the_upper_half_is_found_without_a_word(tmp_path: Path) -> None:
    """Between the look and the sleep it cannot be noticed by the system; the waiter looks again by itself."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        word = mapped.atomic_u64(8)
        with waiting(word, 1, 0) as (waiter,):
            word.store(1 << 32)
            assert waiter.outcome() is True


def test_a_word_that_already_differs_is_not_waited_for(tmp_path: Path) -> None:
    """Else a change that came just before would be slept through."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        for word, other in ((mapped.atomic_u32(0), 2**32 - 1), (mapped.atomic_u64(0), 1 << 32)):
            for timeout in (None, 0, -1, 1, -1e300):
                assert word.wait(other, timeout) is True
            assert word.wait(other) is True


def test_waiters_of_other_words_sleep_on(tmp_path: Path) -> None:
    """Each word has waiters of its own, the upper half of a wide one too."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 2 * PAGE_SIZE) as mapped:
        for offset in (12, PAGE_SIZE + 8):
            word = mapped.atomic_u32(offset)
            with waiting(word, 1, word.load()) as (waiter,):
                for _ in range(50):
                    assert mapped.atomic_u64(8).notify() == 0
                    assert mapped.atomic_u32(16).notify() == 0
                assert waiter.is_alive()
                word.store(1)
                word.notify()
                assert waiter.outcome() is True


def test_notify_wakes_no_more_than_it_is_told(tmp_path: Path) -> None:
    """Waking all when one was meant is a stampede; waking one when none was meant is a surprise."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        word = mapped.atomic_u64(8)
        with waiting(word, 3, 0) as waiters:
            for none in (0, -1, -(2**70)):
                for _ in range(50):
                    assert word.notify(none) == 0
            for most in (1, 2):
                until_asleep(word, 3)
                woken: list[int] = []
                until(lambda: wake(word, most, woken) == most)  # noqa: B023
                assert max(woken) == most
            for many in (3, 2**31 - 1, 2**31, 2**32, 2**70, None):
                until(lambda: word.notify(many) == 3)  # noqa: B023
            assert all(waiter.is_alive() for waiter in waiters)
            word.store(1)
            word.notify()
            assert [waiter.outcome() for waiter in waiters] == [True] * 3
        assert word.notify() == 0


@width
def test_two_processes_pass_a_ball(tmp_path: Path, width: int) -> None:
    """Each stroke needs the other's: a wake-up that is lost for good ends the game."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 64) as mapped:
        answers(play, (str(path), width, 0, 300), (str(path), width, 1, 300))
        assert word_at(mapped, 8, width).load() == 600


@width
@pytest.mark.parametrize("timeout", [0, -1, -0.5, -1e300, float("-inf"), 1e-12, 0.001, 0.02])
def test_a_wait_that_nobody_ends_is_false(tmp_path: Path, width: int, timeout: float) -> None:
    """At once when the time is zero or less."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        word = word_at(mapped, 0, width)
        assert word.wait(0, timeout) is False
        assert word.wait(0, timeout=timeout) is False


@pytest.mark.parametrize("timeout", [1e9, 9223372036.0, 1e10, 1e18, 1e300, float("inf"), 10**18])
def test_a_wait_longer_than_the_clock_can_tell(tmp_path: Path, timeout: float) -> None:
    """It is a wait for ever: neither over at once nor an error that shows only when the word is unchanged."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        word = mapped.atomic_u64(0)
        waiter = Waiter(word, 0, timeout)
        until(lambda: word.notify() == 1 or not waiter.is_alive())
        word.store(1)
        word.notify()
        assert waiter.outcome() is True


def test_a_time_that_is_no_number_is_refused(tmp_path: Path) -> None:
    """Whether the word differs or not: an error that depends on that is found too late."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        word = mapped.atomic_u64(0)
        for expected in (0, 1):
            with pytest.raises(ValueError, match=r"NaN|nan|number"):
                word.wait(expected, float("nan"))
            for wrong in ("1", b"1", [1], object()):
                with pytest.raises(TypeError):
                    word.wait(expected, wrong)  # type: ignore[arg-type]


def test_signal_handlers_run_while_waiting(tmp_path: Path) -> None:
    """And the wait goes on after them, until the word changes."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 64) as mapped:
        word, handled = mapped.atomic_u64_slice(0, 2)
        with crew(wait_and_handle, (str(path),)) as (hand,):
            for count in range(3):
                until_asleep(word)
                os.kill(hand.pid, signal.SIGUSR1)
                assert handled.wait(count, TIMEOUT_SECONDS)
            assert hand.answer() == (True, 3)


def test_an_interrupt_ends_the_wait(tmp_path: Path) -> None:
    """Ctrl-C must not have to wait for another process."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 64) as mapped:
        with crew(wait_and_be_interrupted, (str(path),)) as (hand,):
            until_asleep(mapped.atomic_u64(0))
            os.kill(hand.pid, signal.SIGINT)
            assert hand.answer() == "interrupted"
        assert mapped.atomic_u64(0).notify() == 0


def test_other_threads_run_while_one_waits(tmp_path: Path) -> None:
    """A wait that kept the lock of the interpreter would keep out who is to end it."""
    code = """
import threading
from mmapio import MemoryMappedFile
mapped = MemoryMappedFile.create_rw(arguments[0], 64)
word = mapped.atomic_u64(0)
found = []
thread = threading.Thread(target=lambda: found.append(word.wait(0)))
thread.start()
while word.notify() != 1:
    pass
word.store(1)
word.notify()
thread.join()
answer(found)
"""
    assert run_python(code, tmp_path / "file") == [True]


def test_a_file_that_is_cut_ends_the_wait(tmp_path: Path) -> None:
    """Nobody can wake a sleeper whose page is gone: it has to find out by itself."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 2 * PAGE_SIZE) as mapped:
        word = mapped.atomic_u64(PAGE_SIZE)
        with crew(wait_for, (str(path), "open_ro", 8, PAGE_SIZE, 0)) as (hand,):
            until_asleep(word)
            os.truncate(path, PAGE_SIZE)
            assert hand.answer() == ("MappingFault", 0)
        for use in (word.notify, lambda: word.notify(1), lambda: word.wait(0), lambda: word.wait(1, 0)):
            with pytest.raises(MappingFault):
                use()


def test_a_handle_that_is_closed_meanwhile(tmp_path: Path) -> None:
    """The word stays mapped, and whoever has the file open can still end the wait."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 64) as mapped, MemoryMappedFile.open_rw(path) as other:
        word = mapped.atomic_u64(0)
        with waiting(word, 1, 0) as (waiter,):
            mapped.close()
            until_asleep(word)
            other.atomic_u64(0).store(1)
            other.atomic_u64(0).notify()
            assert waiter.outcome() is True
        assert word.wait(1, 0) is False


def test_a_word_that_is_dropped_while_it_is_waited_for(tmp_path: Path) -> None:
    """The waiter's own reference has to keep the page mapped."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 64) as kept:
        waiter = Waiter(MemoryMappedFile.open_rw(path).atomic_u64(0), 0)
        word = kept.atomic_u64(0)
        until_asleep(word)
        word.store(1)
        word.notify()
        assert waiter.outcome() is True


def test_a_forked_child_may_wait(tmp_path: Path) -> None:
    """Waiting changes nothing."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 64) as mapped:
        word = mapped.atomic_u64(0)
        assert in_child(lambda: (word.wait(0, 0.001), word.wait(1), word.notify())) == (False, True, 0)


def test_threads_of_a_private_copy_wake_each_other(tmp_path: Path) -> None:
    """Its bytes are this mapping's alone, and so are its waiters."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, 64) as mapped, MemoryMappedFile.open_cow(path) as private:
        word = private.atomic_u64(0)
        with waiting(word, 1, 0) as (waiter,):
            assert [mapped.atomic_u64(0).notify() for _ in range(20)] == [0] * 20
            word.store(1)
            word.notify()
            assert waiter.outcome() is True
        assert mapped.atomic_u64(0).load() == 0
