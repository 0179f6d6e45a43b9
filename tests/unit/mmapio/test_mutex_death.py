"""A mutex whose owner, maker or memory is gone: the next one must get it, and be told."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mmapio import PAGE_SIZE, MemoryMappedFile, MmapIoError, SharedMutex
from mmapio._wait import HAS_ROBUST_MUTEX
from tests.support.sanitizers import not_below_sanitizers
from tests.unit.mmapio.processes import (
    TIMEOUT_SECONDS,
    in_child,
    killed_after,
    living_child,
    outcome,
    run_python,
)

pytestmark = pytest.mark.skipif(
    not HAS_ROBUST_MUTEX, reason="no robust mutexes: NOT TESTED that one survives its owner"
)

# The header of a mutex at offset 0, of which the tests change parts.
LAYOUT = slice(4, 8)
BOOT = slice(8, 24)
DEVICE = slice(24, 32)
INODE = slice(32, 40)
NAMESPACE = slice(40, 48)
MUTEX = slice(64, 128)


def hold(path: Path, offset: int = 0) -> Callable[[], object]:
    """Take the mutex through a handle of one's own."""

    def take() -> object:
        mutex = SharedMutex(MemoryMappedFile.open_rw(path), offset)
        mutex.acquire()
        return mutex

    return take


def look(path: Path) -> tuple[bool, bool]:
    """Whether another process could have the mutex at offset 0 now, and would be told of a death."""

    def take() -> tuple[bool, bool]:
        mutex = SharedMutex(MemoryMappedFile.open_rw(path))
        return mutex.acquire(blocking=False), mutex.owner_died

    return in_child(take)


def test_a_killed_owner_is_survived_and_reported(tmp_path: Path) -> None:
    """Until somebody says that what it left half done is whole again: to each who takes it."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        mutex = SharedMutex(mapped)
        with mutex:
            assert not mutex.owner_died
        killed_after(hold(path))
        for _ in range(3):
            with mutex:
                assert mutex.owner_died
            assert in_child(lambda: SharedMutex(MemoryMappedFile.open_rw(path)).owner_died)
        with mutex:
            mutex.mark_consistent()
            assert not mutex.owner_died
        with mutex:
            assert not mutex.owner_died
        # Of one that was killed after it said so, the same holds again.
        killed_after(lambda: (mutex_of := hold(path)(), mutex_of.mark_consistent()))  # type: ignore[attr-defined]
        assert mutex.acquire(timeout=TIMEOUT_SECONDS)
        assert mutex.owner_died
        mutex.release()


def test_one_that_waits_is_told(tmp_path: Path) -> None:
    """Not only who comes after the death."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        mutex, found = SharedMutex(mapped), list[object]()

        def take() -> None:
            found.append(mutex.acquire(timeout=TIMEOUT_SECONDS))
            found.append(mutex.owner_died)
            mutex.release()

        with living_child(hold(path)):
            thread = threading.Thread(target=take)
            thread.start()
            while not mapped[67] & 0x80:
                thread.join(0.001)
        thread.join()
        assert found == [True, True]


def test_an_owner_that_ends_in_peace(tmp_path: Path) -> None:
    """A process that exits without a release is as dead as one that was killed."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        mutex = SharedMutex(mapped)
        code = """
from mmapio import MemoryMappedFile, SharedMutex
answer(SharedMutex(MemoryMappedFile.open_rw(arguments[0])).acquire())
"""
        assert run_python(code, path) is True
        assert mutex.acquire(timeout=TIMEOUT_SECONDS)
        assert mutex.owner_died
        mutex.release()


def test_an_owner_that_becomes_another_program(tmp_path: Path) -> None:
    """It lives on under the same number, but nobody in it knows of the mutex."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        mutex = SharedMutex(mapped)
        pid = os.fork()
        if pid == 0:
            signal.alarm(TIMEOUT_SECONDS)
            hold(path)()
            os.execv(sys.executable, [sys.executable, "-c", "import signal; signal.pause()"])
        try:
            while not any(mapped[MUTEX.start : MUTEX.start + 4]):
                assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            assert mutex.acquire(timeout=TIMEOUT_SECONDS)
            assert mutex.owner_died
            mutex.release()
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_thread_that_ends_holding_it(tmp_path: Path) -> None:
    """The process lives on; the mutex must be had again, and keep nothing alive once it is let go."""
    with MemoryMappedFile.create_rw(tmp_path / "file", PAGE_SIZE) as mapped:
        mutex = SharedMutex(mapped, 512)
        references = sys.getrefcount(mutex)
        for _ in range(3):
            thread = threading.Thread(target=mutex.acquire)
            thread.start()
            thread.join()
        assert mutex.acquire(timeout=TIMEOUT_SECONDS)
        assert mutex.owner_died
        mutex.release()
        assert sys.getrefcount(mutex) == references
        del mutex
        mapped.resize(512)


CRASH = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

static uintptr_t start, end;
static size_t most;

/* Die in the next copy to a place within a range, when so many bytes are there. */
void crash_in_copy(uintptr_t from, size_t count, size_t bytes) {
    most = bytes;
    end = from + count;
    start = from;
}

void *memmove(void *to, const void *from, size_t count) {
    static void *(*next)(void *, const void *, size_t);
    if (!next) next = (void *(*)(void *, const void *, size_t))dlsym(RTLD_NEXT, "memmove");
    if ((uintptr_t)to >= start && (uintptr_t)to < end) {
        for (size_t i = 0; i < most && i < count; i++) ((volatile char *)to)[i] = ((const char *)from)[i];
        kill(getpid(), SIGKILL);
        pause();
    }
    return next(to, from, count);
}
"""


@pytest.fixture(scope="module")
def crash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library that ends a process in the middle of a copy."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: NOT TESTED that a mutex survives the death of who makes it")
    directory = tmp_path_factory.mktemp("crash")
    source, library = directory / "crash.c", directory / "crash.so"
    source.write_text(CRASH)
    command = [compiler, "-shared", "-fPIC", "-O1", "-fno-builtin", "-Wall", "-Werror", "-o", str(library)]
    done = subprocess.run([*command, str(source), "-ldl"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


@not_below_sanitizers("it takes the place of the functions that the test makes die half way")
@pytest.mark.parametrize("state", ["new", "before a reboot", "held before a reboot", "died before a reboot"])
def test_its_maker_may_be_killed_at_any_byte(tmp_path: Path, crash: Path, state: str) -> None:
    """What a half-made one looks like must not be taken for somebody's data, and a death not be forgotten."""
    path = tmp_path / "file"
    code = """
import ctypes, os, signal
from mmapio import MemoryMappedFile, SharedMutex
mapped = MemoryMappedFile.open_rw(arguments[0])
crash = ctypes.CDLL(None).crash_in_copy
statuses = []
for count in arguments[1]:
    mapped[:128] = bytes.fromhex(arguments[2])
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        own = MemoryMappedFile.open_rw(arguments[0])
        crash(ctypes.c_size_t(own.address), ctypes.c_size_t(128), ctypes.c_size_t(count))
        SharedMutex(own)
        os._exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    left = mapped[:128]
    mutex = SharedMutex(mapped)
    statuses.append([mutex.acquire(timeout=0), mutex.owner_died])
    mutex.release()
answer(statuses)
"""
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        if state != "new":
            SharedMutex(mapped)
            if state == "held before a reboot":
                killed_after(hold(path))
            elif state == "died before a reboot":
                killed_after(hold(path))
                with SharedMutex(mapped):
                    pass
            mapped[BOOT] = bytes(16)
        counts = [*range(0, 128, 3), 127, 128]
        found = run_python(code, path, counts, mapped[:128].hex(), preload=crash)
        told = state not in ("new", "before a reboot")
        assert found == [-signal.SIGKILL, [True, told]] * len(counts)


def test_a_copy_of_the_file_has_a_mutex_of_its_own(tmp_path: Path) -> None:
    """Whoever held it when it was copied holds the original, and left the copy half done."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        mutex = SharedMutex(mapped)
        shutil.copy(path, tmp_path / "free")
        with mutex:
            shutil.copy(path, tmp_path / "held")
            assert look(tmp_path / "free") == (True, False)
            assert look(tmp_path / "held") == (True, True)
            assert look(path) == (False, False)
        for link in (os.link, os.symlink):
            link(path, tmp_path / link.__name__)
            with mutex:
                assert look(tmp_path / link.__name__) == (False, False)


def test_bytes_that_are_put_back_from_a_copy(tmp_path: Path) -> None:
    """Copied while it was held, and put back when that owner was gone: nobody is left to give it back."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        SharedMutex(mapped)
        with living_child(hold(path)):
            held = mapped[:]
            assert look(path) == (False, False)
        mutex = SharedMutex(mapped)
        with mutex:
            mutex.mark_consistent()
        mapped[:] = held
        assert mutex.acquire(timeout=TIMEOUT_SECONDS)
        assert mutex.owner_died
        mutex.release()


@pytest.mark.parametrize("part", [BOOT, DEVICE, INODE], ids=["boot", "device", "inode"])
def test_after_a_reboot_it_is_made_again(tmp_path: Path, part: slice) -> None:
    """The number of its owner means nothing then; that there was one, a lot."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        mutex = SharedMutex(mapped)
        made = mapped[: SharedMutex.SIZE]
        mapped[part] = bytes(part.stop - part.start)
        assert look(path) == (True, False)
        mapped[part] = bytes(part.stop - part.start)
        # Held by a living process, that of this test, as if it were another's before.
        mapped[: SharedMutex.SIZE] = made
        mutex.acquire()
        mapped[part] = bytes(part.stop - part.start)
        held = mapped[: SharedMutex.SIZE]
        mutex.release()
        mapped[: SharedMutex.SIZE] = held
        assert look(path) == (True, True)
        again = SharedMutex(mapped)
        with again:
            assert again.owner_died
            again.mark_consistent()
        assert mapped[: SharedMutex.SIZE][BOOT] == made[BOOT]


@pytest.mark.parametrize(
    ("part", "words"), [(NAMESPACE, "namespace of processes"), (LAYOUT, "C library")], ids=["pids", "libc"]
)
def test_who_would_not_know_its_owners_is_refused(tmp_path: Path, part: slice, words: str) -> None:
    """The same number is another thread there: a living owner would be declared dead."""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        SharedMutex(mapped)
        mapped[part] = struct.pack("<Q", 12345)[: part.stop - part.start]
        before = mapped[:]
        with pytest.raises(MmapIoError, match=f"another {words}"):
            SharedMutex(mapped)
        assert mapped[:] == before


def test_another_namespace_of_processes_is_refused(tmp_path: Path) -> None:
    """The same, with a real one."""
    unshare = shutil.which("unshare")
    prefix = (unshare or "", "--fork", "--pid")
    if unshare is None or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces of processes: NOT TESTED that a mutex is refused across them")
    code = """
from mmapio import MemoryMappedFile, MmapIoError, SharedMutex
mapped = MemoryMappedFile.open_rw(arguments[0])
try:
    answer(SharedMutex(mapped).acquire(False))
except MmapIoError as error:
    answer(str(error))
"""
    path = tmp_path / "file"
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        with SharedMutex(mapped):
            assert "another namespace of processes" in run_python(code, path, prefix=prefix)
        mapped[: SharedMutex.SIZE] = bytes(SharedMutex.SIZE)
        assert run_python(code, path, prefix=prefix) is True


def test_bytes_that_only_look_like_a_mutex(tmp_path: Path) -> None:
    """The C library trusts what it finds, and aborts on much of it: a file must not end a process."""
    path = tmp_path / "file"
    chance = random.Random(3)
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        SharedMutex(mapped)
        good = mapped[MUTEX]
        kinds = [0, 1, 2, 3, 0x10, 0x12, 0x20, 0x22, 0x30, 0x32, 0x40, 0x42, 0x50, 0x82, 0xA2, 0x100, 0x192]
        words = [0, 1, 2, os.getpid(), 0x3FFFFFFF, 0x40000000, 0x80000000, 0xC0000001, 0xFFFFFFFF]
        cases = [struct.pack("<I12xi", word, kind) + good[20:] for kind in kinds for word in words]
        cases += [struct.pack("<I", word) + good[4:] for word in words]
        cases += [chance.randbytes(64) for _ in range(20)]
        cases += [chance.randbytes(16) + good[16:20] + chance.randbytes(44) for _ in range(20)]

        def use() -> None:
            mutex = SharedMutex(MemoryMappedFile.open_rw(path))
            if mutex.acquire(timeout=0.002):
                mutex.release()

        def use_after(case: bytes) -> None:
            mutex = SharedMutex(MemoryMappedFile.open_rw(path))
            mapped[MUTEX] = case
            mutex.acquire(timeout=0.002)

        for case in cases:
            mapped[MUTEX] = case
            assert in_child(lambda: outcome(use)[0]) in ("", "MmapIoError", "RuntimeError"), case.hex()
        for case in cases[:: len(words)]:
            mapped[MUTEX] = good
            work = partial(outcome, partial(use_after, case))
            assert in_child(work)[0] in ("", "MmapIoError", "MappingFault", "Closed"), case.hex()


class Section:
    """What a mutex guards: two counts that are raised one after the other, and the name of who is inside."""

    INSIDE, FIRST, SECOND, VIOLATIONS, REPAIRS = range(256, 296, 8)

    def __init__(self, mapped: MemoryMappedFile) -> None:
        self.mapped = mapped

    def read(self, place: int) -> int:
        return int.from_bytes(self.mapped[place : place + 8], "little")

    def write(self, place: int, value: int) -> None:
        self.mapped[place : place + 8] = value.to_bytes(8, "little")

    def enter(self, name: int, owner_died: bool) -> None:
        """Nobody may be inside, nothing half done, but for one that died."""
        if owner_died:
            if self.read(self.FIRST) - self.read(self.SECOND) not in (0, 1):
                self.write(self.VIOLATIONS, 1)
            self.write(self.SECOND, self.read(self.FIRST))
            self.write(self.REPAIRS, self.read(self.REPAIRS) + 1)
        elif self.read(self.INSIDE) or self.read(self.FIRST) != self.read(self.SECOND):
            self.write(self.VIOLATIONS, 1)
        self.write(self.INSIDE, name)
        self.write(self.FIRST, self.read(self.FIRST) + 1)

    def leave(self, name: int) -> None:
        """Nobody may have come in between."""
        if self.read(self.INSIDE) != name:
            self.write(self.VIOLATIONS, 1)
        self.write(self.SECOND, self.read(self.SECOND) + 1)
        self.write(self.INSIDE, 0)


def toil(path: Path) -> None:
    """Take it and give it back until killed."""
    section = Section(MemoryMappedFile.open_rw(path))
    mutex = SharedMutex(section.mapped)
    while True:
        with mutex:
            section.enter(os.getpid(), mutex.owner_died)
            if mutex.owner_died:
                mutex.mark_consistent()
            section.leave(os.getpid())


def test_a_storm_of_kills(tmp_path: Path) -> None:
    """150 owners are killed wherever they are; nobody waits for the dead, and no two are inside at once.

    Or more, until the storm was one: kills hit owners, and work was done between them.
    """
    path = tmp_path / "file"
    chance = random.Random(1)
    with MemoryMappedFile.create_rw(path, PAGE_SIZE) as mapped:
        section, mutex = Section(mapped), SharedMutex(mapped)
        workers: list[int] = []
        try:
            for kills in range(20_000):
                if (
                    kills >= 150
                    and section.read(section.REPAIRS) > 10
                    and section.read(section.SECOND) > 1000
                ):
                    break
                while len(workers) < 2:
                    pid = os.fork()
                    if pid == 0:
                        try:
                            gc.disable()
                            toil(path)
                        finally:
                            os._exit(1)
                    workers.append(pid)
                threading.Event().wait(chance.random() * 0.004)
                victim = workers.pop(chance.randrange(2))
                os.kill(victim, signal.SIGKILL)
                assert os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]) == -signal.SIGKILL
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        assert mutex.acquire(timeout=TIMEOUT_SECONDS)
        section.enter(os.getpid(), mutex.owner_died)
        section.leave(os.getpid())
        mutex.release()
        assert section.read(section.VIOLATIONS) == 0
        assert section.read(section.REPAIRS) > 10
        assert section.read(section.SECOND) > 1000


@pytest.mark.parametrize("defect", ["two inside", "a death that is not told", "half done"])
def test_the_storm_would_show_a_failure(tmp_path: Path, defect: str) -> None:
    """The control: what it looks at changes when two are inside, or one is not told."""
    with MemoryMappedFile.create_rw(tmp_path / "file", PAGE_SIZE) as mapped:
        section = Section(mapped)
        section.enter(1, False)
        section.leave(1)
        assert section.read(section.VIOLATIONS) == 0
        section.enter(1, False)
        if defect == "two inside":
            section.enter(2, True)
            section.leave(1)
        elif defect == "a death that is not told":
            section.enter(2, False)
        else:
            section.write(section.FIRST, 9)
            section.enter(2, True)
        assert section.read(section.VIOLATIONS) == 1
