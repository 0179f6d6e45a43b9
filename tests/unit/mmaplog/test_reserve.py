"""A log on a full disk can be made smaller, by what was kept back for that; and nothing else gets at it."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from mmapio import _os
from mmaplog import FlushPolicy, Log, manifest, reserve
from tests.unit.mmapio.processes import killed_after
from tests.unit.mmapio.volume import fill, small_volume  # noqa: F401

MANUAL = FlushPolicy.MANUAL
SEGMENT = 64 << 10
RESERVE = 256 << 10


def full(volume: Path, *, reserve: int, records: int = 300) -> Log:
    """A log that has filled the disk that it is on."""
    log = Log.open(volume / "log", flush_policy=MANUAL, segment_bytes=SEGMENT, reserve_bytes=reserve)
    log.append_many([b"x" * 1000] * records, durable=True)
    fill(volume)
    with pytest.raises(OSError, match="No space left"):
        while True:
            log.append(b"y" * 1000)
    return log


def usage(volume: Path) -> int:
    """Bytes of the reserve."""
    return (volume / "log" / "RESERVE").stat().st_blocks * 512


@pytest.mark.parametrize("reserve", [0, RESERVE], ids=["without", "with"])
@pytest.mark.parametrize("way", ["truncate_before", "truncate_after", "retain", "compact"])
def test_a_full_log_can_be_made_smaller(small_volume: Path, reserve: int, way: str) -> None:  # noqa: F811
    """Each of them needs room before it gives any. Without a reserve it may be refused, with nothing lost."""
    with full(small_volume, reserve=reserve) as log:
        before = len(log)
        work = {
            "truncate_before": lambda: log.truncate_before(200),
            "truncate_after": lambda: log.truncate_after(200),
            "retain": lambda: log.retain(max_records=100),
            "compact": lambda: log.compact(lambda entry: entry.seq % 10 == 0),
        }[way]
        try:
            work()
        except OSError as error:
            assert not reserve
            assert error.errno == errno.ENOSPC
            assert len(log) == before
            return
        assert len(log) < before
        assert log.verify().damages == ()
        if reserve:
            # Filled again from what became free.
            assert usage(small_volume) == RESERVE
        log.append(b"z" * 1000, durable=True)


def test_compaction_gives_room_as_it_goes(small_volume: Path) -> None:  # noqa: F811
    """What was replaced is let go of, so that the reserve need not be as large as all that is written."""
    with full(small_volume, reserve=SEGMENT + (64 << 10), records=3000) as log:
        before = len(log)
        made = log.compact(lambda entry: entry.seq % 2 == 0)
        assert made.segments_written > 10
        assert len(log) == before - made.records_removed
        assert log.verify().damages == ()


@pytest.mark.parametrize("killed", [False, True], ids=["at work", "after a kill"])
def test_a_disk_that_is_full_once_a_cut_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Others had taken what room there was when it began, and the log was poisoned, or could not be opened
    again, though its reserve would have done.
    """
    path = tmp_path / "log"
    write = manifest.write

    def refused(directory: _os.Descriptor, made: manifest.Manifest) -> None:
        if made.cut is None and (path / "RESERVE").stat().st_blocks:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(directory, made)
        if made.cut is not None and killed:
            os.kill(os.getpid(), signal.SIGKILL)

    with Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT, reserve_bytes=RESERVE) as log:
        log.append_many([b"x" * 1000] * 300)

    def cut() -> None:
        with Log.open(path, flush_policy=MANUAL) as log:
            log.truncate_after(200)

    monkeypatch.setattr(manifest, "write", refused)
    if killed:
        killed_after(cut)
    else:
        cut()
    with Log.open(path, flush_policy=MANUAL) as log:
        assert (len(log), log.append(b"goes on")) == (200, 200)
        assert log.verify().damages == ()


@pytest.mark.parametrize("reserve", [0, RESERVE], ids=["without", "with"])
@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
def test_a_power_cut_on_a_full_disk(small_volume: Path, reserve: int, torn: bool) -> None:  # noqa: F811
    """Opening takes a new CONTROL and a new segment: it failed, and so the log could not be made smaller."""
    path = small_volume / "log"
    killed_after(lambda: full(small_volume, reserve=reserve))
    # Of another boot.
    with (path / "CONTROL").open("r+b") as control:
        control.seek(40)
        control.write(b"another boot")
    if torn:
        with max(path.glob("*.seg")).open("r+b") as tail:
            tail.seek(tail.seek(0, os.SEEK_END) - 3000)
            tail.write(b"t" * 3000)
    if not reserve:
        with pytest.raises(OSError, match="No space left"):
            Log.open(path, flush_policy=MANUAL)
        (small_volume / "ballast").unlink()
    with Log.open(path, flush_policy=MANUAL) as log:
        assert len(log) > 290
        log.truncate_before(200)
        assert log.first_seq > 100
        assert log.verify().damages == ()
        log.append(b"z" * 1000, durable=True)


def test_appends_do_not_get_it(small_volume: Path) -> None:  # noqa: F811
    """Or it would be gone when it is needed."""
    with full(small_volume, reserve=RESERVE):
        assert usage(small_volume) == RESERVE


def test_it_stays_and_is_given_back(small_volume: Path) -> None:  # noqa: F811
    """By who says so; who says nothing leaves it as it is."""
    path = small_volume / "log"
    for asked, kept in ((RESERVE, RESERVE), (None, RESERVE), (2 * RESERVE, 2 * RESERVE), (0, 0), (0, 0)):
        with Log.open(path, flush_policy=MANUAL, reserve_bytes=asked):
            assert (usage(small_volume) if kept else 0) == kept
            assert (path / "RESERVE").exists() == bool(kept)


def test_a_full_disk_does_not_keep_a_log_from_being_opened(small_volume: Path) -> None:  # noqa: F811
    """Without it nothing could be dropped."""
    full(small_volume, reserve=0).close()
    with Log.open(small_volume / "log", flush_policy=MANUAL, reserve_bytes=RESERVE) as log:
        assert len(log) >= 300


@pytest.mark.parametrize(("mode", "size"), [("r", 1), ("c", -1)])
def test_what_cannot_be_kept(tmp_path: Path, mode: str, size: int) -> None:
    """Said before anything is made."""
    with pytest.raises(ValueError, match="cannot be kept"):
        Log.open(tmp_path / "log", mode, reserve_bytes=size)  # type: ignore[arg-type]
    assert not (tmp_path / "log").exists()


def test_a_piece_that_another_has_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given away a second time it left a hole in the middle, of which more was given, that was not there."""
    with Log.open(tmp_path / "log", flush_policy=MANUAL, segment_bytes=SEGMENT, reserve_bytes=RESERVE) as log:
        directory = log.segments.directory
        full_disk = OSError(errno.ENOSPC, "No space left on device")
        punch = _os.punch_hole

        def late(opened: _os.Descriptor, start: int, size: int) -> None:
            # Another process has compacted the log meanwhile.
            monkeypatch.setattr(_os, "punch_hole", punch)
            reserve.refill(directory, log.path)
            punch(opened, start, size)

        assert reserve.draw(directory, full_disk)
        monkeypatch.setattr(_os, "punch_hole", late)
        drawn = 0
        while reserve.draw(directory, full_disk):
            drawn += 1
            assert drawn <= RESERVE // reserve.PIECE
        assert reserve.kept(directory) >= RESERVE // 2


def test_killed_while_it_is_filled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was cut to nothing first, which says that none is wanted."""
    with Log.open(tmp_path / "log", flush_policy=MANUAL, segment_bytes=SEGMENT, reserve_bytes=RESERVE) as log:
        directory = log.segments.directory
        assert reserve.draw(directory, OSError(errno.ENOSPC, "No space left on device"))
        assert reserve.kept(directory) < RESERVE

        def die(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        with monkeypatch.context() as patched:
            patched.setattr(_os, "grow", die)
            killed_after(lambda: reserve.refill(directory, log.path))
        reserve.refill(directory, log.path)
        assert reserve.kept(directory) == RESERVE
