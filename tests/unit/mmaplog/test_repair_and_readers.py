"""What a repair leaves to those who had read the log: nobody goes on behind records that he never saw."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import mmaplog
from mmapio import _os
from mmaplog import FlushPolicy, Log, TooOld, manifest
from tests.unit.mmapio.processes import killed_after
from tests.unit.mmaplog.damage import patch_segment, rewrite_manifest
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


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("second", ["deleted", "damaged"])
def test_a_second_repair_does_not_use_an_epoch_again(path: Path, second: str, manifest: bool) -> None:
    """Of the first one's nothing is left but what MANIFEST says, or the place of a consumer."""
    segment_paths(path)[-1].unlink()
    (path / "CONTROL").unlink()
    assert mmaplog.repair(path).committed == 46
    with opened(path) as log:
        add(log, 80, b"first")
        log.truncate_after(70)
        add(log, 80, b"second")
        newest = log.epoch
        with log.consumer("newest") as consumer:
            seqs(consumer)
            consumer.commit(durable=True)
    for base_seq in (46, 58, 70):
        if second == "deleted":
            (segment,) = path.glob(f"{base_seq:020}-*.seg")
            segment.unlink()
        else:
            damage_header(path, base_seq)
    for name in ("CONTROL", *["MANIFEST"] * (not manifest)):
        (path / name).unlink()
    mmaplog.repair(path)
    with opened(path) as log:
        log.truncate_after(min(log.committed, 60))
        add(log, 90, b"third")
        assert log.epoch > newest
        assert log.resume(newest, 80) == 46
        with log.consumer("newest") as consumer:
            assert seqs(consumer) == list(range(46, 90))


@pytest.mark.parametrize("damaged", [[(46, 48), (10, 12)], [(22, 32)], [(22, 24)], [(34, 40)], [(10, 12)]])
def test_a_cut_that_a_repair_finds_unfinished(path: Path, damaged: list[tuple[int, int]]) -> None:
    """It is finished, as by whoever opens the log: it goes on there, by an epoch of its own."""

    def cut() -> None:
        write = manifest.write
        log = opened(path)

        def killed(*arguments: Any) -> None:
            write(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        manifest.write = killed
        log.truncate_after(30)

    killed_after(cut)
    for base_seq, spoilt in damaged:
        (found,) = path.glob(f"{base_seq:020}-*.seg")
        segment = SegmentFile(found)
        for record in list(segment.records()):
            if record.seq == spoilt:
                segment.data[record.offset + 20] ^= 4
        segment.save()
    report = mmaplog.repair(path)
    lost = [(seq, seq + 1) for _, seq in damaged if seq < 30]
    assert (report.committed, [(each.start, each.stop) for each in report.lost]) == (30, lost)
    with opened(path) as log:
        assert log.verify().damages == ()
        add(log, 60, b"again")
        assert log.resume(1, 50) == 30
        with log.consumer("new") as consumer:
            assert seqs(consumer) == list(range(30, 60))


def test_a_log_whose_last_record_is_below_its_first_number(tmp_path: Path) -> None:
    """It did not open, and there was nothing to repair."""
    path = tmp_path / "log"
    with opened(path) as log:
        add(log, 11, b"x")
        log.truncate_before(11)
    (found,) = segment_paths(path)
    segment = SegmentFile(found)
    list(segment.records())
    segment.data[list(segment.records())[-1].offset + 20] ^= 4
    segment.data[512:2048] = bytes(1536)
    segment.save()
    (path / "CONTROL").unlink()
    assert mmaplog.repair(path).changed
    with opened(path) as log:
        assert (log.first_seq, log.append(b"goes on")) == (11, 11)


def test_whose_log_it_is_is_known_by_its_consumers(path: Path) -> None:
    """Where neither MANIFEST nor any segment says so: it stays theirs."""
    for segment in segment_paths(path):
        patch_segment(segment, 56, "<Q", 7, seal=False)
    (path / "MANIFEST").unlink()
    (path / "CONTROL").unlink()
    mmaplog.repair(path)
    with opened(path) as log:
        assert {each.name for each in log.consumers()} == {"old", "new"}


def test_a_consumer_that_may_not_be_looked_at_stops_no_repair(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is only asked for a hint."""
    segment_paths(path)[-1].unlink()
    open_file = _os.open_file

    def refused(name: str, *arguments: Any, **options: Any) -> Any:
        if name.endswith(".consumer"):
            raise PermissionError(errno.EACCES, "not yours", name)
        return open_file(name, *arguments, **options)

    monkeypatch.setattr(_os, "open_file", refused)
    assert mmaplog.repair(path).committed == 50


def test_a_mark_that_is_damaged_is_no_clean_end(tmp_path: Path) -> None:
    """It may be the one that said that somebody had begun to append again."""
    path = tmp_path / "log"
    with opened(path) as log:
        add(log, 10, b"old")
    (found,) = segment_paths(path)
    closed = found.read_bytes()
    log = opened(path)
    add(log, 12, b"lost")
    del log
    # As a power cut leaves it: what was appended since is gone, and so is what the mark said of it.
    data = bytearray(found.read_bytes())
    (at,) = (copy for copy in (512, 1024) if data[copy : copy + 24] != closed[copy : copy + 24])
    data[at + 3] ^= 4
    data[4096:] = closed[4096:].ljust(len(data) - 4096, b"\0")
    found.write_bytes(data)
    (path / "CONTROL").unlink()
    with opened(path) as log:
        add(log, 15, b"new")
        assert (log.epoch, log.resume(0, 12)) == (1, 10)


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


@pytest.mark.parametrize("way", ["cut", "recovery", "salvage"])
def test_whoever_gives_out_an_epoch_minds_those_that_a_repair_gave_out(path: Path, way: str) -> None:
    """Who has read under a newer one, of which only MANIFEST tells, went on behind what he never saw."""
    rewrite_manifest(path, lambda body: body.replace(b"{", b'{"epoch": 9, ', 1))
    log = opened(path)
    if way == "cut":
        log.truncate_after(40)
        log.close()
    elif way == "salvage":
        log.control.fail_sync(errno.EIO)
        log.close()
    else:
        add(log, 52, b"lost")
        del log
        (path / "CONTROL").unlink()
    with opened(path) as log:
        end = log.committed
        add(log, 90, b"again")
        assert (log.epoch, log.resume(9, 80)) == (10, 40 if way == "cut" else end)


def test_an_epoch_that_only_a_consumer_knows_of_is_over_after_a_repair(tmp_path: Path) -> None:
    """An older copy of the segments was put back beside him. The log went on under the epoch of that copy,
    and he behind records that he had never seen.
    """
    path, copy = tmp_path / "log", tmp_path / "copy"
    with opened(path) as log:
        add(log, 30, b"old")
    shutil.copytree(path, copy)
    with opened(path) as log:
        log.truncate_after(20)
        add(log, 50, b"lost")
        with log.consumer("new") as consumer:
            seqs(consumer)
            consumer.commit(durable=True)
    for each in path.iterdir():
        if not each.name.endswith(".consumer"):
            each.unlink()
    shutil.copytree(copy, path, dirs_exist_ok=True)
    (path / "MANIFEST").write_bytes(b"")
    mmaplog.repair(path)
    with opened(path) as log:
        add(log, 60, b"again")
        with log.consumer("new") as consumer:
            assert seqs(consumer) == list(range(30, 60))
