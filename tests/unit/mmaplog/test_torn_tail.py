"""Where a log ends after a power cut: hand-made tails, each with what recovery has to make of it.

A torn tail was never acknowledged as durable and is left out. Damage to what was durable is an error that
changes nothing on disk. CONTROL is taken away throughout, as a power cut takes it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmaplog import CorruptionError, FlushPolicy, Log
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmaplog.segment_file import (
    HEADER_SIZE,
    NO_CLAIM,
    RECORD,
    SegmentFile,
    payloads_on_disk,
    segment_files,
    segment_paths,
)

NEVER = FlushPolicy.NEVER
MANUAL = FlushPolicy.MANUAL
RECORDS = [b"first", b"second!!", b"", b"the fourth record", b"five", b"x" * 333]


def power_cut(path: Path) -> None:
    """What a power cut takes: CONTROL."""
    (path / "CONTROL").unlink(missing_ok=True)


def unsynced_log(path: Path, records: list[bytes] = RECORDS) -> SegmentFile:
    """A log that no sync ever covered; its records make no claim about what was durable."""
    with Log.open(path, "n", flush_policy=NEVER) as log:
        for record in records:
            log.append(record)
    power_cut(path)
    return SegmentFile(segment_paths(path)[0])


def recovered(path: Path, mode: str = "w") -> list[bytes]:
    """What opening finds."""
    with Log.open(path, mode, flush_policy=NEVER) as log:
        assert len(log) == log.committed
        return [bytes(entry.payload) for entry in log.replay()]


def prefix_before(segment: SegmentFile, cut: int) -> list[bytes]:
    """The records that end at or before `cut`."""
    return [record.payload for record in segment.records() if record.offset + record.size <= cut]


def test_a_tail_cut_at_every_byte_leaves_the_records_before(tmp_path: Path) -> None:
    """A tail torn anywhere must neither be refused nor give half a record."""
    path = tmp_path / "log"
    segment = unsynced_log(path)
    whole = bytes(segment.data)
    end = segment.end()
    assert prefix_before(segment, end) == RECORDS
    # Every byte of the last two records and of the border before them, then every word of the others.
    last = [record.offset for record in segment.records()][-2]
    for cut in sorted(
        {*range(last - 8, last + 48), *range(HEADER_SIZE, end + 1, 8), *range(end - 16, end + 1)}
    ):
        power_cut(path)
        for extra in path.glob("*.seg*"):
            if extra != segment.path:
                extra.unlink()
        segment.data[:] = whole
        segment.data[cut:] = bytes(len(whole) - cut)
        segment.save()
        # A record whose padding was cut off is still whole: what is missing are zeros.
        expected = [r.payload for r in segment.records()]
        assert expected in (prefix_before(segment, cut), RECORDS[: len(prefix_before(segment, cut)) + 1])
        assert recovered(path) == expected, f"cut at byte {cut}"


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 15, 16, 17, 24, 40, 340])
def test_a_file_that_ends_early_is_a_torn_tail_too(tmp_path: Path, cut: int) -> None:
    """The length of a file may reach the disk after the records, or before."""
    path = tmp_path / "log"
    segment = unsynced_log(path)
    last = list(segment.records())[-1]
    del segment.data[last.offset + cut :]
    segment.save()
    assert recovered(path) == RECORDS[:-1]
    assert recovered(path) == RECORDS[:-1]


@dataclass(frozen=True)
class Tail:
    """A hand-made tail: what is done to a log of RECORDS, and which of them are left."""

    name: str
    tear: Callable[[SegmentFile], object]
    left: int


def zero_word_then_garbage(segment: SegmentFile) -> None:
    """A zero length, and behind it what some earlier file left."""
    segment.data[segment.end() + 16 : segment.end() + 80] = b"\xa5" * 64


def flip(segment: SegmentFile, index: int, at: int) -> None:
    """Change one byte of a record."""
    segment.data[list(segment.records())[index].offset + at] ^= 0x40


def length_of(segment: SegmentFile, index: int, units: int) -> None:
    """Give a record another length, its checksum made right where that is possible."""
    offset = list(segment.records())[index].offset
    struct.pack_into("<I", segment.data, offset, units)
    if 2 <= units <= (len(segment.data) - offset) // 8:
        segment.reseal(offset)


def units_left(segment: SegmentFile, index: int) -> int:
    """From a record to the end of the file, in the unit of lengths."""
    return (len(segment.data) - list(segment.records())[index].offset) // 8


def valid_records_behind(segment: SegmentFile, start: int, seqs: list[int], lag: int = NO_CLAIM) -> None:
    """Valid records after a hole."""
    at = segment.end() + start
    for seq in seqs:
        at = segment.put_record(at, seq, b"stale %d" % seq, lag=lag)


TAILS = [
    Tail("nothing behind", lambda s: None, 6),
    Tail("garbage behind", lambda s: s.data.__setitem__(slice(s.end(), s.end() + 64), b"\xa5" * 64), 6),
    Tail("zero word, then garbage", zero_word_then_garbage, 6),
    Tail(
        "garbage in the last bytes of the file", lambda s: s.data.__setitem__(slice(-8, None), b"\xff" * 8), 6
    ),
    Tail("length flipped", lambda s: flip(s, 5, 0), 5),
    Tail("checksum flipped", lambda s: flip(s, 5, 4), 5),
    Tail("number flipped", lambda s: flip(s, 5, 8), 5),
    Tail("type flipped", lambda s: flip(s, 5, 12), 5),
    Tail("flags flipped", lambda s: flip(s, 5, 13), 5),
    Tail("lag flipped", lambda s: flip(s, 5, 14), 5),
    Tail("payload flipped", lambda s: flip(s, 5, 16), 5),
    Tail("payload's end flipped", lambda s: flip(s, 5, 348), 5),
    Tail("padding flipped", lambda s: flip(s, 4, 23), 4),
    Tail("first record flipped", lambda s: flip(s, 0, 16), 0),
    Tail("length one unit", lambda s: length_of(s, 5, 1), 5),
    Tail("length zero", lambda s: length_of(s, 5, 0), 5),
    Tail("length beyond the file", lambda s: length_of(s, 5, 0xFFFFFFFF), 5),
    Tail("length beyond the file by one", lambda s: length_of(s, 5, units_left(s, 5) + 1), 5),
    Tail("the next number but one", lambda s: s.put_record(s.end(), 7, b"skipped"), 6),
    Tail("a number again", lambda s: s.put_record(s.end(), 5, b"again"), 6),
    Tail("number zero again", lambda s: s.put_record(s.end(), 0, b"again"), 6),
    Tail("valid records after a zero word", lambda s: valid_records_behind(s, 8, [7, 8]), 6),
    Tail("the very next number after a zero word", lambda s: valid_records_behind(s, 16, [6, 7]), 6),
    Tail("valid records far behind", lambda s: valid_records_behind(s, 20_000, [6, 7, 8]), 6),
    Tail("a record with pad bytes and no payload", lambda s: length_of(s, 2, 2), 6),
    Tail("a claim of what is here anyway", lambda s: valid_records_behind(s, 64, [9], lag=3), 6),
]


@pytest.mark.parametrize("tail", TAILS, ids=lambda tail: tail.name)
def test_a_torn_tail_is_left_out_and_stays_out(tmp_path: Path, tail: Tail) -> None:
    """Every record before the tear is there, nothing after it is, and a second recovery finds the same."""
    path = tmp_path / "log"
    segment = unsynced_log(path)
    tail.tear(segment)
    segment.save()
    assert recovered(path, "r") == RECORDS[: tail.left]
    power_cut(path)
    assert recovered(path, "w") == RECORDS[: tail.left]
    with Log.open(path, flush_policy=MANUAL) as log:
        assert log.append(b"new") == tail.left
        assert log.append(b"newer") == tail.left + 1
    power_cut(path)
    assert recovered(path) == [*RECORDS[: tail.left], b"new", b"newer"]
    power_cut(path)
    assert recovered(path) == [*RECORDS[: tail.left], b"new", b"newer"]


@pytest.mark.parametrize("tail", [tail for tail in TAILS if tail.left < 6], ids=lambda tail: tail.name)
def test_a_broken_record_that_a_later_one_calls_durable_is_an_error(tmp_path: Path, tail: Tail) -> None:
    """The later record is the witness: cutting here would lose what was promised. Nothing may be changed."""
    path = tmp_path / "log"
    segment = unsynced_log(path, [*RECORDS, b"witness", b"more"])
    at = list(segment.records())[6].offset
    segment.put_record(at, 6, b"witness", lag=0)
    tail.tear(segment)
    segment.save()
    for mode in ("r", "w"):
        with (
            unchanged(path, ignoring=("LOCK",)),
            pytest.raises(CorruptionError, match=f"records {tail.left} to 5 were durable") as raised,
        ):
            Log.open(path, mode, flush_policy=NEVER)
        assert segment.path.name in str(raised.value)


def test_a_real_log_carries_such_witnesses(tmp_path: Path) -> None:
    """The same without a hand-made witness: records written after a flush say what it covered."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=NEVER) as log:
        for number in range(10):
            log.append(b"record %d" % number)
        log.flush()
        log.append(b"after the flush")
    power_cut(path)
    segment = SegmentFile(segment_paths(path)[0])
    claims = [record.seq - record.lag for record in segment.records() if record.lag != NO_CLAIM]
    assert claims[-1] == 10
    segment.drop_mark()
    flip(segment, 4, 16)
    segment.save()
    with unchanged(path, ignoring=("LOCK",)), pytest.raises(CorruptionError, match="records 4 to 9"):
        Log.open(path, "w", flush_policy=NEVER)


def test_a_witness_in_a_later_segment_counts(tmp_path: Path) -> None:
    """It says the same there."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=NEVER, segment_bytes=64 << 10) as log:
        for number in range(10):
            log.append(b"%d" % number * 5000)
        log.flush()
        for number in range(20):
            log.append(b"%d" % number * 5000)
    power_cut(path)
    segments = segment_files(path)
    assert len(segments) > 2
    for segment in segments:
        segment.drop_mark()
        segment.save()
    broken = segments[0]
    flip(broken, 4, 100)
    broken.save()
    with unchanged(path, ignoring=("LOCK",)), pytest.raises(CorruptionError, match="records 4 to 9"):
        Log.open(path, "w", flush_policy=NEVER)


def test_a_claim_about_fewer_records_is_no_witness(tmp_path: Path) -> None:
    """What it says is true of the records before the tear as well."""
    path = tmp_path / "log"
    segment = unsynced_log(path)
    at = segment.end() + 64
    segment.put_record(at, 9, b"says that 0 to 4 were durable", lag=4)
    flip(segment, 5, 20)
    segment.save()
    assert recovered(path) == RECORDS[:5]


def test_a_payload_that_looks_like_a_record_is_no_witness(tmp_path: Path) -> None:
    """Its checksum is of another place; otherwise anyone who appends could make a log refuse to open."""
    path = tmp_path / "log"
    segment = unsynced_log(path)
    end = segment.end()
    segment.put_record(end, 3, b"", lag=0)
    forged = bytes(segment.data[end : end + 16])
    segment = unsynced_log(path, [*RECORDS[:5], forged * 4, b"after"])
    flip(segment, 4, 18)
    segment.save()
    assert recovered(path) == RECORDS[:4]


def test_zeros_below_the_durable_mark_are_no_torn_tail(tmp_path: Path) -> None:
    """A clean close says how far all was durable: what is missing below is damage, not a tail."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=MANUAL) as log:
        for record in RECORDS:
            log.append(record)
    power_cut(path)
    segment = SegmentFile(segment_paths(path)[0])
    start = list(segment.records())[3].offset
    segment.data[start:] = bytes(len(segment.data) - start)
    segment.save()
    with pytest.raises(CorruptionError, match=r"record 3"), Log.open(path, "w", flush_policy=MANUAL) as log:
        list(log.replay())


def test_a_file_that_ends_below_the_durable_mark_is_an_error(tmp_path: Path) -> None:
    """A mark that points beyond the file is proof of damage; ignoring it loses durable records unseen."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=MANUAL) as log:
        for _ in range(1000):
            log.append(b"x" * 100)
    segment = segment_paths(path)[0]
    with segment.open("r+b") as file:
        file.truncate(HEADER_SIZE + 50 * 120)
    for control in (True, False):
        if not control:
            power_cut(path)
        for mode in ("r", "w"):
            with unchanged(path, ignoring=("LOCK",)), pytest.raises(CorruptionError):
                Log.open(path, mode, flush_policy=MANUAL)


def test_a_sealed_segment_that_is_cut_short_is_noticed(tmp_path: Path) -> None:
    """Its footer says where it ended."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=MANUAL, segment_bytes=64 << 10) as log:
        for _ in range(1500):
            log.append(b"x" * 100)
    power_cut(path)
    first = segment_paths(path)[0]
    with first.open("r+b") as file:
        file.truncate(40_000)
    with pytest.raises(CorruptionError), Log.open(path, "w", flush_policy=MANUAL) as log:
        assert len(list(log.replay())) == 1500


def test_a_stale_record_of_the_expected_number_never_comes_back(tmp_path: Path) -> None:
    """Left behind by a dead append, it carries a valid checksum and the very number that comes next."""
    path = tmp_path / "log"
    segment = unsynced_log(path)
    stale = segment.end() + 24
    segment.put_record(stale, 6, b"stale")
    segment.save()
    assert recovered(path) == RECORDS
    for expected in ([*RECORDS, b"x"], [*RECORDS, b"x", b"y"], [*RECORDS, b"x", b"y", b"z"]):
        with Log.open(path, flush_policy=NEVER) as log:
            log.append(expected[-1])
        power_cut(path)
        assert recovered(path) == expected
    with Log.open(path, flush_policy=MANUAL):
        pass
    power_cut(path)
    assert recovered(path, "r") == expected


def test_a_stale_record_right_at_the_end_is_part_of_the_log_or_never(tmp_path: Path) -> None:
    """Complete and in its place it is a record like any other; what recovery once said must stay so."""
    path = tmp_path / "log"
    segment = unsynced_log(path)
    segment.put_record(segment.end(), 6, b"complete")
    segment.save()
    once = recovered(path, "r")
    power_cut(path)
    assert once == recovered(path, "w") == [*RECORDS, b"complete"]


def test_what_was_cut_off_is_kept_beside_the_log(tmp_path: Path) -> None:
    """Segments that a tear makes unreachable may be all that somebody has left."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=NEVER, segment_bytes=64 << 10) as log:
        for number in range(30):
            log.append(b"%d" % number * 5000)
    power_cut(path)
    segments = segment_files(path)
    assert len(segments) >= 3
    before = len(list(segments[0].records()))
    flip(segments[0], before - 1, 30)
    for segment in segments:
        segment.drop_mark()
        segment.save()
    assert len(recovered(path)) == before - 1
    bad = sorted(path.glob("*.bad"))
    assert [file.name.removesuffix(".bad") for file in bad] == [segment.path.name for segment in segments[1:]]
    assert [file.read_bytes() for file in bad] == [bytes(segment.data) for segment in segments[1:]]
    with Log.open(path, flush_policy=MANUAL) as log:
        log.append(b"new")
    power_cut(path)
    assert recovered(path)[before - 1 :] == [b"new"]
    assert len(payloads_on_disk(path)) >= before


def test_numbers_that_are_used_again_have_a_higher_epoch(tmp_path: Path) -> None:
    """Whoever remembers a number from before the loss can tell that it means another record now."""
    path = tmp_path / "log"
    epochs = []
    for round_ in range(3):
        with Log.open(path, flush_policy=NEVER) as log:
            log.append(b"round %d" % round_)
            log.append(b"lost")
        power_cut(path)
        segment = SegmentFile(segment_paths(path)[-1])
        (last,) = list(segment.records())[-1:]
        segment.data[last.offset + RECORD.size] ^= 1
        segment.save()
        assert recovered(path) == [b"round %d" % number for number in range(round_ + 1)]
        epochs.append(struct.unpack_from("<I", segment_paths(path)[-1].read_bytes(), 72)[0])
    assert epochs == sorted(set(epochs))


def test_recovery_that_changes_nothing_makes_no_new_segment(tmp_path: Path) -> None:
    """The first one does: records may be lost whose numbers somebody knows. But opening a log a thousand
    times must not make a thousand files.
    """
    path = tmp_path / "log"
    unsynced_log(path)
    for _ in range(5):
        assert recovered(path) == RECORDS
        power_cut(path)
    assert len(segment_paths(path)) == 2


def test_an_empty_log_recovers_to_an_empty_log(tmp_path: Path) -> None:
    """The smallest case there is."""
    path = tmp_path / "log"
    segment = unsynced_log(path, [])
    assert recovered(path) == []
    power_cut(path)
    segment.data[HEADER_SIZE : HEADER_SIZE + 8] = b"\xff" * 8
    segment.save()
    assert recovered(path) == []
    power_cut(path)
    with Log.open(path, flush_policy=MANUAL) as log:
        assert log.append(b"x") == 0
    power_cut(path)
    assert recovered(path) == [b"x"]
