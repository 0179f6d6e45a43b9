"""Named consumers: where they go on, who holds them, and what becomes of a commit."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mmapio import Closed, FlushFailed, _os
from mmaplog import Consumer, ConsumerInfo, FlushPolicy, Locked, Log, LogError, TooOld, bookmark
from mmaplog.bookmark_format import Place
from mmaplog.consumer import slowest
from tests.unit.mmapio.async_calls import anyio, on_each_backend, run
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import in_child, killed_after, living_child, outcome, unprivileged

#: What has not happened by then never will.
DEADLINE = 60


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


def seqs(consumer: Consumer, count: int | None = None) -> list[int]:
    """The numbers of what it hands out: so many, or all that there is."""
    found = []
    while len(found) != count:
        entry = consumer.poll()
        if entry is None:
            break
        found.append(entry.seq)
    return found


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


# A log that loses records.


def restart(path: Path, keep: int) -> None:
    """What a power cut leaves of a log that was never synced: `keep` records, and no CONTROL."""
    with Log.open(path, "r") as log:
        sizes = [16 + (len(entry.payload) + 7) // 8 * 8 for entry in log.replay()]
    (segment,) = path.glob("*.seg")
    end = 4096 + sum(sizes[:keep])
    data = segment.read_bytes()
    # No mark of a clean end either.
    segment.write_bytes(data[:512] + bytes(4096 - 512) + data[4096:end] + bytes(len(data) - end))
    (path / "CONTROL").unlink()


@pytest.mark.parametrize(("kept", "appended"), [(3, 0), (3, 7), (8, 5), (10, 0)])
def test_records_that_a_power_cut_took(
    path: Path, kept: int, appended: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Their numbers are used again, under the same epoch when nothing stands behind the end: to go on at
    the committed number would leave out records that nobody has read.
    """
    with Log.open(path, flush_policy=FlushPolicy.MANUAL) as log:
        log.append_many([b"%d" % number for number in range(3)], durable=True)
        log.append_many([b"%d" % number for number in range(3, 10)])
        consumer = log.consumer("c")
        seqs(consumer)
        consumer.commit()
        del consumer
    restart(path, kept)
    with Log.open(path) as log:
        log.append_many([b"new"] * appended)
        assert slowest(log) == 3
        with caplog.at_level(logging.WARNING, "mmaplog"), log.consumer("c") as consumer:
            assert consumer.committed == 3
            assert seqs(consumer) == list(range(3, kept + appended))
            consumer.commit()
        assert "goes on at record 3 instead of 10" in caplog.text
        caplog.clear()
        with log.consumer("c") as consumer:
            assert consumer.committed == kept + appended
        assert caplog.text == ""


def test_a_durable_commit_is_believed_after_a_power_cut(path: Path) -> None:
    """Nothing comes again that was committed durably."""
    with Log.open(path, flush_policy=FlushPolicy.MANUAL) as log:
        log.append_many([b"%d" % number for number in range(10)])
        consumer = log.consumer("c")
        seqs(consumer, 8)
        consumer.commit(durable=True)
        del consumer
    restart(path, 10)
    with Log.open(path) as log, log.consumer("c") as consumer:
        assert consumer.position == 8


def test_records_that_were_dropped_unread(log: Log) -> None:
    """The user decides what that means."""
    with log.consumer("c") as consumer:
        log.truncate_before(4)
        calls: list[Callable[[], object]] = [consumer.poll, consumer.wait, lambda: next(consumer)]
        for call in calls:
            with pytest.raises(TooOld, match="record 0 "):
                call()
        assert consumer.position == 0
        consumer.seek(4)
        assert seqs(consumer, 1) == [4]
        consumer.commit()
    with log.consumer("c") as consumer:
        log.truncate_before(6)
        assert (consumer.position, slowest(log)) == (5, 5)
        with pytest.raises(TooOld):
            consumer.poll()
    with log.consumer("new") as consumer:
        assert seqs(consumer, 1) == [6]


@pytest.mark.parametrize("first", ["poll", "wait"])
def test_records_that_were_dropped_can_be_passed_over(
    log: Log, caplog: pytest.LogCaptureFixture, first: str
) -> None:
    """With a warning, once."""
    with log.consumer("c", too_old="skip", timeout=0) as consumer:
        log.truncate_before(4)
        with caplog.at_level(logging.WARNING, "mmaplog"):
            if first == "wait":
                assert consumer.wait(0)
            assert [entry.seq for entry in consumer] == list(range(4, 10))
        assert len(caplog.records) == 1
        assert "'c' goes on at record 4: records from 0 on were dropped" in caplog.text
        consumer.commit()
    assert slowest(log) == 10


@pytest.mark.parametrize("reader", [False, True])
@pytest.mark.parametrize("appended", [0, 2, 9])
def test_a_log_that_is_cut_behind_it(
    log: Log, path: Path, caplog: pytest.LogCaptureFixture, appended: int, reader: bool
) -> None:
    """It goes back to where the numbers are used again, open or not, whatever has been appended since."""
    with Log.open(path, "r") as other:
        chosen = other if reader else log
        with chosen.consumer("open") as consumer, log.consumer("behind") as behind:
            seqs(consumer, 8)
            consumer.commit(7)
            seqs(behind, 2)
            with log.consumer("closed") as closed:
                seqs(closed)
                closed.commit()
            log.truncate_after(5)
            log.append_many([b"new"] * appended)
            assert slowest(log) == 0
            assert {each.name: each.committed for each in log.consumers()} == {
                "behind": 0,
                "closed": 5,
                "open": 5,
            }
            with caplog.at_level(logging.WARNING, "mmaplog"):
                assert consumer.wait(0) == (appended > 0)
                assert (consumer.position, consumer.committed) == (5, 5)
                assert seqs(consumer) == list(range(5, 5 + appended))
            assert "'open' goes on at record 5 instead of 8" in caplog.text
            consumer.commit()
            assert seqs(behind) == list(range(2, 5 + appended))
        with log.consumer("closed") as closed:
            assert (closed.position, closed.committed) == (5, 5)
        with log.consumer("open") as again:
            assert again.position == 5 + appended


def test_compaction_leaves_gaps(path: Path) -> None:
    """They are passed over, and count as processed."""
    with Log.open(path, segment_bytes=1 << 16) as log:
        log.append_many([b"%d" % number * 200 for number in range(2000)])
        log.compact(lambda entry: entry.seq % 3 == 0)
        left = [entry.seq for entry in log.replay()]
        assert len(left) < 1500
        with log.consumer("c") as consumer, log.group("g", batch=7) as member:
            assert seqs(consumer) == left
            found = []
            while (entry := member.poll()) is not None:
                found.append(entry.seq)
            assert found == left
            member.commit()
            consumer.commit()
            assert slowest(log) == 2000


def test_retention_waits_for_the_slowest(path: Path) -> None:
    """Nothing is dropped that a consumer or group has still to read."""
    with Log.open(path, segment_bytes=1 << 16) as log:
        log.append_many([b"x" * 1000] * 1000)
        with log.consumer("c") as consumer, log.group("g", batch=100) as member:
            assert log.retain(consumers=True) == 0
            seqs(consumer)
            consumer.commit()
            assert log.retain(consumers=True) == 0
            while (entry := member.poll()) is not None and entry.seq < 500:
                continue
            member.commit()
            assert 0 < log.retain(consumers=True) <= 501
            assert consumer.lag() == 0
            assert [each.seq for each in iter(member.poll, None)] == list(range(501, 1000))


# Names, and what is in the directory.


@pytest.mark.parametrize("name", ["a", "_", "0", "A-b.c_9", "x" * 100, "a.consumer", "x.consumer.tmp"])
def test_names(log: Log, path: Path, name: str) -> None:
    """Whatever is no danger to a directory."""
    log.consumer(name).close()
    assert (path / f"{name}.consumer").stat().st_mode & 0o777 == 0o600
    assert [each.name for each in log.consumers()] == [name]
    assert not list(path.glob("*.tmp"))
    log.remove_consumer(name)
    assert log.consumers() == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 101,
        ".",
        "..",
        ".a",
        "-a",
        "a/b",
        "/a",
        "a\0",
        "a\n",
        "a b",
        "\u00e9",
        "a\\b",
        "a:b",
        "\ud800",
    ],
)
def test_names_that_are_none(log: Log, path: Path, name: str) -> None:
    """Refused before anything is made, opened or removed."""
    with unchanged(path):
        for call in (log.consumer, log.group, log.remove_consumer):
            with pytest.raises(ValueError, match="cannot name a consumer"):
                call(name)


@pytest.mark.parametrize("name", [b"a", None, 1, Path("a")])
def test_names_that_are_no_text(log: Log, name: object) -> None:
    """As above."""
    for call in (log.consumer, log.group, log.remove_consumer):
        with pytest.raises(TypeError, match="must be a str, not"):
            call(name)  # type: ignore[arg-type]


def test_options_that_make_no_sense(log: Log, path: Path) -> None:
    """Refused before anything is made."""
    with unchanged(path):
        with pytest.raises(ValueError, match="too_old must be 'raise' or 'skip', not 'ignore'"):
            log.consumer("c", too_old="ignore")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            log.consumer("c", start="1")  # type: ignore[arg-type]


def test_removing(log: Log) -> None:
    """It begins anew, and one that is not there cannot be removed."""
    with log.consumer("c") as consumer:
        seqs(consumer)
        consumer.commit()
    log.remove_consumer("c")
    assert log.consumers() == []
    assert slowest(log) is None
    with pytest.raises(FileNotFoundError):
        log.remove_consumer("c")
    with log.consumer("c") as consumer:
        assert consumer.position == 0


def test_a_name_is_of_one_kind(log: Log) -> None:
    """A group's file says something else."""
    log.consumer("c").close()
    log.group("g").close()
    with pytest.raises(LogError, match="'c' is a consumer of this log, not a group; use another name"):
        log.group("c")
    with pytest.raises(LogError, match="'g' is a group of this log, not a consumer; use another name"):
        log.consumer("g")
    assert [(each.name, each.kind, each.holder) for each in log.consumers()] == [
        ("c", "consumer", None),
        ("g", "group", None),
    ]


def test_a_new_log_has_no_consumers(path: Path) -> None:
    """Positions of the old one mean nothing in it, and a consumer that was half made goes too."""
    with Log.open(path) as log:
        log.append_many([b"x"] * 5)
        for name in ("a", "b"):
            log.consumer(name).close()
        log.group("g").close()
    (path / "c.consumer.tmp").write_bytes(b"half")
    (path / "c.consumer.bak").write_bytes(b"mine")
    with Log.open(path, "n") as log:
        assert log.consumers() == []
        assert sorted(each.name for each in path.glob("*consumer*")) == ["c.consumer.bak"]


def test_many_make_one_at_the_same_time(log: Log, path: Path) -> None:
    """One of them gets it, the others are told who; and one file is made."""
    ready = threading.Barrier(8)

    def make(results: list[str]) -> None:
        with Log.open(path, "r") as reader:
            ready.wait(DEADLINE)
            try:
                made = reader.consumer("c")
            except Locked:
                results.append("Locked")
            else:
                results.append("made")
                done.wait(DEADLINE)
                made.close()

    results: list[str] = []
    done = threading.Event()
    threads = [threading.Thread(target=make, args=(results,)) for _ in range(8)]
    for each in threads:
        each.start()
    while len(results) < 8:
        threads[0].join(0.01)
    done.set()
    for each in threads:
        each.join(DEADLINE)
    assert sorted(results) == ["Locked"] * 7 + ["made"]
    assert [each.name for each in path.glob("*.consumer*")] == ["c.consumer"]


def test_what_a_killed_maker_left(log: Log, path: Path) -> None:
    """A file that has not its name yet is none: the next one makes it."""
    for left in (b"", b"x" * 100, bytes(5000)):
        (path / "c.consumer.tmp").write_bytes(left)
        with log.consumer("c") as consumer:
            assert seqs(consumer, 1) == [0]
        assert not (path / "c.consumer.tmp").exists()
        log.remove_consumer("c")


def test_making_one_is_synced_before_it_has_its_name(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without content would be damage after a power cut."""
    done: list[str] = []

    class Recorded:
        def __getattr__(self, name: str) -> object:
            found = getattr(_os, name)
            if name not in ("sync", "replace_file", "write_at", "grow"):
                return found

            def call(*arguments: object) -> object:
                done.append(name)
                return found(*arguments)

            return call

    monkeypatch.setattr(bookmark, "_os", Recorded())
    log.consumer("c").close()
    assert done == ["grow", "write_at", "write_at", "write_at", "sync", "replace_file", "sync"]


def test_where_nothing_may_be_written(path: Path) -> None:
    """A consumer cannot be made there; one that may be written can be used."""
    with Log.open(path) as log:
        log.append_many([b"x"] * 5)
        log.consumer("old").close()
        log.consumer("mine").close()
    (path / "old.consumer").chmod(0o400)
    path.chmod(0o500)

    def use() -> list[tuple[str, str]]:
        with Log.open(path, "r") as reader:
            found = [outcome(partial(reader.consumer, each)) for each in ("new", "old")]
            with reader.consumer("mine") as consumer:
                seqs(consumer, 3)
                consumer.commit()
            assert [(each.name, each.committed) for each in reader.consumers()] == [("mine", 3), ("old", 0)]
            found.append(outcome(lambda: reader.remove_consumer("mine")))
        return found

    try:
        assert [kind for kind, _ in unprivileged(use)] == ["PermissionError"] * 3
    finally:
        path.chmod(0o700)


def test_a_reader_that_is_alone_with_what_it_found(path: Path) -> None:
    """It sees nothing that comes, and what it says of the log is nobody else's truth."""
    with Log.open(path) as log:
        log.append_many([b"x"] * 5)
    (path / "CONTROL").unlink()
    path.chmod(0o500)

    def use() -> list[tuple[str, str]]:
        with Log.open(path, "r") as reader:
            return [outcome(lambda: reader.consumer("c")), outcome(lambda: reader.group("g"))]

    try:
        for kind, text in unprivileged(use):
            assert kind == "LogError"
            assert "this reader may not write" in text
    finally:
        path.chmod(0o700)
