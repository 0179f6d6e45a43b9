"""Dropping old segments by what they take, how old they are, and how many records stay."""

from __future__ import annotations

import math
import struct
import time
from pathlib import Path

import pytest

from mmaplog import Log
from tests.unit.mmaplog.damage import patch_segment
from tests.unit.mmaplog.keeping import content, fill, filled, opened, payload, segment_starts

BASE_TIME_AT = 56


def usage(path: Path) -> dict[int, int]:
    """What each segment takes on the disk, by its base number."""
    return {int(name.name[:20]): name.stat().st_blocks * 512 for name in path.glob("*.seg")}


def test_nothing_asked_for_is_nothing_done(tmp_path: Path) -> None:
    """It says where the log begins."""
    path = tmp_path / "log"
    filled(path)
    with opened(path) as log:
        assert log.retain() == 0
        log.truncate_before(5)
        assert log.retain() == 5
        assert len(content(log)) == 35


@pytest.mark.parametrize(
    ("records", "first"),
    [(0, 36), (1, 36), (4, 36), (5, 24), (16, 24), (17, 12), (28, 12), (29, 0), (40, 0), (1 << 80, 0)],
)
def test_so_many_records_stay_at_least(tmp_path: Path, records: int, first: int) -> None:
    """Whole segments go, and only when there are enough behind them."""
    path = tmp_path / "log"
    model = filled(path)
    with opened(path) as log, opened(path, "r") as reader:
        assert log.retain(max_records=records) == first
        for each in (log, reader):
            assert content(each) == {seq: data for seq, data in model.items() if seq >= first}
        assert segment_starts(path)[0] == first
        # The same again is nothing new.
        assert log.retain(max_records=records) == first


def test_records_are_counted_and_not_numbers(tmp_path: Path) -> None:
    """Over gaps, fewer numbers were kept than records had been asked for."""
    path = tmp_path / "log"
    with opened(path) as log:
        fill(log, 120)
        log.compact(lambda entry: entry.seq >= 60 or entry.seq % 12 == 0)
        assert len(log) == 5 + 60
        log.compact(lambda entry: entry.seq < 60 or entry.seq % 3 == 0)
        kept = len(log)
        log.retain(max_records=20)
        assert 20 <= len(log) < kept
        assert len(content(log)) == len(log)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_so_many_bytes_stay_at_most(tmp_path: Path, extra: int) -> None:
    """One byte decides."""
    path = tmp_path / "log"
    filled(path)
    sizes = usage(path)
    for count in (1, 2, 3, 4):
        bases = sorted(sizes)[-count:]
        copy = tmp_path / f"copy-{count}"
        filled(copy)
        assert usage(copy) == sizes
        with opened(copy) as log:
            first = log.retain(max_bytes=sum(sizes[base] for base in bases) + extra)
        # Never the segment that is written to, whatever it takes.
        expected = bases[0] if extra >= 0 else sorted(sizes)[max(-count + 1, -3) if count > 1 else -1]
        assert first == expected
        assert segment_starts(copy)[0] == expected


def test_a_last_segment_that_is_too_large_is_no_reason_to_keep_the_others(tmp_path: Path) -> None:
    """All were kept then."""
    path = tmp_path / "log"
    model = filled(path)
    with opened(path) as log:
        assert log.retain(max_bytes=0) == 36
        assert content(log) == {seq: model[seq] for seq in range(36, 40)}


def aged(path: Path, ages: dict[int, float]) -> None:
    """Have segments been made so many seconds ago."""
    for name in path.glob("*.seg"):
        patch_segment(name, BASE_TIME_AT, "<Q", time.time_ns() - int(ages[int(name.name[:20])] * 1e9))


@pytest.mark.parametrize(
    ("age", "first"),
    [(0, 36), (50, 36), (150, 24), (250, 12), (350, 0), (1e30, 0), (math.inf, 0)],
)
def test_what_is_older_goes(tmp_path: Path, age: float, first: int) -> None:
    """The records of a segment are older than the one that follows it."""
    path = tmp_path / "log"
    model = filled(path)
    aged(path, {0: 400, 12: 300, 24: 200, 36: 100})
    with opened(path) as log:
        assert log.retain(max_age=age) == first
        assert content(log) == {seq: data for seq, data in model.items() if seq >= first}


@pytest.mark.parametrize("wrong", [-1e9, 1e9], ids=["back", "ahead"])
def test_a_clock_that_was_wrong_for_a_while(tmp_path: Path, wrong: float) -> None:
    """Set back for one segment, everything before it was dropped, however new."""
    path = tmp_path / "log"
    filled(path)
    names = sorted(path.glob("*.seg"))
    for name, age in zip(names, (500, 400, 300 - wrong, 200), strict=True):
        past = time.time_ns() - int(age * 1e9)
        patch_segment(name, BASE_TIME_AT, "<Q", past)
    with opened(path) as log:
        assert log.retain(max_age=600) == 0
        assert log.retain(max_age=450) == 0
        assert log.retain(max_age=350) == 12
        assert log.retain(max_age=100) == 36


def test_together_the_strictest_counts(tmp_path: Path) -> None:
    """Each limit is one on what stays."""
    path = tmp_path / "log"
    filled(path)
    aged(path, {0: 400, 12: 300, 24: 200, 36: 100})
    with opened(path) as log:
        assert log.retain(max_age=350, max_records=40, max_bytes=1 << 40) == 0
        assert log.retain(max_age=250, max_records=40, max_bytes=1 << 40) == 12
        assert log.retain(max_age=350, max_records=5, max_bytes=1 << 40) == 24
        assert log.retain(max_age=350, max_records=40, max_bytes=0) == 36


def test_an_empty_log(tmp_path: Path) -> None:
    """There is nothing to drop."""
    with opened(tmp_path / "log") as log:
        assert log.retain(max_bytes=0, max_age=0, max_records=0) == 0
        log.append(b"x")
        assert log.retain(max_bytes=0, max_age=0, max_records=0) == 0


def test_a_log_goes_on_and_on_within_its_limit(tmp_path: Path) -> None:
    """What retention is for."""
    path = tmp_path / "log"
    with opened(path) as log, opened(path, "r") as reader:
        for turn in range(20):
            fill(log, 15)
            first = log.retain(max_records=30)
            assert min(30, 15 * (turn + 1)) <= len(log) < 30 + 13
            assert next(reader.replay()).seq == first
            assert len(segment_starts(path)) <= 5
        assert content(reader) == {seq: payload(seq) for seq in range(log.first_seq, 300)}


@pytest.mark.parametrize("limit", ["max_bytes", "max_age", "max_records"])
def test_a_negative_limit_is_an_error(tmp_path: Path, limit: str) -> None:
    """And changes nothing."""
    path = tmp_path / "log"
    filled(path)
    with opened(path) as log:
        with pytest.raises(ValueError, match=f"{limit} must not be negative"):
            log.retain(**{limit: -1})
        assert (log.first_seq, len(log)) == (0, 40)


def test_the_header_says_when_a_segment_was_made(tmp_path: Path) -> None:
    """Control: the place that the tests above write to."""
    path = tmp_path / "log"
    before = time.time_ns()
    Log.open(path).close()
    after = time.time_ns()
    (name,) = path.glob("*.seg")
    (found,) = struct.unpack_from("<Q", name.read_bytes(), BASE_TIME_AT)
    assert before <= found
    assert found <= after
