"""A mutex in a mapped file: whom it excludes, what it says to misuse, where it may lie."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mmapio import (
    PAGE_SIZE,
    Closed,
    InvalidMode,
    MemoryMappedFile,
    Misaligned,
    MmapIoError,
    OutOfBounds,
    ResizeFailed,
    SharedMutex,
    _os,
)
from mmapio._wait import HAS_ROBUST_MUTEX
from tests.support.waiting import until
from tests.unit.mmapio.crew import answers, crew
from tests.unit.mmapio.processes import TIMEOUT_SECONDS, in_child, living_child, outcome, run_python

pytestmark = pytest.mark.skipif(
    not HAS_ROBUST_MUTEX, reason="no robust mutexes: NOT TESTED that they exclude"
)

#: Where the tests keep what the mutex at offset 0 guards.
COUNTER = 256
ARRIVED = 264
#: The lowest bit of the byte of the kernel's word that says whether somebody waits for the mutex at offset 0.
WAITERS = 67
#: The byte that is locked while the mutex at offset 0 is initialised.
INITIALISING = 1 << 62


def free(path: Path, offset: int = 0) -> bool:
    """Whether another process could have the mutex now."""

    def take() -> bool:
        with MemoryMappedFile.open_rw(path) as own:
            mutex = SharedMutex(own, offset)
            if not mutex.acquire(blocking=False):
                return False
            mutex.release()
            return True

    return in_child(take)


def hold(path: Path) -> Callable[[], object]:
    """Take the mutex at offset 0 through a handle of one's own."""

    def take() -> object:
        mutex = SharedMutex(MemoryMappedFile.open_rw(path))
        mutex.acquire()
        return mutex

    return take


def add(path: str, guarded: bool, rounds: int, meet: int) -> None:
    """Add 1 to the counter, by a read and a write; the first time, `meet` processes meet between the two."""
    with MemoryMappedFile.open_rw(path) as mapped:
        arrived = mapped.atomic_u64(ARRIVED)
        mutex = SharedMutex(mapped) if guarded else nullcontext()
        for number in range(rounds):
            with mutex:
                value = int.from_bytes(mapped[COUNTER : COUNTER + 8], "little")
                if number == 0 and meet:
                    arrived.fetch_add(1)
                    arrived.notify()
                    while (seen := arrived.load()) < meet:
                        arrived.wait(seen)
                mapped[COUNTER : COUNTER + 8] = (value + 1).to_bytes(8, "little")


def wait_for_it(path: str) -> tuple[str, int]:
    """Wait for the mutex, with a handler that counts signals in the second word; what came of it."""
    with MemoryMappedFile.open_rw(path) as mapped:
        ready, handled = mapped.atomic_u64_slice(COUNTER, 2)
        mutex = SharedMutex(mapped)

        def handle(*_: object) -> None:
            handled.fetch_add(1)
            handled.notify()

        signal.signal(signal.SIGUSR1, handle)
        try:
            ready.store(1)
            ready.notify()
            with mutex:
                return "taken", handled.load()
        except KeyboardInterrupt:
            return f"interrupted, held {mutex.is_held}", handled.load()


def test_processes_exclude_each_other(tmp_path: Path) -> None:
    """Each addition reads and writes; one between the two is lost."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        answers(add, *[(str(path), True, 3000, 0)] * 4)
        assert mapped.atomic_u64(COUNTER).load() == 4 * 3000


def test_without_the_mutex_an_addition_is_lost(tmp_path: Path) -> None:
    """The control: two that read before either writes count once."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        answers(add, *[(str(path), False, 1, 2)] * 2)
        assert mapped.atomic_u64(COUNTER).load() == 1


@pytest.mark.parametrize("objects", ["one", "each its own", "each its own mapping"])
def test_threads_exclude_each_other(tmp_path: Path, objects: str) -> None:
    """Through one object or several: what an object remembers must not mix up the threads."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        shared = SharedMutex(mapped)

        def add_up() -> None:
            mutex = shared
            if objects != "one":
                mutex = SharedMutex(mapped if "mapping" not in objects else MemoryMappedFile.open_rw(path))
            for _ in range(200):
                with mutex:
                    value = mapped[COUNTER]
                    assert mutex.is_held
                    time.sleep(0)
                    mapped[COUNTER] = (value + 1) % 251

        threads = [threading.Thread(target=add_up) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert mapped[COUNTER] == 1000 % 251
        assert not shared.is_held
        assert free(path)


@pytest.mark.parametrize("stale", [False, True], ids=["new", "from before a reboot"])
def test_eight_processes_may_come_first(tmp_path: Path, stale: bool) -> None:
    """One initialises it; whoever did it again would free it below its owner."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        if stale:
            SharedMutex(mapped)
            mapped[8:24] = bytes(16)
        answers(add, *[(str(path), True, 200, 0)] * 8)
        assert mapped.atomic_u64(COUNTER).load() == 8 * 200


def test_two_mutexes_of_one_file_are_two(tmp_path: Path) -> None:
    """Also next to each other, and across a page."""
    path, size = tmp_path / "file", SharedMutex.SIZE
    with MemoryMappedFile.create_rw(path, 2 * PAGE_SIZE) as mapped:
        offsets = [0, size, 2 * size + 8, PAGE_SIZE - 8, PAGE_SIZE - 64 + 2 * size, 2 * PAGE_SIZE - size]
        mutexes = [SharedMutex(mapped, offset) for offset in offsets]
        for mutex in mutexes:
            assert mutex.acquire(blocking=False)
        for mutex in [*mutexes[::2], *mutexes[1::2]]:
            assert not free(path, mutex.offset)
            mutex.release()
            with mutex:
                assert mutex.is_held
        assert [mutex.offset for mutex in mutexes] == offsets


def test_objects_of_one_mutex_are_one(tmp_path: Path) -> None:
    """Two objects of the same bytes, in one mapping or two; each knows whether it was taken through it."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped, MemoryMappedFile.open_rw(path) as other:
        first, *others = SharedMutex(mapped), SharedMutex(mapped, 0), SharedMutex(other, offset=0)
        for second in others:
            with first:
                assert (first.is_held, second.is_held) == (True, False)
                with pytest.raises(RuntimeError, match="not reentrant"):
                    second.acquire()
                with pytest.raises(RuntimeError, match="not reentrant"):
                    second.acquire(timeout=0.01)
                with pytest.raises(RuntimeError, match="not held"):
                    second.release()
                assert not free(path)
            with second:
                assert second.is_held
                assert not free(path)
        assert free(path)


def test_time_runs_out(tmp_path: Path) -> None:
    """As of threading.Lock: a caller with a limit must not wait for ever."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        mutex = SharedMutex(mapped)
        with living_child(hold(path)):
            assert mutex.acquire(False) is False
            assert mutex.acquire(blocking=False) is False
            for timeout in (0, 0.0, 1e-12, 0.001, 0.02, 0.15):
                assert mutex.acquire(timeout=timeout) is False
                assert mutex.acquire(True, timeout) is False
            assert not mutex.is_held
            assert not mutex.owner_died
        assert mutex.acquire(timeout=0) is True
        assert mutex.owner_died


def test_times_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    """Whether it is free or not: an error that depends on that is found too late."""
    with MemoryMappedFile.create_rw(tmp_path / "file", PAGE_SIZE) as mapped:
        mutex = SharedMutex(mapped)
        wrong: list[tuple[Any, Any, type[Exception]]] = [
            (True, -2, ValueError),
            (True, -0.5, ValueError),
            (True, float("-inf"), ValueError),
            (False, 1, ValueError),
            (True, float("nan"), ValueError),
            (True, "1", TypeError),
            (True, None, TypeError),
        ]
        with living_child(hold(mapped.path)):  # type: ignore[arg-type]
            for blocking, timeout, kind in wrong:
                with pytest.raises(kind):
                    mutex.acquire(blocking, timeout)
        for blocking, timeout, kind in wrong:
            with pytest.raises(kind):
                mutex.acquire(blocking, timeout)
        assert not mutex.is_held


@pytest.mark.parametrize("timeout", [-1, 1e9, 9223372036.0, 1e10, 1e18, 1e300, float("inf"), 10**18])
def test_a_wait_longer_than_the_clock_can_tell(tmp_path: Path, timeout: float) -> None:
    """It is a wait for ever: neither over at once nor an error that shows only when the mutex is taken."""
    with MemoryMappedFile.create_rw(tmp_path / "file", PAGE_SIZE) as mapped:
        mutex, found = SharedMutex(mapped), list[object]()

        def take() -> None:
            try:
                found.append(mutex.acquire(timeout=timeout))
                mutex.release()
            except Exception as error:
                found.append(error)

        with mutex:
            thread = threading.Thread(target=take)
            thread.start()
            until(lambda: bool(mapped[WAITERS] & 0x80) or not thread.is_alive())
        thread.join()
        assert found == [True]


def test_other_threads_run_while_one_waits(tmp_path: Path) -> None:
    """A wait that kept the lock of the interpreter would keep out who is to give the mutex back."""
    code = """
import threading
from mmapio import MemoryMappedFile, SharedMutex
mapped = MemoryMappedFile.create_rw(arguments[0], 4096)
mutex = SharedMutex(mapped)
found = []
def take():
    found.append(mutex.acquire())
    mutex.release()
mutex.acquire()
thread = threading.Thread(target=take)
thread.start()
while not mapped[67] & 0x80:
    pass
mutex.release()
thread.join()
answer(found)
"""
    assert run_python(code, tmp_path / "file") == [True]


def test_signal_handlers_run_while_waiting(tmp_path: Path) -> None:
    """And the wait goes on after them; Ctrl-C ends it, and leaves nothing behind."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        ready, handled = mapped.atomic_u64_slice(COUNTER, 2)
        for last, came in ((signal.SIGUSR1, "taken"), (signal.SIGINT, "interrupted, held False")):
            ready.store(0)
            handled.store(0)
            mutex = SharedMutex(mapped)
            mutex.acquire()
            with crew(wait_for_it, (str(path),)) as (hand,):
                ready.wait(0)
                for count in range(3):
                    os.kill(hand.pid, signal.SIGUSR1)
                    assert handled.wait(count, TIMEOUT_SECONDS)
                until(lambda: bool(mapped[WAITERS] & 0x80))
                if last == signal.SIGINT:
                    os.kill(hand.pid, last)
                    assert hand.answer() == (came, 3)
                mutex.release()
                if last == signal.SIGUSR1:
                    assert hand.answer() == (came, 3)
            assert mutex.acquire(timeout=TIMEOUT_SECONDS)
            assert not mutex.owner_died
            mutex.release()


def test_only_who_holds_it_gives_it_back(tmp_path: Path) -> None:
    """A release by another would let a third in."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        mutex = SharedMutex(mapped)
        for misuse in (mutex.release, mutex.mark_consistent):
            assert outcome(misuse)[0] == "RuntimeError"
        with mutex:
            found: list[str] = []
            thread = threading.Thread(
                target=lambda: found.extend(outcome(use)[0] for use in (mutex.release, mutex.mark_consistent))
            )
            thread.start()
            thread.join()
            assert found == ["RuntimeError", "RuntimeError"]
            assert mutex.is_held
            assert not free(path)
        assert free(path)
        with pytest.raises(RuntimeError, match="not held"):
            mutex.release()


def test_an_exception_gives_it_back(tmp_path: Path) -> None:
    """And goes on its way."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        mutex = SharedMutex(mapped)
        with pytest.raises(ZeroDivisionError), mutex as entered:
            assert entered is mutex
            raise ZeroDivisionError
        assert free(path)


def test_a_forked_child_holds_nothing(tmp_path: Path) -> None:
    """What the parent holds stays the parent's, whatever the child does with the objects it inherited."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        mutex = SharedMutex(mapped)
        mapped[48] = 1  # an owner died
        mutex.acquire()

        def child() -> list[object]:
            kinds = [
                outcome(use)[0]
                for use in (mutex.release, mutex.mark_consistent, mutex.acquire, lambda: SharedMutex(mapped))
            ]
            own = SharedMutex(MemoryMappedFile.open_rw(path))
            with SharedMutex(MemoryMappedFile.open_rw(path), 512):
                return [*kinds, own.acquire(timeout=0.01), mutex.owner_died]

        assert in_child(child) == ["RuntimeError", "RuntimeError", "Closed", "Closed", False, True]
        assert mutex.is_held
        assert mutex.owner_died
        assert not free(path)
        mutex.release()
        assert free(path)


def test_a_child_that_is_forked_while_it_is_made(tmp_path: Path) -> None:
    """The child inherited the lock that the making is done under, and kept it for as long as it lived."""
    code = """
import os, signal, threading, time
from mmapio import MemoryMappedFile, SharedMutex, _os
mapped = MemoryMappedFile.create_rw(arguments[0], 4096)
lock = _os.open_file(arguments[0], True)
_os.lock_byte(lock, 1 << 62, True)
before = len(os.listdir("/proc/self/fd"))
thread = threading.Thread(target=lambda: SharedMutex(mapped))
thread.start()
while len(os.listdir("/proc/self/fd")) == before:
    pass
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    signal.pause()
_os.unlock_byte(lock, 1 << 62)
thread.join()
answer(_os.lock_byte(lock, 1 << 62, True))
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
"""
    assert run_python(code, tmp_path / "file") is True


def test_a_file_that_is_closed_while_it_is_made(tmp_path: Path) -> None:
    """The making may wait for another process: the file must be looked at again after that."""
    path = tmp_path / "file"
    mapped = MemoryMappedFile.create_rw(path, PAGE_SIZE)
    lock = _os.open_file(path, True)
    assert _os.lock_byte(lock, INITIALISING, True)
    open_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(outcome(lambda: SharedMutex(mapped))[0]))
    thread.start()
    until(lambda: len(os.listdir("/proc/self/fd")) > open_before)  # noqa: PTH208
    mapped.close()
    _os.unlock_byte(lock, INITIALISING)
    thread.join()
    assert found == ["Closed"]
    assert path.read_bytes() == bytes(PAGE_SIZE)


@pytest.mark.parametrize("mode", ["open_ro", "open_cow"])
def test_a_mapping_that_nobody_shares_has_no_mutex(tmp_path: Path, mode: str) -> None:
    """A private copy's would exclude nobody, a reader's cannot be taken."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE_SIZE))
    with getattr(MemoryMappedFile, mode)(path) as mapped:
        with pytest.raises(InvalidMode) as raised:
            SharedMutex(mapped)
        assert raised.value.filename == mapped.path
    assert path.read_bytes() == bytes(PAGE_SIZE)
    with pytest.raises(Closed):
        SharedMutex(mapped)


def test_it_lies_whole_in_the_file_on_a_multiple_of_8(tmp_path: Path) -> None:
    """Else its words would not be atomic, or not there."""
    size = SharedMutex.SIZE
    with MemoryMappedFile.create_rw(tmp_path / "file", 1000) as mapped:
        for offset in [*range(1, 8), *range(9, 16), 1001]:
            with pytest.raises(Misaligned, match=f"not {offset}"):
                SharedMutex(mapped, offset)
        for offset in (1000 - size + 8, 1000, 2**32, 2**62, 2**63 - 8, 2**63, 2**64, 2**64 + 8, -8, -1):
            with pytest.raises(OutOfBounds):
                SharedMutex(mapped, offset)
        for wrong in ("0", 0.0, None):
            with pytest.raises(TypeError):
                SharedMutex(mapped, wrong)  # type: ignore[arg-type]
        assert mapped[:] == bytes(1000)
        with SharedMutex(mapped, 1000 - size):
            pass
    with MemoryMappedFile.create_rw(tmp_path / "file", size - 1) as mapped, pytest.raises(OutOfBounds):
        SharedMutex(mapped)
    with MemoryMappedFile.create_rw(tmp_path / "file", size) as mapped, SharedMutex(mapped):
        pass
    for nothing in (None, "file", tmp_path):
        with pytest.raises(TypeError):
            SharedMutex(nothing)  # type: ignore[arg-type]


def test_bytes_that_hold_something_else_are_left_alone(tmp_path: Path) -> None:
    """Whose they are, nobody knows: overwriting them would destroy data."""
    with MemoryMappedFile.create_rw(tmp_path / "file", PAGE_SIZE) as mapped:
        for at in range(SharedMutex.SIZE):
            mapped[at] = 1
            with pytest.raises(MmapIoError, match="not zero and no mutex"):
                SharedMutex(mapped)
            assert mapped[: SharedMutex.SIZE] == bytes(at) + b"\1" + bytes(SharedMutex.SIZE - at - 1)
            mapped[at] = 0
        # An object that was refused is in nobody's way.
        mapped.resize(8)
        mapped.resize(PAGE_SIZE)
        SharedMutex(mapped)


def test_closing_the_file_keeps_it_held(tmp_path: Path) -> None:
    """Who holds it can still give it back, and must."""
    path = tmp_path / "file"
    mapped = MemoryMappedFile.create_rw(path, PAGE_SIZE)
    mutex = SharedMutex(mapped)
    with mutex:
        mapped.close()
        assert not free(path)
        mutex.mark_consistent()
    assert free(path)
    assert not mutex.owner_died
    for use in (mutex.acquire, lambda: mutex.acquire(False)):
        with pytest.raises(Closed):
            use()


def test_closing_the_file_ends_the_wait(tmp_path: Path) -> None:
    """Of a thread that waits through that handle."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped, living_child(hold(path)):
        mutex = SharedMutex(mapped)
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(outcome(mutex.acquire)[0]))
        thread.start()
        until(lambda: bool(mapped[WAITERS] & 0x80))
        mapped.close()
        thread.join()
        assert found == ["Closed"]


def test_growth_moves_no_mutex_and_a_cut_is_refused(tmp_path: Path) -> None:
    """Held before and given back after growth beyond the reservation, which maps the file anew."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE, reserve=PAGE_SIZE) as mapped:
        mutex = SharedMutex(mapped, 0)
        mutex.acquire()
        mapped.resize(64 * PAGE_SIZE)
        late = SharedMutex(mapped, 0)
        with pytest.raises(RuntimeError, match="not reentrant"):
            late.acquire()
        assert not free(path)
        mutex.release()
        with late:
            assert not free(path)
        with pytest.raises(ResizeFailed, match=f"byte {SharedMutex.SIZE}"):
            mapped.resize(64)
        del mutex, late
        mapped.resize(64)


def test_it_cannot_be_copied_or_pickled_and_says_where_it_is(tmp_path: Path) -> None:
    """A copy would be another object that thinks it knows who holds it."""
    with MemoryMappedFile.create_rw(tmp_path / "file", PAGE_SIZE) as mapped:
        mutex = SharedMutex(mapped, 64)
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="pickled or copied"):
                attempt(mutex)
        assert repr(mutex) == "<SharedMutex at offset 64>"
        with mutex:
            assert repr(mutex) == "<SharedMutex at offset 64, held>"
