"""What goes into a log comes out again, in order, numbered, and unchanged."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmapio import MappedSlice
from mmaplog import CorruptionError, Entry, FlushPolicy, Log, LogError, RecordTooLarge
from tests.unit.mmaplog.segment_file import payloads_on_disk, segment_paths

MANUAL = FlushPolicy.MANUAL
SEGMENT = 64 << 10


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """An empty log of small segments."""
    with Log.open(tmp_path / "log", flush_policy=MANUAL, segment_bytes=SEGMENT) as opened:
        yield opened


def payloads(log: Log, *bounds: int) -> list[bytes]:
    """The payloads of a replay."""
    return [bytes(entry.payload) for entry in log.replay(*bounds)]


def test_records_are_numbered_from_zero(log: Log) -> None:
    """The number is how everything else refers to a record."""
    assert len(log) == log.committed == 0
    assert [log.append(b"%d" % number) for number in range(100)] == list(range(100))
    assert len(log) == log.committed == 100
    found = list(log.replay())
    assert [entry.seq for entry in found] == list(range(100))
    assert [bytes(entry.payload) for entry in found] == [b"%d" % number for number in range(100)]


def test_a_log_is_iterated_over_as_it_is(log: Log) -> None:
    """Whatever it begins with, and wherever it has gaps: by `log[0]`, `log[1]` and so on it ended there."""
    log.append_many([b"%d" % number for number in range(2000)])
    log.compact(lambda entry: entry.seq % 3 == 0)
    log.truncate_before(400)
    found = [entry.seq for entry in log]
    assert found == [entry.seq for entry in log.replay()]
    assert len(found) == len(log)
    assert 402 in found
    assert [entry.seq for entry in reversed(log)] == found[::-1]
    before = iter(log)
    log.append(b"later")
    assert [entry.seq for entry in before] == found


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 255, 4095, 4096, 4097, 20_000])
def test_every_length_comes_back_as_it_was(tmp_path: Path, log: Log, size: int) -> None:
    """Records are padded to 8 bytes; the padding is not part of the payload."""
    data = bytes(range(1, 252)) * (size // 251 + 1)
    log.append(data[:size])
    log.append(b"next")
    assert payloads(log) == [data[:size], b"next"]
    assert payloads_on_disk(tmp_path / "log") == [data[:size], b"next"]


@pytest.mark.parametrize(
    "data", [b"abc", bytearray(b"abc"), memoryview(b"xabc")[1:], memoryview(b"abc").cast("B")]
)
def test_any_contiguous_buffer_is_taken(log: Log, data: bytes) -> None:
    """And kept by value: changing the buffer later changes nothing."""
    log.append(data)
    if isinstance(data, bytearray):
        data[:] = b"xyz"
    assert payloads(log) == [b"abc"]


def test_a_payload_of_the_log_can_be_appended_to_it(log: Log) -> None:
    """The buffer lies in the very mapping that is written."""
    log.append(b"copy me")
    (entry,) = log.replay()
    log.append(entry.payload)
    assert payloads(log) == [b"copy me"] * 2


@pytest.mark.parametrize("wrong", ["text", None, 5, 1.5, [1], object()])
def test_what_is_no_buffer_is_a_type_error(log: Log, wrong: object) -> None:
    """There is no encoding to guess, and no number may be used up."""
    with pytest.raises(TypeError, match="bytes-like"):
        log.append(wrong)
    assert log.append(b"first") == 0


def test_a_buffer_with_holes_is_refused(log: Log) -> None:
    """Its bytes do not lie in a row."""
    with pytest.raises(BufferError):
        log.append(memoryview(b"abcdef")[::2])
    assert len(log) == 0


def test_a_record_larger_than_the_format_is_refused_unread(log: Log, huge_buffer: memoryview) -> None:
    """The length field would wrap; checking must cost neither memory nor disk."""
    with pytest.raises(RecordTooLarge, match="larger than") as raised:
        log.append(huge_buffer)
    assert isinstance(raised.value, ValueError)
    assert isinstance(raised.value, LogError)
    assert raised.value.filename == log.path
    assert len(segment_paths(Path(log.path))) == 1
    assert log.append(b"x") == 0


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((), range(50)),
        ((0,), range(50)),
        ((10,), range(10, 50)),
        ((49,), range(49, 50)),
        ((50,), range(0)),
        ((0, 0), range(0)),
        ((0, 1), range(1)),
        ((20, 20), range(0)),
        ((20, 30), range(20, 30)),
        ((0, 50), range(50)),
        ((50, 50), range(0)),
    ],
)
def test_a_replay_is_half_open(log: Log, bounds: tuple[int, ...], expected: range) -> None:
    """An off-by-one here is a record processed twice or never, across segments too."""
    for number in range(50):
        log.append(b"%d" % number * 2000)
    assert len(segment_paths(Path(log.path))) > 1
    assert [entry.seq for entry in log.replay(*bounds)] == list(expected)
    assert payloads(log, *bounds) == [b"%d" % number * 2000 for number in expected]


@pytest.mark.parametrize(
    "bounds",
    [(-1,), (51,), (0, 51), (-5, 10), (30, 20), (0, -1), (2**63,), (0, 2**64), (2**64, 2**64), (51, 51)],
)
def test_a_replay_outside_the_log_is_an_index_error(log: Log, bounds: tuple[int, ...]) -> None:
    """Silently clamping would hide that what one asked for is not there."""
    for number in range(50):
        log.append(b"%d" % number)
    with pytest.raises(IndexError, match=r"\[0, 50\)"):
        log.replay(*bounds)


@pytest.mark.parametrize("wrong", ["1", 1.5, [0]])
def test_a_bound_that_is_no_integer_is_a_type_error(log: Log, wrong: object) -> None:
    """Half a record does not exist."""
    log.append(b"a")
    log.append(b"b")
    with pytest.raises(TypeError):
        log.replay(wrong)
    with pytest.raises(TypeError):
        log.replay(0, wrong)


def test_a_replay_ends_where_the_log_did(log: Log) -> None:
    """A replay that chased the end of a log that is being written would never come to it."""
    for number in range(10):
        log.append(b"%d" % number)
    replay = log.replay()
    assert [bytes(next(replay).payload) for _ in range(5)] == [b"%d" % number for number in range(5)]
    for _ in range(2000):
        log.append(b"later" * 20)
    assert [entry.seq for entry in replay] == list(range(5, 10))
    assert list(replay) == []


def test_two_replays_do_not_disturb_each_other(log: Log) -> None:
    """Each has its own position."""
    for number in range(10):
        log.append(b"%d" % number)
    both = list(zip(log.replay(), log.replay(5), strict=False))
    assert [(one.seq, two.seq) for one, two in both] == [(number, number + 5) for number in range(5)]


def test_a_payload_stays_valid_after_close_and_unlink(tmp_path: Path) -> None:
    """A view on unmapped memory is SIGSEGV."""
    path = tmp_path / "log"
    log = Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT)
    for number in range(3000):
        log.append(b"%d" % number * 20)
    kept = [entry.payload for entry in log.replay()][::500]
    entries = list(log.replay())[:2]
    log.close()
    for file in path.iterdir():
        file.unlink()
    del log
    gc.collect()
    assert [bytes(payload) for payload in kept] == [b"%d" % number * 20 for number in range(0, 3000, 500)]
    assert entries[1].payload == b"1" * 20


def test_a_payload_is_a_view_and_not_a_copy(log: Log) -> None:
    """Replaying a log of gigabytes must not copy it."""
    log.append(b"abc")
    (entry,) = log.replay()
    assert isinstance(entry, Entry)
    assert isinstance(entry.payload, MappedSlice)
    assert memoryview(entry.payload).readonly
    assert repr(entry) == "<Entry 0: 3 bytes>"


def test_timestamps_are_kept_when_asked_for(tmp_path: Path) -> None:
    """They lie between the clock's readings around the append; without the option there are none."""
    path = tmp_path / "log"
    with Log.open(path, timestamps=True, flush_policy=MANUAL) as log:
        before = time.time_ns()
        log.append(b"timed")
        log.append(b"")
        after = time.time_ns()
    with Log.open(path, timestamps=False, flush_policy=MANUAL) as log:
        log.append(b"untimed")
        one, two, three = log.replay()
    assert before <= one.timestamp <= two.timestamp <= after
    assert three.timestamp is None
    assert [bytes(entry.payload) for entry in (one, two, three)] == [b"timed", b"", b"untimed"]


def test_a_log_is_a_context_manager_with_a_face(tmp_path: Path) -> None:
    """What a user sees in a debugger."""
    with Log.open(tmp_path / "log", flush_policy=MANUAL) as log:
        log.append(b"x")
        assert repr(log) == f"<Log {str(tmp_path / 'log')!r} writing, 1 records>"
        assert log.path == str(tmp_path / "log")
        with Log.open(tmp_path / "log", "r") as reader:
            assert repr(reader) == f"<Log {str(tmp_path / 'log')!r} reading, 1 records>"
    assert log.closed
    assert repr(log) == f"<Log {str(tmp_path / 'log')!r} closed>"
    with pytest.raises(TypeError, match=r"Log\.open"):
        Log()


def test_a_damaged_record_is_noticed_on_replay(tmp_path: Path) -> None:
    """Unless told not to look; then only what cannot be read at all is."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=MANUAL) as log:
        for number in range(10):
            log.append(b"record %d" % number)
    segment = segment_paths(path)[0]
    raw = segment.read_bytes()
    at = raw.index(b"record 4")
    with segment.open("r+b") as file:
        file.seek(at)
        file.write(b"R")
    with Log.open(path, "r") as log:
        replay = log.replay()
        assert [next(replay).seq for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(CorruptionError, match="record 4 at offset") as raised:
            next(replay)
        assert segment.name in str(raised.value)
        assert len(list(log.replay(5))) == 5
        assert bytes(list(log.replay(verify=False))[4].payload) == b"Record 4"
