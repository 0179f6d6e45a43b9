"""Damage, and what a repair makes of it: what verifies is kept, what is lost is named, nothing is made up."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mmapkv
import mmaplog
from mmapio import _os
from mmaplog import CorruptionError, FlushPolicy, FormatError, Locked, Log, Lost, Repaired
from tests.unit.mmapio.footprint import footprint, unchanged
from tests.unit.mmapio.processes import ROOT
from tests.unit.mmaplog import damage
from tests.unit.mmaplog.segment_file import SegmentFile, segment_paths

MANUAL = FlushPolicy.MANUAL
COUNT = 2000


def payload(number: int) -> bytes:
    """What record `number` holds."""
    return b"%d." % number * 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed log of four segments or more."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=MANUAL, segment_bytes=64 << 10) as log:
        log.append_many([payload(number) for number in range(COUNT)])
    assert len(segment_paths(path)) >= 4
    return path


def spoil(path: Path, seq: int) -> SegmentFile:
    """Flip a bit in a record."""
    for segment in map(SegmentFile, segment_paths(path)):
        for record in segment.records():
            if record.seq == seq:
                segment.data[record.offset + 20] ^= 4
                segment.save()
                return segment
    raise AssertionError(f"there is no record {seq}")


def repaired(path: Path, gone: Collection[int] = ()) -> Repaired:
    """Repair, after a dry run that says the same and writes nothing; then the log is as the report says."""
    with unchanged(path.parent):
        dry = mmaplog.repair(path, dry_run=True)
    assert dry.dry_run
    report = mmaplog.repair(path)
    assert replace(dry, dry_run=False) == report
    with Log.open(path, "w", flush_policy=MANUAL) as log:
        assert log.verify().damages == ()
        found = {entry.seq: bytes(entry.payload) for entry in log.replay()}
        assert (log.first_seq, log.committed) == (report.first_seq, report.committed)
        numbers = set(range(report.first_seq, report.committed)) - set(gone)
        for lost in report.lost:
            numbers -= set(range(lost.start, lost.stop or lost.start))
        assert found == {number: payload(number) for number in numbers}
        assert len(log) == len(found)
    again = mmaplog.repair(path)
    assert (again.changed, again.lost) == (False, ())
    return report


def test_a_log_that_is_whole_is_left_alone(path: Path) -> None:
    """Opening it would have done."""
    with unchanged(path):
        assert not repaired_changes(path)
    (path / "CONTROL").unlink()
    with unchanged(path):
        assert not repaired_changes(path)


def repaired_changes(path: Path) -> bool:
    """Whether a repair of a log with nothing wrong finds something to do."""
    report = mmaplog.repair(path)
    assert (report.first_seq, report.committed) == (0, COUNT)
    assert (report.lost, report.problems, report.set_aside, report.torn) == ((), (), (), None)
    return report.changed


@pytest.mark.parametrize("seq", [0, 300, COUNT - 1])
def test_everything_but_what_is_damaged_is_kept(path: Path, seq: int) -> None:
    """Under the numbers that it had; where the lost one was is a gap, as after a compaction."""
    segment = spoil(path, seq)
    report = repaired(path)
    assert report.lost == (Lost(seq, seq + 1, "damaged or missing"),)
    assert (report.first_seq, report.committed) == (1 if seq == 0 else 0, COUNT)
    assert segment.path.name in report.set_aside
    with Log.open(path, "w", flush_policy=MANUAL) as log:
        with pytest.raises(IndexError):
            log[seq]
        assert log.append(b"more") == COUNT


def test_damage_in_many_places(path: Path) -> None:
    """Of one segment, of several, of neighbours, and again after the repair."""
    gone: set[int] = set()
    for numbers in ([5, 6, 9, 300, 700, 1100, 1999], [10, 701, 1998], [8]):
        # From behind: no record behind damage is found by hand.
        for seq in reversed(numbers):
            spoil(path, seq)
        report = repaired(path, gone)
        lost = {seq for each in report.lost for seq in range(each.start, each.stop or 0)}
        # Of a segment with gaps nobody can say whether the numbers next to a lost one were removed or lost.
        assert set(numbers) <= lost
        assert len(lost) < 12
        gone |= lost
    with Log.open(path, "r") as log:
        assert len(log) == COUNT - len(gone)


def test_where_the_end_is_not_known_the_log_goes_on_under_a_higher_epoch(path: Path) -> None:
    """Whoever has read a record that is lost must be able to tell it from the one that comes in its place."""
    with Log.open(path, "r") as log:
        before = log.epoch
    (path / "CONTROL").unlink()
    segment_paths(path)[-1].unlink()
    report = repaired(path)
    with Log.open(path, "w", flush_policy=MANUAL) as log:
        assert log.epoch > before
        assert log.append(b"again") == report.committed
        assert log.resume(before, COUNT) == report.committed


def test_what_is_not_kept_is_set_aside_byte_for_byte(path: Path) -> None:
    """The repair may be wrong about what matters most."""
    spoil(path, 300)
    before = {each.name: each.read_bytes() for each in segment_paths(path)}
    report = repaired(path)
    for name in report.set_aside:
        assert (path / f"{name}.bad").read_bytes() == before.pop(name)
    for name, content in before.items():
        assert (path / name).read_bytes()[4096:] == content[4096:]


def test_files_that_are_set_aside_twice(path: Path) -> None:
    """The second one does not replace the first."""
    for _ in range(3):
        damage.overwrite_whole(path / "MANIFEST", b"nonsense")
        repaired(path)
    assert sorted(each.name for each in path.glob("MANIFEST.*")) == [
        "MANIFEST.1.bad",
        "MANIFEST.2.bad",
        "MANIFEST.bad",
    ]


@pytest.mark.parametrize("which", [0, 1, -2])
def test_a_segment_that_is_missing(path: Path, which: int) -> None:
    """Its numbers are known by its neighbours."""
    segment = SegmentFile(segment_paths(path)[which])
    numbers = [record.seq for record in segment.records()]
    segment.path.unlink()
    report = repaired(path)
    assert Lost(numbers[0], numbers[-1] + 1, "damaged or missing") in report.lost


def test_the_last_segment_is_missing(path: Path) -> None:
    """How many records it had, nobody knows; CONTROL, while it is of this page cache, knows."""
    last = SegmentFile(segment_paths(path)[-1])
    last.path.unlink()
    shutil.copytree(path, path.parent / "copy")
    report = repaired(path)
    assert report.lost[0] == Lost(last.base_seq, COUNT, "damaged or missing")
    assert report.committed == COUNT
    report = repaired(path.parent / "copy")
    assert report.lost == (Lost(last.base_seq, None, "the last segment is missing"),)
    assert report.committed == last.base_seq


def test_a_tail_that_was_cut(path: Path) -> None:
    """The durable mark says what is lost."""
    last = segment_paths(path)[-1]
    records = list(SegmentFile(last).records())
    os.truncate(last, records[3].offset + 5)
    report = repaired(path)
    assert report.committed == COUNT
    assert report.lost == (Lost(records[3].seq, COUNT, "damaged or missing"),)


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_header_that_is_gone(path: Path, which: int) -> None:
    """The file's name has the two numbers that its records are sealed with."""
    target = segment_paths(path)[which]
    damage.overwrite(target, bytes(4096))
    report = repaired(path)
    assert (report.first_seq, report.committed, report.lost) == (0, COUNT, ())


@pytest.mark.parametrize("size", [96, 110, 400, 494, 600, 2000, 4095])
@pytest.mark.parametrize("closed", [True, False])
def test_a_part_of_the_first_page_is_left_of_the_last_segment(path: Path, size: int, closed: bool) -> None:
    """Its header verifies, so nothing was wrong with it; and no log opens whose segment is as short."""
    if not closed:
        with Log.open(path, "w", flush_policy=FlushPolicy.NEVER) as log:
            log.append(b"more")
        for segment in map(SegmentFile, segment_paths(path)[-1:]):
            # No mark, nor footer, as before the first flush.
            segment.data[512:4096] = bytes(4096 - 512)
            segment.save()
    (path / "CONTROL").unlink()
    os.truncate(segment_paths(path)[-1], size)
    with pytest.raises(mmaplog.LogError):
        Log.open(path, "r").close()
    report = repaired(path)
    assert report.changed
    assert report.lost[-1].stop in (None, COUNT)


def test_segments_that_changed_places(path: Path) -> None:
    """Each is taken for what its header says, whatever it is called."""
    first, second = segment_paths(path)[1:3]
    contents = first.read_bytes(), second.read_bytes()
    damage.overwrite_whole(first, contents[1])
    damage.overwrite_whole(second, contents[0])
    report = repaired(path)
    assert (report.first_seq, report.committed, report.lost) == (0, COUNT, ())


@pytest.mark.parametrize("content", [b"", b"include *.txt\n", b"mmaplog-manifest 1 0\n{}\n"])
def test_a_manifest_that_is_damaged(path: Path, content: bytes) -> None:
    """All it says can be derived; the old one is kept."""
    damage.overwrite_whole(path / "MANIFEST", content)
    report = repaired(path)
    assert (report.first_seq, report.committed, report.lost) == (0, COUNT, ())
    assert (path / "MANIFEST.bad").read_bytes() == content


def test_a_manifest_of_another_log(path: Path) -> None:
    """Every segment contradicts it."""
    with Log.open(path.parent / "other", flush_policy=MANUAL):
        pass
    damage.overwrite_whole(path / "MANIFEST", (path.parent / "other" / "MANIFEST").read_bytes())
    report = repaired(path)
    assert (report.first_seq, report.committed, report.lost) == (0, COUNT, ())


def test_a_segment_of_another_log(path: Path) -> None:
    """It is not taken in, whatever it is called."""
    with Log.open(path.parent / "other", flush_policy=MANUAL) as log:
        log.append(b"not mine")
    (foreign,) = segment_paths(path.parent / "other")
    shutil.copy(foreign, path / foreign.name)
    report = repaired(path)
    assert (report.first_seq, report.committed, report.lost) == (0, COUNT, ())
    assert foreign.name in report.set_aside


@pytest.mark.parametrize("name", ["MANIFEST", "CONTROL", "LOCK", "segment"])
@pytest.mark.parametrize("kind", ["directory", "fifo", "symlink"])
def test_something_else_in_a_files_place(path: Path, name: str, kind: str) -> None:
    """It is set aside like any other damage; a link is not followed."""
    target = segment_paths(path)[0] if name == "segment" else path / name
    {
        "directory": damage.replace_by_directory,
        "fifo": damage.replace_by_fifo,
        "symlink": damage.replace_by_symlink,
    }[kind](target)
    report = repaired(path)
    assert report.committed == COUNT
    assert report.first_seq == 0 or name == "segment"
    assert (path / f"{target.name}.bad").exists() or (path / f"{target.name}.bad").is_symlink()


def test_nothing_but_a_manifest(path: Path) -> None:
    """The log goes on where CONTROL says that it ended, or where it began."""
    for segment in segment_paths(path):
        segment.unlink()
    copy = path.parent / "copy"
    shutil.copytree(path, copy)
    report = repaired(copy)
    assert (report.first_seq, report.committed) == (0, 0)
    assert report.lost == (Lost(0, None, "the last segment is missing"),)
    report = repaired(path)
    assert (report.first_seq, report.committed) == (COUNT, COUNT)
    assert report.lost[0] == Lost(0, COUNT, "damaged or missing")


@pytest.mark.parametrize("seq", [101, 105, 109])
def test_a_batch_that_lost_a_record_is_lost(tmp_path: Path, seq: int) -> None:
    """It counts whole or not at all, also after a repair."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=MANUAL) as log:
        log.append_many([payload(number) for number in range(100)])
        log.append_many([payload(number) for number in range(100, 110)], atomic=True)
        log.append_many([payload(number) for number in range(110, 120)], atomic=True)
        log.append_many([payload(number) for number in range(120, 130)])
    spoil(path, seq)
    report = repaired(path)
    assert (report.first_seq, report.committed) == (0, 130)
    # Without the record that ended the batch nobody can say that the next one did not belong to it, too.
    assert report.lost == (Lost(100, 120 if seq == 109 else 110, "damaged or missing"),)


def test_a_torn_tail_is_no_damage(path: Path) -> None:
    """Opening settles it, as after any power cut; the report says that something was there."""
    (path / "CONTROL").unlink()
    last = SegmentFile(segment_paths(path)[-1])
    last.drop_mark()
    last.data[last.end() + 3] = 77
    last.save()
    with unchanged(path):
        report = mmaplog.repair(path)
    assert (report.changed, report.torn, report.lost) == (False, COUNT, ())


@pytest.mark.parametrize(
    "spoil_it",
    [
        lambda path: damage.rewrite_manifest(path, bytes, version=b"2"),
        lambda path: damage.patch_segment(damage.first(path), 8, "<I", 2),
        lambda path: damage.patch_segment(damage.first(path), 8, "<I", 3, seal=True),
        lambda path: damage.patch_segment(damage.first(path), 20, "<I", 0x40),
    ],
    ids=["manifest", "segment", "segment of version 3", "feature"],
)
def test_what_a_newer_version_wrote_is_not_repaired(path: Path, spoil_it: Callable[[Path], object]) -> None:
    """Setting aside what one does not understand is no repair."""
    spoil_it(path)
    for dry_run in (True, False):
        with unchanged(path), pytest.raises(FormatError, match="upgrade"):
            mmaplog.repair(path, dry_run=dry_run)


def test_a_record_of_a_newer_kind_is_not_cut_off(path: Path) -> None:
    """It verifies, so it is no damage."""
    segment = SegmentFile(segment_paths(path)[1])
    record = list(segment.records())[4]
    segment.put_record(record.offset, record.seq, record.payload, kind=9)
    segment.save()
    with unchanged(path), pytest.raises(FormatError, match=f"record {record.seq} .*upgrade"):
        mmaplog.repair(path)


@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_log_that_is_open_is_refused(path: Path, mode: Any) -> None:
    """By this process or another: its mappings would show what is no longer part of the log."""
    spoil(path, 300)
    for dry_run in (True, False):
        opened = Log.open(path, mode, flush_policy=MANUAL)
        with opened, unchanged(path), pytest.raises(Locked, match="close every handle"):
            mmaplog.repair(path, dry_run=dry_run)


def test_where_there_is_no_log(tmp_path: Path) -> None:
    """A repair makes none."""
    with unchanged(tmp_path):
        with pytest.raises(FileNotFoundError):
            mmaplog.repair(tmp_path)
        with pytest.raises(FileNotFoundError):
            mmaplog.repair(tmp_path / "missing")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        mmaplog.repair(tmp_path / "file")


def test_a_failed_sync_is_not_forgotten(path: Path) -> None:
    """Of pages that could not be written no later sync of their file tells; they are copied."""
    with Log.open(path, "w", flush_policy=MANUAL) as log:
        log.append(payload(COUNT))
    # As a failed sync leaves it: poison, and a durable mark of before.
    with (path / "CONTROL").open("r+b") as file:
        file.seek(4096 + 64)
        file.write((1990).to_bytes(8, "little") + bytes(8) + (5).to_bytes(8, "little"))
        file.seek(4096 + 128)
        file.write(bytes(8))
    before = {each.name for each in segment_paths(path)}
    spoil(path, 300)
    report = repaired(path)
    assert report.committed == COUNT + 1
    last = segment_paths(path)[-1].name
    assert last not in before


def test_an_index_of_the_log_as_it_was_is_not_believed(tmp_path: Path) -> None:
    """It would find the value of one key where another's had been."""
    path = tmp_path / "store"
    with mmapkv.KVStore.open(path, segment_bytes=64 << 10, flush_policy=MANUAL) as store:
        for number in range(COUNT):
            store[b"key %d" % number] = payload(number)
    spoil_store(path)
    report = mmaplog.repair(path)
    with mmapkv.KVStore.open(path) as store:
        assert len(store) == COUNT - 1
        (lost,) = report.lost
        for number in range(COUNT):
            assert store.get(b"key %d" % number) == (payload(number) if number != lost.start else None)


def spoil_store(path: Path) -> None:
    """Flip a bit in the second segment."""
    segment = SegmentFile(segment_paths(path)[1])
    segment.data[list(segment.records())[5].offset + 30] ^= 1
    segment.save()


def strace() -> str:
    """The tracer, or a loud skip."""
    found = shutil.which("strace")
    if found is None:
        pytest.skip("no strace: NOT TESTED that a dry run makes no system call that writes")
    return found


WRITING = (
    "write,pwrite64,writev,pwritev,pwritev2,truncate,ftruncate,fallocate,rename,renameat,renameat2,unlink,"
    "unlinkat,mkdir,mkdirat,link,linkat,symlink,symlinkat,fsync,fdatasync,sync,msync,copy_file_range,ioctl,"
    "chmod,fchmod,fchmodat,utimensat,setxattr,creat"
)


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry run", "control"])
def test_a_dry_run_makes_no_call_that_writes(path: Path, tmp_path: Path, dry_run: bool) -> None:
    """Seen where the kernel is asked. The same look at a repair must find its writes."""
    spoil(path, 300)
    damage.overwrite_whole(path / "MANIFEST", b"nonsense")
    code = f"import sys, mmaplog; mmaplog.repair({str(path)!r}, dry_run={dry_run})"
    trace = tmp_path / "trace"
    before = footprint(path)
    command = [strace(), "-f", "-qq", "-o", str(trace), "-e", f"trace={WRITING},openat,mmap"]
    subprocess.run([*command, sys.executable, "-B", "-c", code], check=True, cwd=ROOT)
    lines = trace.read_text(errors="replace").splitlines()
    reached = next(number for number, line in enumerate(lines) if str(path) in line)
    # The interpreter asks of each file that it opens whether it is a terminal.
    made = [line.split(None, 1)[1] for line in lines[reached:] if "TCGETS" not in line]
    writes = [call for call in made if call.partition("(")[0] in WRITING.split(",")]
    creates = [call for call in made if call.startswith("openat(") and "O_CREAT" in call]
    maps = [call for call in made if call.startswith("mmap(")]
    shared = [call for call in maps if "PROT_WRITE" in call and "MAP_SHARED" in call]
    if dry_run:
        assert (writes, creates, shared) == ([], [], [])
        assert footprint(path) == before
    else:
        assert writes
        assert creates
        assert footprint(path) != before


CHANGING = (
    "open_file",
    "write_at",
    "grow",
    "sync",
    "set_size",
    "copy_content",
    "replace_file",
    "remove_file",
)


class Killed(BaseException):
    """Stands for the end of the process."""


def attempt(path: Path, last: int, error: BaseException) -> Repaired | None:
    """Repair; None when the call number `last` of the boundary came before the end, which raises."""
    count = itertools.count()

    def counted(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if next(count) == last:
            raise error
        return call(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGING:
            patch.setattr(_os, name, functools.partial(counted, getattr(_os, name)))
        try:
            return mmaplog.repair(path)
        except type(error) as raised:
            assert raised is error
            return None


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "full")], ids=["killed", "disk full"])
@pytest.mark.parametrize("seq", [300, 1700])
def test_a_repair_that_is_cut_short_is_run_again(path: Path, seq: int, error: BaseException) -> None:
    """At every step: in between nobody reads anything wrong, and in the end it did not matter."""
    spoil(path, seq)
    (path / "CONTROL").unlink()
    expected = mmaplog.repair(path, dry_run=True)
    spoilt = path.parent / "spoilt"
    path.rename(spoilt)
    for last in itertools.count():
        shutil.copytree(spoilt, path)
        if attempt(path, last, error) is not None:
            break
        try:
            with Log.open(path, "r") as log:
                for entry in log.replay():
                    assert bytes(entry.payload) == payload(entry.seq)
        except (CorruptionError, FormatError, FileNotFoundError):
            pass
        told = mmaplog.repair(path)
        assert replace(told, path=expected.path, dry_run=True) in (
            expected,
            # All that was left to do was done, and the repair finds a log that is whole.
            replace(expected, lost=(), problems=(), set_aside=(), changed=False),
        )
        with Log.open(path, "w", flush_policy=MANUAL) as log:
            assert log.verify().damages == ()
            found = {entry.seq: bytes(entry.payload) for entry in log.replay()}
        assert found == {number: payload(number) for number in range(COUNT) if number != seq}
        assert not list(path.glob("*.tmp"))
        shutil.rmtree(path)
    assert last > 30


def test_a_repair_cut_short_keeps_everybody_out(path: Path) -> None:
    """Between two steps the directory holds both what was and what will be."""
    spoil(path, 300)
    for last in itertools.count(30):
        if attempt(path, last, Killed()) is not None:
            break
        if b"mmaplog-manifest repair" in (path / "MANIFEST").read_bytes():
            for mode in ("r", "w", "c"):
                with unchanged(path, ignoring=("LOCK",)), pytest.raises(FormatError, match="mmaplog repair"):
                    Log.open(path, mode)
            with unchanged(path):
                assert mmaplog.repair(path, dry_run=True).dry_run
            return
    raise AssertionError("the steps were never on the disk")


def test_progress_reaches_the_end(path: Path) -> None:
    """In steps that only go up."""
    told: list[tuple[int, int]] = []
    mmaplog.repair(path, progress=lambda *numbers: told.append(numbers))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 0
