"""A mutex whose memory goes while it is held: the system's list of what a thread holds leads through it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from mmapio import PAGE_SIZE, MemoryMappedFile, SharedMutex
from mmapio._wait import HAS_ROBUST_MUTEX
from tests.unit.mmapio.processes import in_child, outcome, run_python

pytestmark = pytest.mark.skipif(
    not HAS_ROBUST_MUTEX,
    reason="no robust mutexes: NOT TESTED that cutting a file harms nothing else",
)


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


def test_letting_go_of_it_while_it_is_held(tmp_path: Path) -> None:
    """The system's list of what a thread holds leads through its memory, which must stay mapped."""
    path = tmp_path / "file"
    code = """
import gc, os
from mmapio import MemoryMappedFile, SharedMutex
mapped = MemoryMappedFile.create_rw(arguments[0], 4096)
other = SharedMutex(mapped, 512)
hold = lambda: SharedMutex(MemoryMappedFile.open_rw(arguments[0])).acquire()
found = [hold()]
gc.collect()
fresh = MemoryMappedFile.create_rw(arguments[0] + ".fresh", 4096)
for _ in range(3):
    with other:
        pass
found.append(any(fresh[:]))
try:
    found.append(SharedMutex(mapped).acquire(timeout=0))
except RuntimeError:
    found.append("mine")
answer(found)
"""
    assert run_python(code, path) == [True, False, "mine"]
    with MemoryMappedFile.open_rw(path) as mapped, SharedMutex(mapped) as mutex:
        assert mutex.owner_died


@pytest.mark.parametrize("extended", [False, True], ids=["cut", "cut and extended"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_file_that_is_cut_while_it_is_held(tmp_path: Path, order: tuple[int, int], extended: bool) -> None:
    """Each use is an error and no signal, and the thread can go on to use other mutexes."""
    code = """
import gc, os
from mmapio import MemoryMappedFile, SharedMutex
cut = MemoryMappedFile.create_rw(arguments[0] + ".cut", 8192)
whole = MemoryMappedFile.create_rw(arguments[0], 4096)
gone, waiting, other = SharedMutex(cut, 4096), SharedMutex(cut, 8064), SharedMutex(whole)
# On the same page, taken before and after it.
near = [SharedMutex(cut, 4096 + 128 * number) for number in (1, 2)]
near[0].acquire()
def outcome(use):
    try:
        return use()
    except Exception as error:
        return type(error).__name__
gone.acquire()
near[1].acquire()
os.truncate(arguments[0] + ".cut", 4096)
if arguments[2]:
    os.truncate(arguments[0] + ".cut", 8192)
uses = [lambda: gone.owner_died, gone.mark_consistent, gone.acquire, waiting.acquire]
found = [outcome(use) for use in uses]
found += [outcome(other.acquire), outcome(other.release)]
found += [outcome(gone.release), outcome(gone.release)]
found += [outcome(near[number].release) for number in arguments[1]]
cut.refresh()
cut.close()
del gone, waiting, near, cut, uses
gc.collect()
# What is mapped where the other was must not be stored to.
fresh = [MemoryMappedFile.create_rw(f"{arguments[0]}.{number}", 8192) for number in range(3)]
found += [outcome(other.acquire), outcome(other.release), any(any(each[:]) for each in fresh)]
answer(found)
"""
    path = tmp_path / "file"
    fault = "MappingFault"
    expected = [*[fault] * 4, True, None, fault, "RuntimeError", fault, fault, True, None, False]
    assert run_python(code, path, order, extended) == expected
    assert free(path)


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("end", ["release", "kill"])
def test_mutexes_taken_before_and_after_one_whose_file_is_cut(
    tmp_path: Path, gone: tuple[int, ...], end: str
) -> None:
    """They are neighbours in the system's list of what a thread holds: they must not be lost with it."""
    code = """
import os, signal
from mmapio import MappingFault, MemoryMappedFile, SharedMutex
paths, gone, order, end = arguments
pid = os.fork()
if pid == 0:
    signal.alarm(300)
    held = []
    for path in paths:
        held.append(SharedMutex(MemoryMappedFile.open_rw(path), 4096))
        held[-1].acquire()
    for number in gone:
        os.truncate(paths[number], 4096)
    if end == "release":
        for number in order:
            try:
                held[number].release()
            except MappingFault:
                assert number in gone
            else:
                assert number not in gone
        mutex = SharedMutex(MemoryMappedFile.open_rw(paths[3]), 4096 + 512)
        with mutex:
            pass
    os.kill(os.getpid(), signal.SIGKILL)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
found = []
for number in range(4):
    if number not in gone:
        mutex = SharedMutex(MemoryMappedFile.open_rw(paths[number]), 4096)
        found.append([mutex.acquire(timeout=100), mutex.owner_died])
answer([status, found])
"""
    orders = [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)] if end == "release" else [(0, 1, 2, 3)]
    for order in orders:
        paths = [tmp_path / f"file{number}" for number in range(4)]
        for path in paths:
            MemoryMappedFile.create_rw(path, 3 * 4096).close()
        status, found = run_python(code, paths, gone, order, end)
        assert status == -signal.SIGKILL
        assert found == [[True, end == "kill"]] * (4 - len(gone))


def test_overwriting_it_while_it_is_held_harms_nothing_else(tmp_path: Path) -> None:
    """The mutex is lost; what others store to the rest of its page must still reach the file."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped, MemoryMappedFile.open_rw(path) as other:
        lost, kept = SharedMutex(mapped, 0), SharedMutex(other, 512)
        lost.acquire()
        with mapped.as_slice_mut(1024, 8) as slice_, memoryview(slice_) as view:
            other[: SharedMutex.SIZE] = bytes(SharedMutex.SIZE)
            with kept:
                pass
            assert outcome(lost.release)[0] in ("MappingFault", "RuntimeError", "MmapIoError")
            view[:3] = b"abc"
            assert path.read_bytes()[1024:1027] == b"abc"
        with kept:
            assert not free(path, 512)
        assert free(path)


def test_two_threads_whose_mutexes_go_with_one_page(tmp_path: Path) -> None:
    """What one thread does about its own must not undo what the other did: it would store into nothing."""
    code = """
import gc, os, threading
from concurrent.futures import ThreadPoolExecutor
from mmapio import MappingFault, MemoryMappedFile, SharedMutex
cut = MemoryMappedFile.create_rw(arguments[0] + ".cut", 8192)
whole = MemoryMappedFile.create_rw(arguments[0], 4096)
mine, others, other = SharedMutex(cut, 4096), SharedMutex(cut, 4224), SharedMutex(whole)
def use():
    with other:
        return "used"
def release(mutex):
    try:
        mutex.release()
    except MappingFault:
        return "MappingFault"
with ThreadPoolExecutor(1) as thread:
    mine.acquire()
    thread.submit(others.acquire).result()
    os.truncate(arguments[0] + ".cut", 4096)
    found = [use(), thread.submit(use).result(), release(mine), thread.submit(release, others).result()]
    cut.refresh()
    cut.close()
    del mine, others, cut
    gc.collect()
    fresh = [MemoryMappedFile.create_rw(f"{arguments[0]}.{number}", 8192) for number in range(3)]
    found += [use(), thread.submit(use).result(), any(any(each[:]) for each in fresh)]
answer(found)
"""
    found = run_python(code, tmp_path / "file")
    assert found == ["used", "used", "MappingFault", "MappingFault", "used", "used", False]


def test_one_that_goes_while_its_owner_waits_for_another(tmp_path: Path) -> None:
    """The one that is waited for is taken in the end: with success or without, it must not stay taken."""
    code = """
import os, time
from concurrent.futures import ThreadPoolExecutor
from mmapio import MappingFault, MemoryMappedFile, SharedMutex
cut = SharedMutex(MemoryMappedFile.create_rw(arguments[0] + ".cut", 8192), 4096)
whole = MemoryMappedFile.create_rw(arguments[0], 4096)
wanted = SharedMutex(whole)
def take():
    try:
        wanted.acquire()
    except MappingFault:
        return
    wanted.release()
with ThreadPoolExecutor(1) as thread:
    thread.submit(cut.acquire).result()
    wanted.acquire()
    taken = thread.submit(take)
    while not whole[67] & 0x80:
        time.sleep(0.001)
    os.truncate(arguments[0] + ".cut", 4096)
    wanted.release()
    taken.result()
    answer(wanted.acquire(timeout=100))
"""
    assert run_python(code, tmp_path / "file") is True
