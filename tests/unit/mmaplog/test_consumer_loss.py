"""Consumers of a log that loses records, at either end or in between: nothing is left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmaplog import FlushPolicy, Log, TooOld
from mmaplog.consumer import slowest
from tests.unit.mmaplog.handed_out import seqs


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


def test_records_of_which_nothing_reached_the_disk(path: Path) -> None:
    """Appended after a clean close, committed by a consumer, and lost: recovery finds the log as it was
    closed, and keeps its epoch. To go on at the committed number would leave out new records.
    """
    with Log.open(path, flush_policy=FlushPolicy.MANUAL) as log:
        log.append_many([b"old"] * 10)
    (segment,) = path.glob("*.seg")
    closed = segment.read_bytes()
    with Log.open(path, flush_policy=FlushPolicy.MANUAL) as log:
        log.append_many([b"lost"] * 5)
        consumer = log.consumer("c")
        seqs(consumer)
        consumer.commit()
        del consumer
    segment.write_bytes(closed.ljust(segment.stat().st_size, b"\0"))
    (path / "CONTROL").unlink()
    with Log.open(path) as log:
        log.append_many([b"new"] * 8)
        assert slowest(log) == 10
        with log.consumer("c") as consumer:
            assert seqs(consumer) == list(range(10, 18))


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


def test_a_log_that_is_cut_at_the_very_moment(log: Log) -> None:
    """After it was looked at, before it is read: that is no record dropped unread."""
    with log.consumer("c") as consumer:
        seqs(consumer)
        follower = consumer._following()

        class Cutting:
            def poll(self) -> object:
                log.truncate_after(5)
                log.append(b"new")
                return follower.poll()

        consumer._follower = Cutting()  # type: ignore[assignment]
        entry = consumer.poll()
        assert entry is not None
        assert (entry.seq, bytes(entry.payload)) == (5, b"new")


@pytest.mark.parametrize("too_old", ["raise", "skip"])
def test_a_log_that_is_cut_while_a_member_reads_what_it_took(log: Log, too_old: str) -> None:
    """It was told that they were too old, or began with the first record of the log, whosever that was."""
    with log.group("g", too_old=too_old) as member:
        assert [next(member).seq for _ in range(3)] == [0, 1, 2]
        assert member._replay is not None
        given, stop, _ = member._replay

        class Cutting:
            def __iter__(self) -> Iterator[object]:
                return self

            def __next__(self) -> object:
                log.truncate_after(2)
                log.append(b"new")
                raise TooOld("as of a replay that goes on into another segment")

        member._replay = given, stop, Cutting()  # type: ignore[assignment]
        entry = next(member)
        assert (entry.seq, bytes(entry.payload)) == (2, b"new")
        assert member.poll() is None


@pytest.mark.parametrize("looks", ["auto_commit", "committed", "claims", "commit"])
def test_a_member_that_looked_at_its_group_after_a_cut(log: Log, looks: str) -> None:
    """What it was reading is cut off, and still mapped: it went on there, and committed what nobody saw."""
    with log.group("g", batch=10, auto_commit=looks == "auto_commit") as member:
        assert seqs(member, 5) == list(range(5))
        log.truncate_after(5)
        log.append_many([b"new"] * 5)
        if looks == "commit":
            member.commit()
        elif looks != "auto_commit":
            getattr(member, looks)
        entries = list(iter(member.poll, None))
        assert [(each.seq, bytes(each.payload)) for each in entries] == [
            (seq, b"new") for seq in range(5, 10)
        ]


def test_a_consumer_that_is_interrupted_while_it_says_that_numbers_are_used_again(log: Log) -> None:
    """The number of before is not stored as one of the new epoch."""

    class Interrupted(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    with log.consumer("c") as consumer:
        seqs(consumer)
        consumer.commit()
        log.truncate_after(5)
        log.append_many([b"new"] * 10)
        handler = Interrupted()
        logging.getLogger("mmaplog").addHandler(handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                consumer.poll()
        finally:
            logging.getLogger("mmaplog").removeHandler(handler)
    with log.consumer("c") as consumer:
        assert seqs(consumer) == list(range(5, 15))


@pytest.mark.parametrize("failing", ["place", "store"])
def test_a_consumer_that_could_not_go_back(log: Log, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """It does the next time."""
    with log.consumer("c") as consumer:
        seqs(consumer)
        consumer.commit()
        log.truncate_after(5)
        log.append_many([b"new"] * 10)

        def fail(*_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patched:
            if failing == "store":
                patched.setattr(consumer._mark, "store", fail)
            else:
                patched.setattr("mmaplog.consumer.Consumer._place_now", fail)
            with pytest.raises(MemoryError):
                consumer.poll()
    with log.consumer("c") as consumer:
        assert seqs(consumer) == list(range(5, 15))


@pytest.mark.parametrize("first", [0, 7])
def test_a_seek_is_in_the_log_as_it_is_now(log: Log, first: int) -> None:
    """It was cut since the last look at it, and may have lost its beginning: what is sought is there."""
    with log.consumer("c") as consumer:
        seqs(consumer)
        consumer.commit()
        log.truncate_after(5)
        log.append_many([b"new"] * 10)
        log.truncate_before(first)
        consumer.seek(7)
        assert (consumer.position, consumer.committed) == (7, 5)
        assert seqs(consumer) == list(range(7, 15))


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


def test_without_consumers_nothing_goes_for_them(path: Path) -> None:
    """Nobody has come yet, or under another name: that is no reason to drop what he is to read."""
    with Log.open(path, segment_bytes=1 << 16) as log:
        log.append_many([b"x" * 1000] * 1000)
        assert log.retain(consumers=True) == 0
        assert 0 < log.retain(consumers=True, max_records=100) <= 900


def cut_and_dropped(log: Log, first: int, cut: int = 5) -> None:
    """Numbers from `cut` on are given out again, and dropped below `first`."""
    log.truncate_after(cut)
    log.append_many([b"new"] * 50)
    log.truncate_before(first)


@pytest.mark.parametrize("segment_begins", [False, True])
@pytest.mark.parametrize("reader", [False, True])
def test_records_under_numbers_used_again_that_were_dropped_unread(
    log: Log, path: Path, segment_begins: bool, reader: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether he was there meanwhile or not, and though his number is one that the log has."""
    log.append_many([b"old"] * 30)
    with Log.open(path, "r") as other:
        chosen = other if reader else log
        with chosen.consumer("open") as consumer, chosen.group("g") as member:
            for name in ("closed", "skips"):
                with log.consumer(name) as each:
                    seqs(each)
                    each.commit()
            seqs(consumer, 30)
            consumer.commit()
            seqs(member, 20)
            member.commit()
            if segment_begins:
                # Of the epoch in which numbers are used again, nothing is left that says where it began.
                log.truncate_after(5)
                log.append_many([b"new"] * 10)
                log.truncate_after(15)
                log.append_many([b"new"] * 40)
                log.truncate_before(15)
            else:
                cut_and_dropped(log, 15)
            assert {each.committed for each in log.consumers()} == {5}
            assert log.retain(consumers=True) == 15
            for each in (consumer, member):
                with pytest.raises(TooOld, match="record 5 "):
                    each.poll()
                assert each.committed == 5
            consumer.seek(15)
            assert seqs(consumer) == list(range(15, 55))
    for _ in range(2):
        with log.consumer("closed") as consumer:
            assert consumer.position == consumer.committed == 5
            with pytest.raises(TooOld, match="record 5 "):
                consumer.poll()
        with log.group("g") as member, pytest.raises(TooOld, match="record 5 "):
            member.poll()
    with caplog.at_level(logging.WARNING, "mmaplog"):
        with log.consumer("skips", too_old="skip") as consumer:
            assert seqs(consumer) == list(range(15, 55))
            consumer.commit()
        with log.group("g", too_old="skip") as member:
            assert seqs(member) == list(range(15, 55))
            member.commit()
    assert "'skips' goes on at record 15: records from 5 on were dropped" in caplog.text
    assert "'g' goes on at record 15: records from 5 on were dropped" in caplog.text
    caplog.clear()
    with log.consumer("skips") as consumer, log.group("g") as member:
        assert consumer.committed == member.committed == 55
    assert caplog.text == ""


def test_who_missed_nothing_of_what_was_dropped_goes_on(log: Log) -> None:
    """The numbers that are used again are all still there, or he has read what was there instead."""
    with log.consumer("before") as consumer:
        seqs(consumer, 7)
        consumer.commit()
    log.truncate_after(5)
    log.append_many([b"new"] * 20)
    with log.consumer("since") as since:
        seqs(since, 15)
        since.commit()
    log.truncate_before(5)
    with log.consumer("before") as consumer:
        assert seqs(consumer) == list(range(5, 25))
    log.truncate_before(10)
    with log.consumer("since") as since:
        assert seqs(since) == list(range(15, 25))
    with log.consumer("before") as consumer:
        consumer.commit(5)
        with pytest.raises(TooOld):
            seqs(consumer)


def test_a_follower_of_what_was_dropped_unread_is_told(log: Log, path: Path) -> None:
    """Though it stands at the very number with which the log begins."""
    with Log.open(path, "r") as reader:
        follower = reader.follow(0, timeout=0)
        assert len(list(follower)) == 10
        cut_and_dropped(log, 10)
        with pytest.raises(TooOld, match="records from 5 on"):
            follower.poll()
