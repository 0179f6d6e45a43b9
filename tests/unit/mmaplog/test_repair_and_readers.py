"""What a repair leaves to those who had read the log: nobody goes on behind records that he never saw."""

from __future__ import annotations

from pathlib import Path

import pytest

import mmaplog
from mmaplog import FlushPolicy, Log, TooOld
from tests.unit.mmaplog.damage import patch_segment
from tests.unit.mmaplog.handed_out import seqs
from tests.unit.mmaplog.segment_file import SegmentFile, segment_paths

MANUAL = FlushPolicy.MANUAL
SEGMENT = 64 << 10


def opened(path: Path) -> Log:
    """A log that is written, of small segments, without a thread of its own."""
    return Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT)


def add(log: Log, stop: int, word: bytes) -> None:
    """Records below number `stop`, twelve to a segment."""
    for _ in range(log.committed, stop):
        log.append(word * (5000 // len(word)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed log: [0, 10) of its first epoch, [10, 50) of the next one, in four segments.

    "old" is a consumer that had read 30 records of the first one, "new" one that has read all that there is.
    """
    path = tmp_path / "log"
    with opened(path) as log:
        assert log.epoch == 0
        add(log, 30, b"old")
        for name, last in (("old", 30), ("new", 50)):
            with log.consumer(name) as consumer:
                if last == 50:
                    log.truncate_after(10)
                    add(log, 50, b"new")
                seqs(consumer)
                consumer.commit()
                assert consumer.committed == last
        assert [entry[0] for entry in log.segments.listing()] == [0, 10, 22, 34, 46]
    return path


def damage_header(path: Path, base_seq: int) -> None:
    """Nothing that the header of this segment says is to be believed any more."""
    (segment,) = path.glob(f"{base_seq:020}-*.seg")
    patch_segment(segment, 56, "<Q", 7, seal=False)


def went_on_at(path: Path) -> dict[str, int]:
    """Where each consumer is now."""
    with opened(path) as log:
        return {each.name: each.committed for each in log.consumers()}


@pytest.mark.parametrize("base_seq", [10, 22, 34, 46])
def test_of_a_damaged_header_the_epoch_is_no_older_than_it_can_be(path: Path, base_seq: int) -> None:
    """That of the segment behind it; where there is none, one that nobody knows. All records are there."""
    damage_header(path, base_seq)
    report = mmaplog.repair(path)
    assert (report.lost, report.committed) == ((), 50)
    # Of the last segment "new" cannot know whether it has read it.
    assert went_on_at(path) == {"old": 10, "new": 46 if base_seq == 46 else 50}
    with opened(path) as log:
        epochs = [log.segments.get(entry[1]).epoch for entry in log.segments.listing()]
        assert epochs == sorted(epochs)
        log.truncate_after(40)
        add(log, 70, b"third")
        assert [log.resume(epoch, 50) for epoch in (0, 1)] == [10, 40]


@pytest.mark.parametrize("with_manifest", [False, True])
def test_an_epoch_is_not_used_twice(path: Path, with_manifest: bool) -> None:
    """Though no segment is left of those that there were: their readers are told."""
    with opened(path) as log:
        for seq in (40, 35, 20):
            log.truncate_after(seq)
            add(log, 45, b"third")
        newest = log.epoch
        with log.consumer("newest") as consumer:
            seqs(consumer)
            consumer.commit()
        if with_manifest:
            log.truncate_before(25)
    for segment in segment_paths(path)[not with_manifest :]:
        segment.unlink()
    (path / "CONTROL").unlink()
    report = mmaplog.repair(path)
    with opened(path) as log:
        assert log.epoch > newest + 1
        add(log, 90, b"again")
        assert [log.resume(epoch, 45) for epoch in range(1, newest + 1)] == (
            [20, 20, 20, 25] if with_manifest else [report.committed] * newest
        )
        with log.consumer("newest") as consumer:
            assert seqs(consumer) == list(range(report.committed, 90))


def test_where_no_record_is_left(path: Path) -> None:
    """Who had read other records under these numbers never sees those that are lost, though he stands behind
    them.
    """
    with opened(path) as log:
        log.truncate_after(20)
        add(log, 40, b"third")
    for segment in segment_paths(path):
        segment.unlink()
    assert mmaplog.repair(path).first_seq == 40
    with opened(path) as log:
        add(log, 60, b"after")
        with log.consumer("new") as consumer, pytest.raises(TooOld):
            consumer.poll()


def test_an_end_that_nobody_vouches_for_is_none(tmp_path: Path) -> None:
    """After a power cut there may have been more, and what comes in its place is another epoch's, repaired or
    not.
    """
    path = tmp_path / "log"
    log = opened(path)
    add(log, 30, b"old")
    log.flush()
    add(log, 35, b"lost")
    # As a power cut leaves it, and one record is damaged somewhere.
    last, first = SegmentFile(segment_paths(path)[-1]), SegmentFile(segment_paths(path)[0])
    (end,) = (each.offset for each in last.records() if each.seq == 30)
    last.data[end:] = bytes(len(last.data) - end)
    first.data[next(iter(first.records())).offset + 20] ^= 4
    del log
    for each in (first, last):
        each.save()
    (path / "CONTROL").unlink()
    report = mmaplog.repair(path)
    assert (report.committed, [(each.start, each.stop) for each in report.lost]) == (30, [(0, 1)])
    with opened(path) as log:
        add(log, 40, b"new")
        assert log.resume(0, 35) == 30


@pytest.mark.parametrize("lost", ["MANIFEST", "first segment", "what is in between"])
def test_what_was_dropped_before_is_not_forgotten(path: Path, lost: str) -> None:
    """Whatever is known of where numbers were used again; else the log may have begun anew anywhere."""
    with opened(path) as log:
        log.truncate_after(40)
        add(log, 90, b"again")
        log.truncate_before(40)
        assert [log.resume(each, 50) for each in range(3)] == [10, 40, 50]
    expected = [10, 40, 90]
    if lost == "MANIFEST":
        (path / lost).unlink()
        expected = [0, 0, 90]
    elif lost == "first segment":
        segment_paths(path)[0].unlink()
    else:
        segment = SegmentFile(segment_paths(path)[1])
        segment.data[4200] ^= 4
        segment.save()
    mmaplog.repair(path)
    with opened(path) as log:
        assert (log.first_seq > 40) == (lost == "first segment")
        assert [log.resume(each, 90) for each in range(3)] == expected
