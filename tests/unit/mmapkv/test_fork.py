"""What a forked child may do with a store that it inherited: read. A reader there is a reader of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmapio import _fork
from mmapkv import KVStore
from tests.unit.mmapio.processes import TIMEOUT_SECONDS, in_child, outcome
from tests.unit.mmapkv.colliding_keys import HashInverter, seed_of
from tests.unit.mmapkv.stores import agreeing, contents, opened


@contextmanager
def child_that_waits(work: Callable[[], object]) -> Iterator[Callable[[], tuple[str, str]]]:
    """A child forked now, which does `work` when the block calls what it is given; the answer is its outcome.

    It lives until the block ends.
    """
    (asked, ask), (answered, answer) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(TIMEOUT_SECONDS)
        try:
            os.close(ask)
            if os.read(asked, 1):
                os.write(answer, "\n".join(outcome(work)).encode())
            os.read(asked, 1)
        finally:
            os._exit(0)

    os.close(asked)
    os.close(answer)

    def go() -> tuple[str, str]:
        os.write(ask, b".")
        kind, _, text = os.read(answered, 65536).decode().partition("\n")
        return kind, text

    try:
        yield go
    finally:
        os.close(ask)
        os.waitpid(pid, 0)
        os.close(answered)


def replace_index(kv: KVStore, path: Path) -> None:
    """Have the writer build another index in place of the one that all have mapped."""
    before = seed_of(path)
    for key in HashInverter(before).twins(7, 24, 5, 64):
        kv[key] = b"x"
    assert seed_of(path) != before


def test_the_error_says_what_to_do(tmp_path: Path) -> None:
    """Whoever reads it knows that a fork did it, and how to go on."""
    with opened(tmp_path / "kv") as kv:
        kind, text = in_child(lambda: outcome(lambda: kv.put(b"a", b"1")))
        assert kind == "Closed"
        assert "inherited by fork" in text
        assert "open it again in the child, with mode 'r'" in text
        assert str(tmp_path / "kv") in text


def test_a_child_that_opens_it_again(tmp_path: Path) -> None:
    """As the error advises: to read while the parent writes, and to write when it has closed."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"a"] = b"1"
        assert in_child(lambda: contents(path)) == {b"a": b"1"}
        assert in_child(lambda: outcome(lambda: opened(path)))[0] == "Locked"

        def write() -> None:
            with opened(path) as again:
                again[b"b"] = b"2"

        with child_that_waits(write) as go:
            kv.close()
            assert go() == ("", "")
    assert contents(path) == {b"a": b"1", b"b": b"2"}


@pytest.mark.parametrize("generations", [1, 2])
def test_an_inherited_reader_follows_the_index(tmp_path: Path, generations: int) -> None:
    """A writer replaces the index: the child opens the new one by itself, and so does its own child."""
    path = tmp_path / "kv"
    with opened(path) as writer, opened(path, "r") as kv:
        writer[b"a"] = b"1"
        assert kv[b"a"] == b"1"

        def read() -> None:
            writer_says = {**dict.fromkeys(kv, b"x"), b"a": b"2"}
            assert agreeing(kv) == writer_says
            assert len(kv) == 65

        work = read if generations == 1 else lambda: in_child(read)
        with child_that_waits(work) as go:
            replace_index(writer, path)
            writer[b"a"] = b"2"
            assert go() == ("", "")


def test_an_inherited_reader_outlives_the_parents(tmp_path: Path) -> None:
    """The parent closes its own: the child reads on, and what others write from then on, too."""
    path = tmp_path / "kv"
    opened(path).close()
    kv = opened(path, "r")

    def read() -> None:
        assert agreeing(kv)[b"a"] == b"1"
        assert len(kv) == 65

    with child_that_waits(read) as go:
        kv.close()
        with opened(path) as writer:
            replace_index(writer, path)
            writer[b"a"] = b"1"
            assert go() == ("", "")


@pytest.mark.parametrize("needs_a_lock", [False, True])
def test_when_an_inherited_reader_is_one_more(tmp_path: Path, needs_a_lock: bool) -> None:
    """From the first lock that it needs it is attached, as others are, and nobody may start the store anew.

    Until then the parent's end is the end: a child that was forked for something else hinders nobody.
    """
    path = tmp_path / "kv"
    with opened(path) as writer, opened(path, "r") as kv, child_that_waits(lambda: kv.get(b"a")) as go:
        if needs_a_lock:
            replace_index(writer, path)
        assert go() == ("", "")
        kv.close()
        writer.close()
        assert outcome(lambda: opened(path, "n").close())[0] == ("Locked" if needs_a_lock else "")
    opened(path, "n").close()


def test_an_inherited_writer_meets_a_new_index(tmp_path: Path) -> None:
    """It belongs to the parent, which has opened the new one; the child is told to open the store again."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"a"] = b"1"
        with child_that_waits(lambda: kv[b"a"]) as go:
            replace_index(kv, path)
            kind, text = go()
        assert kind == "Closed"
        assert "open it again in the child" in text


def test_a_thread_of_the_parent_held_the_lock_of_the_index(tmp_path: Path) -> None:
    """It does not exist in the child, and would never give it back."""
    path = tmp_path / "kv"
    with opened(path) as writer, opened(path, "r") as kv:
        held, over = threading.Event(), threading.Event()

        def hold() -> None:
            with kv._index_lock:
                held.set()
                over.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        with child_that_waits(lambda: kv.get(b"a")) as go:
            over.set()
            thread.join()
            replace_index(writer, path)
            assert go() == ("", "")


def test_the_thread_that_forks_gives_back_what_it_holds() -> None:
    """A lock that it has taken, twice here, is still its own in the child, and free once given back."""
    lock = _fork.Lock()

    def taken_by_another() -> bool:
        taken: list[bool] = []

        def take() -> None:
            if lock._lock.acquire(blocking=False):
                lock._lock.release()
                taken.append(True)

        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        return bool(taken)

    def child(pid_of_parent: int) -> list[bool]:
        return [os.getpid() != pid_of_parent, taken_by_another()]

    parent = os.getpid()
    with lock:
        with lock:
            assert in_child(lambda: child(parent)) == [True, False]
        reading, writing = os.pipe()
        pid = os.fork()
    if pid == 0:
        os.write(writing, b"free" if taken_by_another() else b"held")
        os._exit(0)
    assert os.read(reading, 4) == b"free"
    os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)


def test_a_fault_in_a_child_is_an_exception(tmp_path: Path) -> None:
    """The handler is inherited too: a segment that was cut ends no process."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"a"] = bytes(20_000)
    with opened(path, "r") as kv, child_that_waits(lambda: kv[b"a"]) as go:
        (segment,) = path.glob("*.seg")
        os.truncate(segment, 4096)
        assert go()[0] == "MappingFault"


def count(keys: list[bytes]) -> tuple[int, int]:
    """What a worker does with the reader that it inherited."""
    kv = INHERITED[0]
    return sum(len(kv[key]) for key in keys), len(kv)


INHERITED: list[KVStore] = []


def test_workers_of_multiprocessing_read_what_they_inherited(tmp_path: Path) -> None:
    """The usual way: opened once, in a global, before the pool is made."""
    path = tmp_path / "kv"
    with opened(path) as writer, opened(path, "r") as kv:
        writer.update({b"%d" % number: bytes(number) for number in range(200)})
        INHERITED[:] = [kv]
        try:
            with multiprocessing.get_context("fork").Pool(2) as pool:
                keys = [b"%d" % number for number in range(200)]
                found = pool.map(count, [keys[start::4] for start in range(4)])
        finally:
            INHERITED.clear()
        assert sum(size for size, _ in found) == sum(range(200))
        assert {length for _, length in found} == {200}
