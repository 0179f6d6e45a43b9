"""Records that are written in place: committed when the block ends, and never written to afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmapio.errors import Closed, InvalidMode
from mmaplog import FlushPolicy, Log, LogError, RecordTooLarge
from tests.unit.mmapio.processes import killed_after

MANUAL = FlushPolicy.MANUAL


@pytest.fixture(params=[False, True], ids=["alone", "shared"])
def log(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Log]:
    """A log of small segments, written by one or by several."""
    with Log.open(
        tmp_path / "log", flush_policy=MANUAL, segment_bytes=64 << 10, shared=request.param
    ) as made:
        yield made


def contents(log: Log) -> list[bytes]:
    """All payloads."""
    return [bytes(entry.payload) for entry in log.replay()]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 5000, 100_000])
def test_what_is_written_is_the_record(log: Log, size: int) -> None:
    """Of any size, larger than a segment included."""
    payload = bytes(number % 251 for number in range(size))
    log.append(b"before")
    reservation = log.reserve(size)
    assert reservation.seq is None
    with reservation as buffer:
        assert len(buffer) == size
        assert log.committed == 1
        if size:
            buffer[0:size] = payload
    assert reservation.seq == 1
    assert log.append(b"after") == 2
    assert contents(log) == [b"before", payload, b"after"]


def test_what_is_not_written_is_zeros(log: Log) -> None:
    """Also where an earlier record was given up."""
    with pytest.raises(ZeroDivisionError), log.reserve(100) as buffer:
        buffer[0:100] = b"x" * 100
        raise ZeroDivisionError
    with log.reserve(10):
        pass
    assert contents(log) == [bytes(10)]


def test_less_than_was_reserved(log: Log) -> None:
    """What is left over is free, and zero, for what comes next."""
    reservation = log.reserve(1000)
    with reservation as buffer:
        buffer[0:1000] = b"y" * 1000
        reservation.size = 3
        with pytest.raises(ValueError, match="not within the 1000"):
            reservation.size = 1001
    with log.reserve(500):
        pass
    assert contents(log) == [b"yyy", bytes(500)]
    assert log.verify().damages == ()


def test_durable(log: Log) -> None:
    """As of an append."""
    with log.reserve(1, durable=True):
        assert log.durable == 0
    assert log.durable == 1


def test_a_buffer_in_use_at_the_end_makes_no_record(log: Log) -> None:
    """Whoever holds it could change what was committed, or what comes after it."""
    log.append(b"before")
    with pytest.raises(BufferError, match="1 buffers"), log.reserve(100) as buffer:
        kept = memoryview(buffer)
    assert log.append(b"after") == 1
    kept[:] = b"z" * 100
    assert contents(log) == [b"before", b"after"]
    assert log.verify().damages == ()
    with pytest.raises(Closed, match="released"):
        bytes(buffer)


def test_others_wait(log: Log) -> None:
    """Their records come behind."""
    thread = threading.Thread(target=log.append, args=(b"other",))
    with log.reserve(4) as buffer:
        thread.start()
        buffer[0:4] = b"mine"
        assert log.committed == 0
    thread.join()
    assert contents(log) == [b"mine", b"other"]


def test_appending_within_is_refused(log: Log) -> None:
    """It would have to wait for itself."""
    with log.reserve(4) as buffer:
        for attempt in (lambda: log.append(b"x"), lambda: log.append_many([b"x"]), log.close):
            with pytest.raises(LogError, match="interrupted"):
                attempt()
        buffer[0:4] = b"mine"
    assert contents(log) == [b"mine"]


def test_only_once(log: Log) -> None:
    """A reservation is a record, not a place."""
    reservation = log.reserve(1)
    with reservation:
        pass
    with pytest.raises(LogError, match="used already"), reservation:
        pass


def test_what_cannot_be_reserved(log: Log, tmp_path: Path) -> None:
    """Said before anything waits for it."""
    with pytest.raises(ValueError, match="-1 bytes"):
        log.reserve(-1)
    with pytest.raises(RecordTooLarge):
        log.reserve(5 << 30)
    with Log.open(tmp_path / "log", "r") as reader, pytest.raises(InvalidMode):
        reader.reserve(1)


def test_a_killed_process_leaves_no_record(tmp_path: Path) -> None:
    """Half of one, in place, was never committed."""
    path = tmp_path / "log"

    def work() -> None:
        log = Log.open(path, flush_policy=MANUAL)
        log.append(b"before")
        log.reserve(5000).__enter__()[0:5000] = b"x" * 5000

    killed_after(work)
    with Log.open(path, flush_policy=MANUAL) as log:
        assert contents(log) == [b"before"]
        with log.reserve(10):
            pass
        assert contents(log) == [b"before", bytes(10)]


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "raises"])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_a_forked_child_has_no_part_in_it(log: Log, late: bool, fails: bool) -> None:
    """The end of its block committed the parent's record, took back later ones, or zeroed them."""
    log.append(b"before")
    waits, goes = os.pipe()
    pid = -1
    told = "no child"
    try:
        with log.reserve(8) as buffer:
            pid = os.fork()
            if pid != 0:
                if not late:
                    os.waitpid(pid, 0)
                    assert log.committed == 1
                buffer[0:8] = b"reserved"
            else:
                if late:
                    os.read(waits, 1)
                if fails:
                    raise ZeroDivisionError
    except ZeroDivisionError:
        told = "what it raised"
    except Closed:
        told = "closed"
    except BaseException as error:
        told = repr(error)
    finally:
        if pid == 0:
            os._exit(0 if told == ("what it raised" if fails else "closed") else 1)
    if late:
        log.append_many([b"more"] * 2)
        with log.reserve(6) as buffer:
            buffer[0:6] = b"second"
            os.write(goes, b"x")
            assert os.waitpid(pid, 0)[1] == 0
    assert contents(log) == [b"before", b"reserved", *([b"more", b"more", b"second"] if late else [])]
    assert log.verify().damages == ()
    os.close(waits)
    os.close(goes)


def test_another_thread_cannot_leave_the_block(log: Log) -> None:
    """It committed the record, could not give the tail back, and nobody else could append ever after."""
    reservation = log.reserve(4)
    buffer = reservation.__enter__()
    refused: list[BaseException] = []

    def leave() -> None:
        try:
            reservation.__exit__(None, None, None)
        except LogError as error:
            refused.append(error)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert "another thread" in str(refused[0])
    assert log.committed == 0
    buffer[0:4] = b"mine"
    reservation.__exit__(None, None, None)
    other = threading.Thread(target=log.append, args=(b"other",))
    other.start()
    other.join()
    assert contents(log) == [b"mine", b"other"]


def test_misuse_is_told_in_its_own_words(tmp_path: Path) -> None:
    """Whoever appended within the block was told of destructors, and half a byte was cut off."""
    with Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL) as log:
        reserved = log.reserve(4)
        with reserved:
            with pytest.raises(LogError, match="within the block of a reservation"):
                log.append(b"other")
            with pytest.raises(TypeError):
                reserved.size = 2.5  # type: ignore[assignment]
        with pytest.raises(LogError, match="has ended"):
            reserved.size = 1
        assert len(log[0].payload) == 4
    with pytest.raises(ValueError, match="a writer keeps one, of 0 or more"):
        Log.open(tmp_path / "log", reserve_bytes=-1)
    with pytest.raises(ValueError, match="a writer keeps one"):
        Log.open(tmp_path / "log", "r", reserve_bytes=1)
