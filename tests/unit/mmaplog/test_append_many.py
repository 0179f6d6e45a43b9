"""Many records in one call: in order, contiguous, checked first; with `atomic`, all of them or none."""

from __future__ import annotations

import array
import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmaplog import Batch, FlushPolicy, Log, LogError, RecordTooLarge
from tests.unit.mmapio.processes import killed_after
from tests.unit.mmaplog.segment_file import SegmentFile, segment_paths

RECORDS = [b"", b"one", b"two" * 50, b"3" * 5000, b"", b"last"]
SEGMENT = 64 << 10


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """A log of small segments that flushes only when told."""
    with Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT) as made:
        yield made


def contents(log: Log) -> list[bytes]:
    """All payloads."""
    return [bytes(entry.payload) for entry in log.replay()]


def joined(records: list[bytes]) -> tuple[bytes, list[int]]:
    """One buffer and the offsets of the records in it."""
    offsets = [0]
    for record in records:
        offsets.append(offsets[-1] + len(record))
    return b"".join(records), offsets


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("kind", [list, tuple, iter, lambda each: (bytearray(one) for one in each)])
def test_the_records_follow_each_other(log: Log, kind: Callable[[list[bytes]], object], atomic: bool) -> None:
    """Whatever they come in."""
    assert log.append(b"before") == 0
    seqs = log.append_many(kind(RECORDS), atomic=atomic)  # type: ignore[call-overload]
    assert seqs == range(1, 1 + len(RECORDS))
    assert log.append(b"after") == seqs.stop
    assert contents(log) == [b"before", *RECORDS, b"after"]


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize(
    "kind", [list, tuple, *(lambda each, code=code: array.array(code, each) for code in "QqLlI")]
)
def test_one_buffer_and_offsets(log: Log, kind: Callable[[list[int]], object], atomic: bool) -> None:
    """The form in which no object is touched per record."""
    buffer, offsets = joined(RECORDS)
    assert log.append_many(buffer, kind(offsets), atomic=atomic) == range(len(RECORDS))  # type: ignore[call-overload]
    assert contents(log) == RECORDS


def test_a_part_of_the_buffer_is_enough(log: Log) -> None:
    """Offsets need not begin at 0, nor end with the buffer."""
    log.append_many(memoryview(b"abcdefgh")[::1], [2, 3, 7])
    assert contents(log) == [b"c", b"defg"]


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("atomic", [False, True])
def test_none_and_one(log: Log, count: int, atomic: bool) -> None:
    """The least there can be, and no sync for nothing."""
    assert log.append_many([b"x"] * count, atomic=atomic, durable=True) == range(count)
    assert log.append_many(b"xy", [0, 1][: count + 1], atomic=atomic) == range(count, 2 * count)
    assert contents(log) == [b"x"] * (2 * count)
    assert log.durable == count


@pytest.mark.parametrize(
    ("offsets", "told"),
    [
        ([], "at least one"),
        ([0, 9], "record 0 is from offset 0 to 9, which is not a part of the 8 bytes"),
        ([0, 5, 4], "record 1 is from offset 5 to 4"),
        ([9, 9], "record 0 is from offset 9 to 9"),
        ([-1, 2], "an offset is not between 0"),
        ([0, 1 << 64], "an offset is not between 0"),
        (array.array("q", [-1, 2]), "record 0"),
        (array.array("q", [-8, -8]), "record 0"),
        (array.array("Q", [1 << 63, 1 << 63]), "record 0"),
        (array.array("Q", [(1 << 64) - 1, 3]), "record 0"),
    ],
)
def test_wrong_offsets_write_nothing(log: Log, offsets: list[int], told: str) -> None:
    """A number that is believed is a read outside the buffer."""
    with pytest.raises(ValueError, match=told):
        log.append_many(b"12345678", offsets)
    assert log.committed == 0


@pytest.mark.parametrize("records", [["text"], [b"good", 5], 5, [b"good", None]])
@pytest.mark.parametrize("atomic", [False, True])
def test_what_is_no_record_writes_nothing(log: Log, records: object, atomic: bool) -> None:
    """Found before the first of them is written."""
    with pytest.raises(TypeError):
        log.append_many(records, atomic=atomic)  # type: ignore[call-overload]
    assert log.committed == 0


def test_offsets_of_the_wrong_kind_write_nothing(log: Log) -> None:
    """Floats are no offsets, and no bytes are either."""
    for offsets in ([0.0, 1.0], "01", object()):
        with pytest.raises(TypeError):
            log.append_many(b"12345678", offsets)  # type: ignore[call-overload]
    assert log.committed == 0


def test_a_buffer_that_is_given_back_can_be_resized(log: Log) -> None:
    """A view that is left behind would forbid it for ever."""
    buffer = bytearray(b"12345678")
    log.append_many(buffer, [0, 8])
    with pytest.raises(ValueError, match="record 0"):
        log.append_many(buffer, [0, 9])
    buffer.extend(b"9")


def test_an_iterable_that_appends_is_not_interleaved(log: Log) -> None:
    """It is read to its end first: the numbers that are returned are those of its records."""

    def records() -> Iterator[bytes]:
        for number in range(3):
            log.append(b"from within")
            yield b"%d" % number

    assert log.append_many(records()) == range(3, 6)
    assert contents(log) == [b"from within"] * 3 + [b"0", b"1", b"2"]


@pytest.mark.parametrize("atomic", [False, True])
def test_threads_do_not_come_in_between(log: Log, atomic: bool) -> None:
    """It lets go of the GIL, and others append meanwhile."""
    stop = threading.Event()

    def append() -> None:
        while not stop.is_set():
            log.append(b"other")

    threads = [threading.Thread(target=append) for _ in range(2)]
    for thread in threads:
        thread.start()
    buffer, offsets = joined([b"mine %d" % number for number in range(500)])
    ranges = [log.append_many(buffer, offsets, atomic=atomic) for _ in range(40)]
    stop.set()
    for thread in threads:
        thread.join()
    found = contents(log)
    for seqs in ranges:
        assert found[seqs.start : seqs.stop] == [b"mine %d" % number for number in range(500)]
    assert len(found) == len(log)
    assert set(found) - {b"mine %d" % number for number in range(500)} <= {b"other"}


def test_it_rolls_as_often_as_it_must(log: Log, tmp_path: Path) -> None:
    """More than a segment holds, and a record that is larger than one."""
    records = [b"%d" % number * 100 for number in range(3000)] + [b"x" * (3 * SEGMENT), b"end"]
    log.append_many(records)
    assert contents(log) == records
    assert len(segment_paths(tmp_path / "log")) > 5


def test_what_is_atomic_is_in_one_segment(log: Log, tmp_path: Path) -> None:
    """A new one when the rest of the last is too small, one of its own when every segment is."""
    log.append(b"x" * 40_000)
    assert log.append_many([b"y" * 10_000] * 3, atomic=True) == range(1, 4)
    assert log.append_many([b"z" * 10_000] * 30, atomic=True) == range(4, 34)
    bases = [SegmentFile(path).base_seq for path in segment_paths(tmp_path / "log")]
    assert bases == [0, 1, 4]


def test_more_than_can_be_atomic_is_refused(log: Log) -> None:
    """Before anything is written; the same in pieces is fine."""
    block = bytes(64 << 20)
    with pytest.raises(RecordTooLarge, match=r"8 records of .* bytes in all"):
        log.append_many([block] * 8, atomic=True)
    assert log.committed == 0


@pytest.mark.parametrize("atomic", [False, True])
def test_one_sync_serves_all(log: Log, atomic: bool) -> None:
    """And is not made unless it is asked for."""
    log.append_many([b"x"] * 100, atomic=atomic)
    assert log.durable == 0
    log.append_many([b"x"] * 100, atomic=atomic, durable=True)
    assert log.durable == 200


@pytest.mark.parametrize(
    ("policy", "durable"),
    [
        (FlushPolicy.ALWAYS, 10),
        (FlushPolicy.every_writes(10), 10),
        (FlushPolicy.every_writes(11), 0),
        (FlushPolicy.every_bytes(1000), 10),
        (FlushPolicy.every_bytes(1001), 0),
    ],
)
def test_the_policies_count_each_record(tmp_path: Path, policy: FlushPolicy, durable: int) -> None:
    """As if they had been appended one by one."""
    with Log.open(tmp_path / "log", flush_policy=policy) as log:
        log.append_many([b"x" * 100] * 10)
        assert log.durable == durable


def test_a_bound_is_kept_within_a_long_call(tmp_path: Path) -> None:
    """No further behind than the bound and one step of growth."""
    with Log.open(tmp_path / "log", flush_policy=FlushPolicy.every_bytes(1 << 20)) as log:
        records = [b"x" * 100_000] * 200
        log.append_many(records)
        assert log.committed - log.durable <= 10


def test_a_killed_process_leaves_all_of_what_was_returned(tmp_path: Path) -> None:
    """It is committed when the call returns."""
    path = tmp_path / "log"
    killed_after(lambda: Log.open(path).append_many(RECORDS, atomic=True))
    killed_after(lambda: Log.open(path).append_many(RECORDS))
    with Log.open(path) as log:
        assert not log.recovered
        assert contents(log) == RECORDS * 2


# Batches.


def test_a_batch_is_appended_at_its_end(log: Log) -> None:
    """Nothing is to be seen before."""
    with log.batch() as batch:
        batch.append(b"a")
        batch.append(bytearray(b"b"))
        assert len(batch) == 2
        assert log.committed == 0
        assert batch.seqs is None
    assert batch.seqs == range(2)
    assert contents(log) == [b"a", b"b"]
    with pytest.raises(LogError, match="appended already"):
        batch.append(b"c")


def test_nothing_is_added_to_a_batch_that_is_being_appended(log: Log) -> None:
    """By another thread: it was told nothing, and there was no such record."""

    class Meanwhile:
        path = log.path

        def append_many(self, records: list[bytes], **options: bool) -> range:
            with pytest.raises(LogError, match="by another thread"):
                batch.append(b"late")
            return log.append_many(records, **options)

    batch = Batch(Meanwhile(), False)  # type: ignore[arg-type]
    with batch:
        batch.append(b"a")
    assert (len(batch), batch.seqs, contents(log)) == (1, range(1), [b"a"])


def test_a_batch_that_raises_appends_nothing(log: Log) -> None:
    """That is what it is for."""
    with pytest.raises(KeyError), log.batch() as batch:
        batch.append(b"a")
        raise KeyError
    assert log.committed == 0
    with pytest.raises(TypeError), log.batch() as batch:
        batch.append(5)  # type: ignore[arg-type]
    assert log.committed == 0


def test_a_durable_batch(log: Log) -> None:
    """On the device when the block is over."""
    with log.batch(durable=True) as batch:
        batch.append(b"a")
        batch.append(b"b")
    assert log.durable == 2


def test_a_batch_torn_at_every_byte_is_not_there_at_all(tmp_path: Path) -> None:
    """A power cut may keep any of its bytes: it is whole or gone, and so after a second one."""
    path = tmp_path / "log"
    before, batch = [b"before", b"too"], [b"one", b"", b"three" * 20]
    with Log.open(path, flush_policy=FlushPolicy.NEVER) as log:
        log.append_many(before)
        log.append_many(batch, atomic=True)
    segment = SegmentFile(segment_paths(path)[0])
    whole = bytes(segment.data)
    records = list(segment.records())
    assert [record.payload for record in records] == before + batch
    for cut in range(records[2].offset, segment.end() + 1):
        for extra in path.glob("*.seg*"):
            if extra != segment.path:
                extra.unlink()
        (path / "CONTROL").unlink(missing_ok=True)
        segment.data[:] = whole
        segment.data[cut:] = bytes(len(whole) - cut)
        # What stays the same when its last bytes are zeros was not torn.
        expected = before + batch if segment.data == whole else before
        segment.save()
        for _ in range(2):
            with Log.open(path, flush_policy=FlushPolicy.NEVER) as log:
                assert contents(log) == expected, f"cut at byte {cut}"
            (path / "CONTROL").unlink()
        with Log.open(path, flush_policy=FlushPolicy.NEVER) as log:
            assert log.append(b"next") == len(expected)
            assert contents(log) == [*expected, b"next"]


def test_records_after_a_torn_batch_are_kept_if_they_were_before_it(tmp_path: Path) -> None:
    """Two batches, the second torn: the first stays."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=FlushPolicy.NEVER) as log:
        log.append_many([b"a", b"b"], atomic=True)
        log.append_many([b"c", b"d"], atomic=True)
    (path / "CONTROL").unlink()
    segment = SegmentFile(segment_paths(path)[0])
    last = list(segment.records())[-1]
    segment.data[last.offset : last.offset + last.size] = bytes(last.size)
    segment.save()
    with Log.open(path) as log:
        assert contents(log) == [b"a", b"b"]
        assert log.recovered


def test_a_batch_that_was_durable_and_is_damaged_is_an_error(tmp_path: Path) -> None:
    """It is no torn tail: a later record says that it was on the device."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=FlushPolicy.NEVER) as log:
        log.append_many([b"a", b"b", b"c"], atomic=True, durable=True)
        log.append(b"witness")
    (path / "CONTROL").unlink()
    segment = SegmentFile(segment_paths(path)[0])
    record = list(segment.records())[1]
    segment.data[record.offset + 16] ^= 1
    segment.save()
    with pytest.raises(OSError, match="were durable and are damaged") as raised:
        Log.open(path)
    assert raised.value.errno == errno.EBADMSG
