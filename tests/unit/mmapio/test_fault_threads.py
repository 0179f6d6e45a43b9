"""Faults with many threads, in forked children, and below signal handlers."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import os
import signal
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import PAGE_SIZE, FlushPolicy, MemoryMappedFile, SharedMutex
from tests.unit.mmapio.processes import in_child, outcome

PAGES = 128
SIZE = PAGES * PAGE_SIZE
KEPT = PAGE_SIZE
FAR = 100 * PAGE_SIZE

MODES: dict[str, Callable[[Path], MemoryMappedFile]] = {
    "read-only": MemoryMappedFile.open_ro,
    "read-write": MemoryMappedFile.open_rw,
    "copy-on-write": MemoryMappedFile.open_cow,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of `SIZE` bytes, all of them x."""
    place = tmp_path / "file"
    place.write_bytes(b"x" * SIZE)
    return place


@pytest.mark.parametrize("mode", MODES)
def test_many_threads_fault_at_once(path: Path, mode: str) -> None:
    """Each has a guard of its own; whoever maps the zeros first must not trip the others."""

    def work() -> tuple[set[str], set[str], set[str]]:
        mapped = MODES[mode](path)
        view = mapped.as_slice()
        together = threading.Barrier(8)
        digests: set[str] = set()
        ends: set[str] = set()

        def read(number: int) -> None:
            together.wait()
            if number % 2:
                digests.add(hashlib.sha256(memoryview(view)[KEPT:]).hexdigest())
            ends.add(outcome(lambda: mapped.read_into(0, bytearray(SIZE)))[0])
            ends.add(outcome(lambda: bytes(view))[0])

        for _ in range(20):
            threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            os.truncate(path, KEPT)
            for thread in threads:
                thread.join()
            path.write_bytes(b"x" * SIZE)
            mapped.refresh()
            view = mapped.as_slice()
        return digests, ends, {outcome(lambda: bytes(view))[0], outcome(lambda: mapped[FAR])[0]}

    digests, ends, healed = in_child(work)
    # One that was begun before the cut may have met any number of pages that were still there.
    assert digests
    assert "MappingFault" in ends
    assert ends <= {"MappingFault", ""}
    assert healed == {""}


def test_a_fault_leaves_other_threads_and_mappings_alone(path: Path) -> None:
    """Only the thread that touched the page may jump, and only the mapping that it lies in be marked."""

    def work() -> tuple[int, int]:
        other = path.with_name("other")
        other.write_bytes(b"o" * SIZE)
        healthy = MemoryMappedFile.open_rw(other)
        view = healthy.as_slice()
        stop = threading.Event()
        reads = itertools.count()
        wrong = []

        def read() -> None:
            while not stop.is_set():
                if healthy.read_bytes(0, SIZE) != b"o" * SIZE or view != b"o" * SIZE:
                    wrong.append(next(reads))
                next(reads)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        faults = 0
        for _ in range(200):
            lost = MemoryMappedFile.open_rw(path)
            foreign = memoryview(lost.as_slice())
            os.truncate(path, KEPT)
            faults += outcome(lambda: lost.read_bytes(0, SIZE))[0] == "MappingFault"  # noqa: B023
            assert foreign[FAR] == 0
            path.write_bytes(b"x" * SIZE)
        while next(reads) < 50:
            stop.wait(0.001)
        stop.set()
        for thread in threads:
            thread.join()
        return faults, len(wrong)

    assert in_child(work) == (200, 0)


def test_closing_while_another_thread_copies(tmp_path: Path) -> None:
    """A copy runs without the GIL: what it touches stays mapped, and its end finds a closed handle."""
    size = 64 << 20
    ways: dict[str, Callable[[MemoryMappedFile, bytearray], object]] = {
        "reading": lambda mapped, memory: mapped.read_into(0, memory),
        "writing": lambda mapped, memory: mapped.update_region(0, memory),
    }

    def work(policy: FlushPolicy, use: Callable[[MemoryMappedFile, bytearray], object]) -> set[str]:
        memory = bytearray(b"z" * size)
        found = set()
        for _ in range(5):
            mapped = MemoryMappedFile.create_rw(tmp_path / "file", size, flush_policy=policy)
            begun = threading.Event()
            ends: list[str] = []

            def copy(mapped: MemoryMappedFile = mapped, ends: list[str] = ends) -> None:
                begun.set()  # noqa: B023
                ends.append(outcome(lambda: use(mapped, memory))[0])

            thread = threading.Thread(target=copy)
            thread.start()
            begun.wait()
            mapped.close()
            thread.join()
            found |= set(ends)
        return found

    for policy in (FlushPolicy.MANUAL, FlushPolicy.ALWAYS):
        for use in ways.values():
            # Whichever came first; and never a sync of whatever descriptor has the number now.
            assert in_child(lambda policy=policy, use=use: work(policy, use)) <= {"", "Closed"}  # type: ignore[misc]


def test_a_child_faults_alone(path: Path) -> None:
    """Fork copies the table and the guard; the parent has its own marks."""

    def parent() -> tuple[tuple[int, str, str], bytes, str]:
        mapped = MemoryMappedFile.open_rw(path)
        view = mapped.as_slice()

        def child() -> tuple[int, str, str]:
            os.truncate(path, KEPT)
            return (
                memoryview(view)[FAR],
                outcome(lambda: mapped[0])[0],
                outcome(lambda: mapped.read_bytes(FAR, 8))[0],
            )

        found = in_child(child)
        path.write_bytes(b"y" * SIZE)
        return found, bytes(memoryview(view)[FAR : FAR + 4]), outcome(lambda: mapped[FAR])[0]

    assert in_child(parent) == ((0, "MappingFault", "MappingFault"), b"yyyy", "")


def test_python_signal_handlers_that_fault_themselves(path: Path) -> None:
    """They run between two steps of the interpreter, so never inside a guard, and may use any handle."""

    def work() -> tuple[int, int, str]:
        mapped, other = MemoryMappedFile.open_rw(path), path.with_name("other")
        other.write_bytes(b"o" * SIZE)
        lost = MemoryMappedFile.open_ro(other)
        foreign = memoryview(lost.as_slice())
        os.truncate(other, 0)
        faults = itertools.count()

        def handler(number: int, frame: object) -> None:
            if outcome(lambda: lost.read_bytes(FAR, 8))[0] == "MappingFault" and foreign[FAR] == 0:
                next(faults)
            lost.refresh()

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        wrong = 0
        for _ in range(3000):
            wrong += mapped.read_bytes(0, SIZE) != b"x" * SIZE
        signal.setitimer(signal.ITIMER_REAL, 0)
        return wrong, next(faults), outcome(lambda: mapped[0])[0]

    wrong, faults, checked = in_child(work)
    assert (wrong, checked) == (0, "")
    assert faults >= 1


def let_sleepers_find_no_page() -> None:
    """From now on the kernel answers EFAULT to whoever goes to sleep on a word that processes share."""
    futex = {"x86_64": 202, "aarch64": 98}.get(os.uname().machine)
    if futex is None:
        raise OSError(f"the number of the system call is not known on {os.uname().machine}")
    load, equal, give = 0x20, 0x15, 0x06
    # FUTEX_WAIT, FUTEX_WAIT_BITSET with either clock; the interpreter's own carry the private flag.
    sleeps = (0, 9, 9 | 256)
    program = [(load, 0, 0, 0), (equal, 0, len(sleeps) + 1, futex), (load, 0, 0, 24)]
    program += [(equal, len(sleeps) - at, 0, operation) for at, operation in enumerate(sleeps)]
    program += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050000 | errno.EFAULT)]
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code)
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_filter = 38, 22
    for call in ((no_new_privileges, 1, 0, 0, 0), (set_filter, 2, filters, 0, 0)):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def test_a_waiter_whose_mutex_goes_as_it_falls_asleep(path: Path) -> None:
    """The kernel says EFAULT then, and the C library's own waiting ends the process on that."""

    def work() -> str:
        path.write_bytes(bytes(SIZE))
        mapped = MemoryMappedFile.open_rw(path)
        other = SharedMutex(mapped, 0)
        holding, done, released = threading.Event(), threading.Event(), threading.Event()

        def hold() -> None:
            other.acquire()
            holding.set()
            done.wait()
            other.release()
            released.set()

        threading.Thread(target=hold).start()
        holding.wait()
        let_sleepers_find_no_page()
        ended = outcome(lambda: SharedMutex(mapped, 0).acquire(timeout=100))[0]
        done.set()
        # Not join(): where Python has the C library do that, it sleeps on a word that the filter covers.
        released.wait()
        return ended

    assert in_child(work) == "MappingFault"
