"""Every byte that counts is looked at, and none else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmaplog import FlushPolicy, Log
from tests.unit.mmaplog.segment_file import SegmentFile, segment_files, segment_paths

COUNT = 4000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed log of several segments."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=64 << 10) as log:
        log.append_many([b"%d" % number * 10 for number in range(COUNT)])
    return path


def test_a_whole_log(path: Path) -> None:
    """Counted as it lies in the files."""
    with Log.open(path, "r") as log:
        found = log.verify()
    files = segment_files(path)
    assert found.damages == ()
    assert (found.segments, found.records) == (len(files), COUNT)
    assert found.record_bytes == sum(record.size for file in files for record in file.records())


def test_an_empty_log(tmp_path: Path) -> None:
    """Has a segment and nothing in it."""
    with Log.open(tmp_path / "log") as log:
        found = log.verify()
        assert (found.segments, found.records, found.record_bytes, found.damages) == (1, 0, 0, ())


def test_while_it_is_written(tmp_path: Path) -> None:
    """What is not committed yet is not looked for."""
    with (
        Log.open(tmp_path / "log", flush_policy=FlushPolicy.NEVER) as log,
        Log.open(tmp_path / "log", "r") as reader,
    ):
        for number in range(100):
            log.append(b"x" * number)
            assert reader.verify().records == number + 1


def test_each_flipped_bit_of_a_record_is_found(path: Path) -> None:
    """In the header, the payload and the padding."""
    segment = SegmentFile(segment_paths(path)[1])
    record = list(segment.records())[3]
    for at in range(record.size):
        for bit in range(8):
            segment.data[record.offset + at] ^= 1 << bit
            segment.save()
            with Log.open(path, "r") as log:
                (damage,) = log.verify().damages
            assert (damage.seq, damage.offset, damage.path) == (record.seq, record.offset, str(segment.path))
            segment.data[record.offset + at] ^= 1 << bit
    segment.save()


def test_damage_in_two_segments_is_told_of_both(path: Path) -> None:
    """One does not hide the other, and the records of the rest are counted."""
    lost = 0
    for number in (0, 2):
        segment = SegmentFile(segment_paths(path)[number])
        records = list(segment.records())
        segment.data[records[5].offset + 16] ^= 1
        segment.save()
        lost += len(records) - 5
    with Log.open(path, "r") as log:
        found = log.verify()
    assert len(found.damages) == 2
    assert found.records == COUNT - lost


def test_a_footer_that_disagrees_is_found(path: Path) -> None:
    """It decides after a power cut what has to be there."""
    first, second = SegmentFile(segment_paths(path)[0]), SegmentFile(segment_paths(path)[1])
    for offset in (1536, 2048):
        first.data[offset : offset + 48] = second.data[offset : offset + 48]
    first.reseal_footer(second.base_seq + 1)
    first.save()
    with Log.open(path, "r") as log:
        (damage,) = log.verify().damages
    assert f"its footer says that record {second.base_seq + 1} follows" in damage.reason


def test_a_missing_segment_is_found(path: Path) -> None:
    """The records before and after the hole are counted."""
    gone = segment_paths(path)[1]
    with Log.open(path, "r") as log:
        gone.rename(gone.with_suffix(".away"))
        found = log.verify()
    assert found.damages
    assert found.records < COUNT
