"""Following a log: every record once and in order, asleep in between, woken by the writer of any process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from mmapio import Closed, _os
from mmaplog import FlushPolicy, Log, Poisoned
from mmaplog import control as control_module
from mmaplog import segment_set as segment_set_module
from mmaplog.segment import list_segments
from tests.support.waiting import PATIENCE_SECONDS
from tests.unit.mmapio.async_calls import anyio, on_each_backend, run
from tests.unit.mmapio.processes import ROOT, in_child

DEADLINE = PATIENCE_SECONDS
SEGMENT = 64 << 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory for a log."""
    return tmp_path / "log"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    """A log that is written."""
    with Log.open(path, flush_policy=FlushPolicy.NEVER, segment_bytes=SEGMENT) as made:
        yield made


def read(follower: Iterator[object], count: int) -> list[bytes]:
    """So many payloads."""
    return [bytes(next(follower).payload) for _ in range(count)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("reader", [False, True])
def test_what_is_there_comes_first(log: Log, path: Path, reader: bool) -> None:
    """Then the iteration ends for want of more, and goes on when there is more."""
    log.append_many([b"a", b"b", b"c"])
    with Log.open(path, "r") as other:
        follower = (other if reader else log).follow(1, timeout=0)
        assert [bytes(entry.payload) for entry in follower] == [b"b", b"c"]
        assert follower.seq == 3
        assert follower.poll() is None
        log.append(b"d")
        assert [entry.seq for entry in follower] == [3]


def test_from_now_on(log: Log) -> None:
    """Without a start, what was there before is left out."""
    log.append(b"before")
    follower = log.follow(timeout=0)
    log.append(b"after")
    assert [bytes(entry.payload) for entry in follower] == [b"after"]


@pytest.mark.parametrize("start", [2, -1, 1 << 64])
def test_a_start_that_is_not_there(log: Log, start: int) -> None:
    """The end is a start; what is beyond is none."""
    log.append(b"x")
    with pytest.raises(IndexError, match=rf"record {start} is not in the log, which holds \[0, 1\)"):
        log.follow(start)


def test_it_goes_on_over_segments(log: Log, path: Path) -> None:
    """At every possible distance between reader and writer."""
    with Log.open(path, "r") as other:
        follower = other.follow(0, timeout=0)
        expected, found = [], []
        for number in range(4000):
            payload = b"%d" % number * (number % 50)
            log.append(payload)
            expected.append(payload)
            if number % 7 == number // 500 % 7:
                found += [bytes(entry.payload) for entry in follower]
        found += [bytes(entry.payload) for entry in follower]
        assert found == expected
        assert len(list(path.glob("*.seg"))) > 3


def test_another_process_is_woken(log: Log, path: Path) -> None:
    """One record at a time, each answered before the next: whoever misses a wake-up stops here."""
    answers, questions = os.pipe()

    def follow() -> int:
        with Log.open(path, "r") as other:
            for entry in other.follow(0):
                os.write(questions, b"%d\n" % entry.seq)
                if bytes(entry.payload) == b"end":
                    return entry.seq
        raise AssertionError

    results: list[int] = []
    waiter = threading.Thread(target=lambda: results.append(in_child(follow)))
    waiter.start()
    with os.fdopen(answers, "rb", buffering=0) as stream:
        for number in range(300):
            assert log.append(b"x") == number
            assert stream.readline() == b"%d\n" % number
            if number % 50 == 0:
                time.sleep(0.01)  # long enough to be asleep
        log.append(b"end")
        waiter.join(DEADLINE)
    os.close(questions)
    assert results == [300]


class ReadOnly:
    """The system of a user who may not write."""

    def __getattr__(self, name: str) -> object:
        return getattr(_os, name)

    def open_file(self, name: str, writable: bool, **options: object) -> object:
        """As of `_os`."""
        if writable:
            raise PermissionError(name)
        return _os.open_file(name, writable, **options)  # type: ignore[arg-type]


def test_whoever_may_not_write_is_served_too(log: Log, path: Path) -> None:
    """It cannot leave word that it waits, and looks again by itself."""

    def follow() -> list[int]:
        with Log.open(path, "r") as other:
            vars(control_module)["system"] = ReadOnly()
            return [entry.seq for entry in islice(other.follow(0, timeout=DEADLINE), 5)]

    done: list[list[int]] = []
    waiter = threading.Thread(target=lambda: done.append(in_child(follow)))
    waiter.start()
    for _ in range(5):
        log.append(b"x")
        time.sleep(0.02)
    waiter.join(DEADLINE)
    assert done == [list(range(5))]


def test_a_timeout_is_kept(log: Log) -> None:
    """A log that nobody writes to gives nothing, and the iteration ends all the same."""
    assert list(log.follow(timeout=0.15)) == []
    assert not log.follow().wait(0.01)


def test_other_threads_run_while_one_waits(log: Log) -> None:
    """Who is to append may be one of them."""
    follower = log.follow()
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.extend(read(follower, 3)))
    thread.start()
    for number in range(3):
        time.sleep(0.01)
        log.append(b"%d" % number)
    thread.join(DEADLINE)
    assert found == [b"0", b"1", b"2"]


@pytest.mark.parametrize("reader", [False, True])
def test_closing_ends_the_wait(path: Path, reader: bool) -> None:
    """In another thread; the words that it sleeps on must stay mapped until it is up."""
    with Log.open(path) as log, Log.open(path, "r") as other:
        chosen = other if reader else log
        raised: list[type] = []

        def wait() -> None:
            try:
                next(chosen.follow())
            except Exception as error:
                raised.append(type(error))

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        chosen.close()
        thread.join(DEADLINE)
        assert raised == [Closed]


def test_an_interrupt_ends_the_wait(path: Path) -> None:
    """Ctrl-C must not have to wait for the next record."""
    code = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        f"from mmaplog import Log\nlog = Log.open({str(path)!r})\n"
        "try:\n    print('ready', flush=True)\n    next(log.follow())\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        assert child.stdout.read() == "interrupted\n"


@on_each_backend
def test_tasks_follow_too(backend: str, path: Path) -> None:
    """Many at once, and the loop goes on meanwhile."""

    async def main() -> None:
        with Log.open(path, flush_policy=FlushPolicy.NEVER) as log:
            found: list[list[int]] = [[] for _ in range(5)]

            async def follow(mine: list[int]) -> None:
                async for entry in log.follow(0):
                    mine.append(entry.seq)
                    if entry.seq == 9:
                        return

            async with anyio.create_task_group() as tasks:
                for mine in found:
                    tasks.start_soon(follow, mine)
                for _ in range(10):
                    await anyio.sleep(0.002)
                    log.append(b"x")
            assert found == [list(range(10))] * 5
            assert [entry.seq async for entry in log.follow(8, timeout=0)] == [8, 9]

    run(backend, main)


@on_each_backend
def test_a_task_that_follows_can_be_cancelled(backend: str, path: Path) -> None:
    """Soon, though nothing is ever appended."""

    async def main() -> None:
        with Log.open(path) as log:
            with anyio.move_on_after(0.05) as scope:
                async for _ in log.follow():
                    raise AssertionError
            assert scope.cancelled_caught

    run(backend, main)


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("before", [0, 3, 700])
def test_a_follower_survives_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, before: int, nth: int
) -> None:
    """It went on at another record, or at none, which was the end of the process."""
    with Log.open(path, segment_bytes=SEGMENT) as log, Log.open(path, "r") as reader:
        log.append_many([b"%d" % number * 50 for number in range(before)])
        follower = reader.follow(before)
        log.append_many([b"x" * 30_000] * 5)
        counted = 0

        def failing(directory: object) -> object:
            nonlocal counted
            counted += 1
            if counted == nth:
                raise MemoryError
            return list_segments(directory)  # type: ignore[arg-type]

        found = []
        with monkeypatch.context() as patch:
            patch.setitem(vars(segment_set_module), "list_segments", failing)
            while len(found) < 5:
                with contextlib.suppress(MemoryError):
                    found.append(follower.poll())
        assert [entry.seq for entry in found if entry] == list(range(before, before + 5))


def test_an_empty_segment_that_is_replaced(path: Path) -> None:
    """Recovery leaves one; a record too large for it took its place, and that was called damage."""
    with Log.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT) as log:
        log.append_many([b"x"] * 10)
        end = log.end_of_tail[1]
    (segment,) = path.glob("*.seg")
    (path / "CONTROL").unlink()
    with segment.open("r+b") as file:
        file.seek(end)
        file.write(b"\x05garbage")
    with Log.open(path) as log, Log.open(path, "r") as reader:
        followers = [each.follow(0, timeout=0) for each in (log, reader)]
        assert [len(list(each)) for each in followers] == [10, 10]
        log.append(b"y" * (2 * SEGMENT))
        assert [[entry.seq for entry in each] for each in followers] == [[10], [10]]


# Durability.


def test_a_writer_makes_it_durable(log: Log) -> None:
    """It need not wait for its policy."""
    log.append(b"a")
    assert log.wait_durable(0, timeout=0)
    assert log.durable == 1


def test_a_reader_waits_for_the_writer(log: Log, path: Path) -> None:
    """In whichever process it flushes."""
    log.append(b"a")
    with Log.open(path, "r") as reader:
        assert not reader.wait_durable(0, timeout=0.02)
        told: list[bool] = []
        thread = threading.Thread(target=lambda: told.append(reader.wait_durable(0)))
        thread.start()
        time.sleep(0.02)
        log.flush()
        thread.join(DEADLINE)
        assert told == [True]


@pytest.mark.parametrize("seq", [1, -1])
def test_what_is_not_there_never_becomes_durable(log: Log, seq: int) -> None:
    """To wait for it would be for ever."""
    log.append(b"a")
    with pytest.raises(IndexError):
        log.wait_durable(seq)


def test_a_poisoned_log_is_not_waited_for(log: Log, path: Path) -> None:
    """Nothing will ever become durable there."""
    log.append(b"a")
    with Log.open(path, "r") as reader:
        control = path / "CONTROL"
        with control.open("r+b") as file:
            file.seek(4096 + 80)
            file.write(b"\x05")
        with pytest.raises(Poisoned):
            reader.wait_durable(0)
        with control.open("r+b") as file:
            file.seek(4096 + 80)
            file.write(b"\x00")


NAN = float("nan")


@pytest.mark.parametrize(
    "wait",
    [
        lambda log: log.follow(timeout=NAN),
        lambda log: log.follow().wait(NAN),
        lambda log: log.wait_durable(0, timeout=NAN),
        lambda log: log.consumer("name", timeout=NAN),
        lambda log: log.group("name", timeout=NAN),
        lambda log: log.consumer("one").wait(NAN),
        lambda log: log.group("many").wait(NAN),
    ],
    ids=["follow", "wait", "wait_durable", "consumer", "group", "wait of a consumer", "wait of a group"],
)
def test_a_time_that_is_none_is_refused(log: Log, wait: Callable[[Log], object]) -> None:
    """No moment is later than NaN: who waited until then waited for ever."""
    log.append(b"first")
    with pytest.raises(ValueError, match="not NaN"):
        wait(log)


def test_a_time_that_is_no_number_is_refused(log: Log) -> None:
    """It was told that a str cannot be concatenated."""
    with pytest.raises(TypeError, match="a timeout is a number of seconds, not str"):
        log.follow(timeout="1")  # type: ignore[arg-type]


def test_what_was_read_ahead_and_dropped_does_not_come(log: Log) -> None:
    """It knew how far the log went, and handed out what the same thread had taken back."""
    for number in range(6):
        log.append(b"%d" % number)
    follower = log.follow(0, timeout=0)
    assert read(follower, 2) == [b"0", b"1"]
    log.truncate_after(4)
    assert read(follower, 1) == [b"2"]
    log.truncate_after(3)
    assert follower.poll() is None
    assert not follower.wait(0)
    log.append(b"new")
    assert read(follower, 1) == [b"new"]
    assert follower.poll() is None
