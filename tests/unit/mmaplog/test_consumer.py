"""Named consumers: where they go on, who holds them, and what becomes of a commit."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapio import Closed, FlushFailed
from mmaplog import Consumer, ConsumerInfo, FlushPolicy, Locked, Log
from mmaplog.bookmark_format import Place
from mmaplog.consumer import slowest
from tests.unit.mmapio.async_calls import anyio, on_each_backend, run
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import in_child, killed_after, living_child, outcome
from tests.unit.mmaplog.handed_out import DEADLINE, seqs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory for a log."""
    return tmp_path / "log"


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    """A log of ten records that is written, without a thread of its own."""
    with Log.open(path, flush_policy=FlushPolicy.NEVER) as made:
        made.append_many([b"%d" % number for number in range(10)])
        yield made


def test_a_new_one_begins_at_the_first_record(log: Log) -> None:
    """And hands out everything, once, in order."""
    with log.consumer("c", timeout=0) as consumer:
        assert (consumer.position, consumer.committed, consumer.lag()) == (0, 0, 10)
        assert [bytes(entry.payload) for entry in consumer] == [b"%d" % number for number in range(10)]
        assert (consumer.position, consumer.committed, consumer.lag()) == (10, 0, 10)
        assert consumer.poll() is None
        log.append(b"more")
        assert seqs(consumer) == [10]


@pytest.mark.parametrize("start", [0, 4, 10])
def test_a_new_one_begins_where_it_is_told_to(log: Log, start: int) -> None:
    """One that there is already goes on where it was, whatever it is told."""
    with log.consumer("c", start=start) as consumer:
        assert consumer.committed == start
        assert seqs(consumer) == list(range(start, 10))
        consumer.commit()
    with log.consumer("c", start=1) as consumer:
        assert consumer.position == 10


@pytest.mark.parametrize("start", [-1, 11])
def test_a_start_that_is_not_in_the_log(log: Log, path: Path, start: int) -> None:
    """Nothing is made of it."""
    refused = pytest.raises(IndexError, match=rf"{start} is not in the log, which holds \[0, 10\)")
    with unchanged(path), refused:
        log.consumer("c", start=start)


def test_what_was_committed_does_not_come_again(log: Log) -> None:
    """And what was not comes again."""
    with log.consumer("c") as consumer:
        assert seqs(consumer, 6) == list(range(6))
        consumer.commit(4)
        assert (consumer.committed, consumer.position, consumer.lag()) == (4, 6, 6)
    with log.consumer("c") as consumer:
        assert (consumer.committed, consumer.position) == (4, 4)
        assert seqs(consumer) == list(range(4, 10))
        consumer.commit()
    with log.consumer("c") as consumer:
        assert seqs(consumer) == []


def test_no_more_is_committed_than_was_handed_out(log: Log) -> None:
    """The rest would be lost."""
    with log.consumer("c") as consumer:
        seqs(consumer, 3)
        consumer.commit(2)
        for wrong in (4, -1):
            with pytest.raises(ValueError, match=f"cannot commit {wrong}: 'c' handed out what is below 3"):
                consumer.commit(wrong)
        assert consumer.committed == 2


def test_a_commit_can_be_taken_back(log: Log) -> None:
    """Whoever has found a mistake in what it made of the entries begins anew."""
    with log.consumer("c") as consumer:
        seqs(consumer)
        consumer.commit()
        consumer.commit(3)
        consumer.seek(1)
        assert (consumer.position, consumer.committed) == (1, 3)
        consumer.commit()
        assert consumer.committed == 1
    with log.consumer("c") as consumer:
        assert seqs(consumer) == list(range(1, 10))


def test_seeking(log: Log) -> None:
    """Both ways, to the end too, and nowhere else."""
    with log.consumer("c") as consumer:
        for target in (7, 2, 10, 0):
            consumer.seek(target)
            assert consumer.position == target
            assert seqs(consumer) == list(range(target, 10))
        assert consumer.committed == 0
        for wrong in (11, -1):
            with pytest.raises(IndexError, match=f"record {wrong} is not in the log"):
                consumer.seek(wrong)


def test_asking_for_the_next_commits_those_before(log: Log) -> None:
    """With auto_commit; the last one handed out may not have been processed, so it comes again."""
    with log.consumer("c", auto_commit=True) as consumer:
        assert seqs(consumer, 4) == [0, 1, 2, 3]
        assert consumer.committed == 3
    with log.consumer("c", auto_commit=True, timeout=0) as consumer:
        assert [entry.seq for entry in consumer] == list(range(3, 10))
        # It asked for one more.
        assert consumer.committed == 10


def test_consumers_do_not_meet(log: Log) -> None:
    """Each has a position of its own."""
    with log.consumer("a") as one, log.consumer("b") as other:
        seqs(one, 5)
        one.commit()
        assert seqs(other, 2) == [0, 1]
        other.commit()
        assert [each.committed for each in log.consumers()] == [5, 2]
        assert slowest(log) == 2


def test_a_reader_consumes_too(log: Log, path: Path) -> None:
    """The file of the consumer is all it has to write."""
    with Log.open(path, "r") as reader, reader.consumer("c") as consumer:
        assert seqs(consumer, 5) == [0, 1, 2, 3, 4]
        consumer.commit(durable=True)
    with log.consumer("c") as consumer:
        assert consumer.position == 5


def test_waiting(log: Log) -> None:
    """For an entry, or for so long; other threads run meanwhile."""
    with log.consumer("c", start=10) as consumer:
        assert not consumer.wait(0)
        assert not consumer.wait(0.02)
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(next(consumer).seq))
        thread.start()
        log.append(b"x")
        thread.join(DEADLINE)
        assert found == [10]
        log.append(b"y")
        assert consumer.wait(0)
        assert consumer.poll() is not None


def test_another_process_is_woken(log: Log, path: Path) -> None:
    """What it committed is seen here, and it does not have to end for it."""
    answers, questions = os.pipe()

    def consume() -> int:
        with Log.open(path, "r") as reader, reader.consumer("c", start=10) as consumer:
            for entry in consumer:
                consumer.commit()
                os.write(questions, b"%d\n" % entry.seq)
                if bytes(entry.payload) == b"end":
                    return consumer.committed
        raise AssertionError

    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(in_child(consume)))
    thread.start()
    with os.fdopen(answers, "rb", buffering=0) as stream:
        for number in range(10, 60):
            log.append(b"x")
            assert stream.readline() == b"%d\n" % number
            assert [each.committed for each in log.consumers()] == [number + 1]
        log.append(b"end")
        thread.join(DEADLINE)
    os.close(questions)
    assert results == [61]


@on_each_backend
def test_tasks_consume(backend: str, path: Path) -> None:
    """Beside each other, and beside who appends."""

    async def main() -> None:
        with Log.open(path, flush_policy=FlushPolicy.NEVER) as log:
            found: dict[str, list[int]] = {"a": [], "b": []}

            async def consume(name: str) -> None:
                with log.consumer(name, auto_commit=True) as consumer:
                    async for entry in consumer:
                        found[name].append(entry.seq)
                        if entry.seq == 9:
                            return

            async with anyio.create_task_group() as tasks:
                for name in found:
                    tasks.start_soon(consume, name)
                for _ in range(10):
                    await anyio.sleep(0.002)
                    log.append(b"x")
            assert found == {"a": list(range(10)), "b": list(range(10))}
            with log.consumer("a", timeout=0) as consumer:
                assert [entry.seq async for entry in consumer] == [9]

    run(backend, main)


# Crashes.


@pytest.mark.parametrize("committed", [0, 1, 7, 10])
def test_a_commit_survives_the_end_of_its_process(log: Log, path: Path, committed: int) -> None:
    """No close, no sync, no farewell."""

    def consume() -> Consumer:
        consumer = Log.open(path, "r").consumer("c")
        seqs(consumer, committed)
        consumer.commit()
        seqs(consumer)
        return consumer

    killed_after(consume)
    with log.consumer("c") as consumer:
        assert consumer.position == committed


def test_it_can_be_killed_at_any_moment(log: Log, path: Path) -> None:
    """What it had committed when it last said so is committed, and never more than it was about to commit."""
    log.append_many([b"x"] * 20_000)
    for turn in range(15):
        answers, questions = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                consumer = Log.open(path, "r").consumer("c")
                while True:
                    seqs(consumer, 1)
                    os.write(questions, b"<%d\n" % consumer.position)
                    consumer.commit(durable=consumer.position % 100 == 0)
                    os.write(questions, b">%d\n" % consumer.position)
            finally:
                os._exit(1)
        os.close(questions)
        with os.fdopen(answers, "rb", buffering=0) as stream:
            told = [stream.readline() for _ in range(1 + 37 * turn)]
            os.kill(pid, signal.SIGKILL)
            told += stream.read().splitlines(keepends=True)
        os.waitpid(pid, 0)
        whole = [each for each in told if each.endswith(b"\n")]
        begun = max(int(each[1:]) for each in whole if each[:1] == b"<")
        ended = max([begun - 1, *(int(each[1:]) for each in whole if each[:1] == b">")])
        with log.consumer("c") as consumer:
            assert ended <= consumer.committed <= begun


def test_the_holder_is_named_and_let_go_of_with_its_process(log: Log, path: Path) -> None:
    """The kernel sees to it, however it ends."""

    def hold() -> Consumer:
        return Log.open(path, "r").consumer("c")

    with living_child(hold) as pid:
        with pytest.raises(Locked, match=f"'c' is held by process {pid}; close it there first"):
            log.consumer("c")
        with pytest.raises(Locked, match=f"'c' is held by process {pid}; close it there first"):
            log.remove_consumer("c")
        assert log.consumers() == [ConsumerInfo("c", "consumer", 0, f"held by process {pid}")]
        log.consumer("d").close()
    with log.consumer("c") as consumer:
        assert consumer.position == 0


def test_one_handle_at_a_time_in_one_process_too(log: Log) -> None:
    """Locks that belong to the process would let it in."""
    with log.consumer("c") as consumer:
        with pytest.raises(Locked, match=f"held by process {os.getpid()};"):
            log.consumer("c")
        seqs(consumer, 2)
        consumer.commit()
    with log.consumer("c") as consumer:
        assert consumer.position == 2


def test_a_dropped_one_lets_go(log: Log) -> None:
    """Not everyone closes what they open."""
    consumer = log.consumer("c")
    seqs(consumer, 2)
    consumer.commit()
    del consumer
    with log.consumer("c") as consumer:
        assert consumer.position == 2


def test_an_inherited_one_is_of_no_use(log: Log) -> None:
    """Parent and child would each commit what the other did not do; and a child must not keep the name."""
    consumer = log.consumer("c")
    calls: list[Callable[[], object]] = [
        consumer.poll,
        consumer.wait,
        consumer.commit,
        consumer.flush,
        consumer.lag,
        lambda: next(consumer),
        lambda: consumer.seek(1),
        consumer.__enter__,
    ]

    def use() -> list[tuple[str, str]]:
        found = [outcome(call) for call in calls]
        consumer.close()
        return found

    for kind, text in in_child(use):
        assert kind == "Closed"
        assert "inherited by fork" in text
    assert seqs(consumer, 1) == [0]
    with living_child(lambda: None):
        consumer.commit()
        consumer.close()
        with log.consumer("c") as again:
            assert again.position == 1


# Durability.


def test_what_a_commit_syncs(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, unless it is durable; then the log goes before the position."""
    with log.consumer("c") as consumer:
        synced: list[str] = []
        store = consumer._mark.store_durably

        def storing(place: Place) -> None:
            synced.append("place")
            store(place)

        monkeypatch.setattr(consumer._mark, "store_durably", storing)
        seqs(consumer, 3)
        consumer.commit()
        assert synced == []
        assert log.durable < 3
        consumer.commit(durable=True)
        assert synced == ["place"]
        assert log.durable >= 3
        consumer.flush()
        consumer.commit(durable=True)
        assert synced == ["place"], "there was nothing to sync"
        seqs(consumer, 1)
        consumer.commit()
        consumer.flush()
        assert synced == ["place"] * 2
        seqs(consumer, 1)
        consumer.commit()
    assert synced == ["place"] * 3


def test_what_a_killed_holder_left_is_synced_first(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A durable copy that it did not come to sync may not be on the disk: to replace the other one then
    would leave none that a power cut cannot tear.
    """
    done: list[str] = []
    for _ in range(2):
        consumer = log.consumer("c")
        done.clear()
        with monkeypatch.context() as patch:
            for name in ("flush", "update_region"):
                original = getattr(type(consumer._mark.file), name)

                def recorded(*arguments: object, name: str = name, original: Any = original) -> None:
                    done.append(name)
                    original(*arguments)

                patch.setattr(type(consumer._mark.file), name, recorded)
            seqs(consumer, 1)
            consumer.commit(durable=True)
            seqs(consumer, 1)
            consumer.commit(durable=True)
        assert done == ["flush", "update_region", "flush", "update_region", "flush"]
        del consumer


def test_closing_after_the_log(path: Path) -> None:
    """The position is made durable all the same."""
    log = Log.open(path, flush_policy=FlushPolicy.NEVER)
    log.append_many([b"x"] * 3)
    consumer = log.consumer("c")
    seqs(consumer, 3)
    consumer.commit(2)
    log.close()
    with pytest.raises(Closed):
        consumer.poll()
    with pytest.raises(Closed):
        consumer.commit()
    consumer.close()
    consumer.close()
    assert consumer.closed
    with Log.open(path) as log, log.consumer("c") as consumer:
        assert consumer.position == 2


def test_a_sync_that_fails(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and the durable copy before it stays the one that counts after a power cut."""
    consumer = log.consumer("c")
    seqs(consumer, 2)
    consumer.commit(durable=True)
    seqs(consumer, 2)

    def failing(*_: object) -> None:
        raise FlushFailed(5, "the disk is gone", "file")

    with monkeypatch.context() as patch:
        patch.setattr(type(consumer._mark.file), "flush", failing)
        with pytest.raises(FlushFailed):
            consumer.commit(durable=True)
    assert consumer.committed == 2
    durable = [consumer._mark._copy(each) for each in (2, 3)]
    assert sorted(each.seq for each in durable if each) == [2]
    consumer.commit(durable=True)
    consumer.close()
    with log.consumer("c") as consumer:
        assert consumer.position == 4


def test_a_closed_one_says_so(log: Log) -> None:
    """In every call that needs it open."""
    consumer = log.consumer("c")
    consumer.close()
    for name in ("poll", "wait", "commit", "flush", "lag", "__enter__"):
        with pytest.raises(Closed, match="'c' is closed"):
            getattr(consumer, name)()
    assert repr(consumer).endswith("closed>")
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(consumer)
