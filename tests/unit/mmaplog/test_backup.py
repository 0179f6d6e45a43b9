"""A copy of a log in use: whole, durable, a log of its own, or not there at all."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmapio import Closed, _os
from mmaplog import Backup, CorruptionError, FlushPolicy, Log, LogError
from mmaplog import backup as backup_module
from mmaplog import manifest as manifest_file
from tests.support.plain_log import read_log
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import in_child
from tests.unit.mmaplog.segment_file import SegmentFile, segment_paths

MANUAL = FlushPolicy.MANUAL
COUNT = 3000


def payload(number: int) -> bytes:
    """What record `number` holds."""
    return b"%d." % number * 20


def filled(path: Path, count: int = COUNT) -> Log:
    """An open log of several segments."""
    log = Log.open(path, flush_policy=MANUAL, segment_bytes=64 << 10)
    log.append_many([payload(number) for number in range(count)])
    return log


def holds(path: Path, numbers: range) -> None:
    """A log opens, for reading and for writing, is sound, and has exactly these records."""
    for mode in ("r", "w"):
        with Log.open(path, mode, flush_policy=MANUAL) as log:
            assert log.verify().damages == ()
            found = [(entry.seq, bytes(entry.payload)) for entry in log.replay()]
            assert found == [(number, payload(number)) for number in numbers]
    assert [(each.seq, each.payload) for each in read_log(path).records] == found


@pytest.mark.parametrize("count", [0, 1, 10, COUNT])
@pytest.mark.parametrize("reading", [False, True], ids=["by the writer", "by a reader"])
def test_a_copy_holds_what_the_log_held(tmp_path: Path, count: int, reading: bool) -> None:
    """Opened without CONTROL it must come to the same end, without a word of a torn tail."""
    with filled(tmp_path / "log", count) as log:
        if reading:
            with Log.open(tmp_path / "log", "r") as reader:
                made = reader.backup(tmp_path / "copy")
        else:
            made = log.backup(tmp_path / "copy")
        log.append(b"later")
        assert made == Backup(
            str(tmp_path / "copy"), made.log_uuid, 0, count, len(segment_paths(tmp_path / "copy")), made.bytes
        )
    holds(tmp_path / "copy", range(count))
    assert not list(tmp_path.glob("copy.*"))


def test_a_copy_is_a_log_of_its_own(tmp_path: Path) -> None:
    """With the same uuid, a consumer of one would take the numbers of the other for its own."""
    with filled(tmp_path / "log") as log, unchanged(tmp_path / "log"):
        made = log.backup(tmp_path / "copy")
        again = log.backup(tmp_path / "again")
        assert len({str(made.log_uuid), str(again.log_uuid), log.stats()["log_uuid"]}) == 3
    with Log.open(tmp_path / "copy") as copy:
        assert copy.stats()["log_uuid"] == str(made.log_uuid)
        assert copy.append(b"goes its own way") == COUNT
    for path in segment_paths(tmp_path / "copy"):
        assert SegmentFile(path).log_uuid == made.log_uuid.bytes
    with Log.open(tmp_path / "log") as log:
        assert log.committed == COUNT


def test_damage_to_the_end_of_a_copy_is_no_torn_tail(tmp_path: Path) -> None:
    """The mark in its last segment vouches for every record, as after a clean close."""
    with filled(tmp_path / "log") as log:
        log.backup(tmp_path / "copy")
    segment = SegmentFile(segment_paths(tmp_path / "copy")[-1])
    os.truncate(segment.path, list(segment.records())[-1].offset)
    with pytest.raises(CorruptionError, match="were durable"):
        Log.open(tmp_path / "copy", "w")


def test_a_log_that_was_closed_sealed_and_marked_again(tmp_path: Path) -> None:
    """Its tail has marks and its other segments footers, which speak of other ends than the copy's."""
    for _ in range(3):
        with filled(tmp_path / "log", 700) as log:
            committed = log.committed
    with Log.open(tmp_path / "log", "r") as log:
        log.backup(tmp_path / "copy")
    with Log.open(tmp_path / "copy", "r") as copy:
        assert (copy.committed, copy.verify().damages) == (committed, ())
    assert read_log(tmp_path / "copy").committed == committed


def test_only_the_used_part_of_the_tail_is_copied(tmp_path: Path) -> None:
    """What was allocated for records to come is no part of the log, nor is what stands behind the end."""
    with Log.open(tmp_path / "log", flush_policy=MANUAL) as log:
        log.append(b"x" * 100)
        log.backup(tmp_path / "copy")
        (tail,) = segment_paths(tmp_path / "copy")
        assert tail.stat().st_size == 4096 + 120
        assert segment_paths(tmp_path / "log")[0].stat().st_size > tail.stat().st_size


@pytest.mark.parametrize("kind", ["file", "directory", "empty directory", "dangling link"])
def test_what_is_there_is_refused(tmp_path: Path, kind: str) -> None:
    """An older backup is not to be destroyed by the attempt at a newer one."""
    target = tmp_path / "copy"
    if kind == "file":
        target.write_bytes(b"precious")
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nothing")
    else:
        target.mkdir()
        if kind == "directory":
            (target / "file").write_bytes(b"precious")
    with (
        filled(tmp_path / "log", 10) as log,
        unchanged(tmp_path),
        pytest.raises(FileExistsError, match="copy"),
    ):
        log.backup(target)


def test_a_target_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """Renaming a directory over an empty one succeeds unless it is forbidden."""
    with (
        filled(tmp_path / "log", 10) as log,
        pytest.raises(FileExistsError, match="copy"),
    ):
        log.backup(tmp_path / "copy", progress=lambda *_: (tmp_path / "copy").mkdir(exist_ok=True))
    assert not list((tmp_path / "copy").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "log"]


def test_places_where_no_backup_can_be(tmp_path: Path) -> None:
    """Within the log itself it would be a file that does not belong there."""
    with filled(tmp_path / "log", 10) as log:
        with unchanged(tmp_path), pytest.raises(LogError, match="within"):
            log.backup(tmp_path / "log" / "copy")
        with unchanged(tmp_path), pytest.raises(FileNotFoundError):
            log.backup(tmp_path / "missing" / "copy")
    with pytest.raises(Closed):
        log.backup(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_place_that_cannot_be_made_is_named_with_its_directory(tmp_path: Path) -> None:
    # It said no more than the last part of a name of its own.
    with filled(tmp_path / "log", 1) as log, pytest.raises(OSError, match="too long") as caught:
        log.backup(tmp_path / ("x" * 250))
    assert caught.value.filename == str(tmp_path / ("x" * 250))


def test_a_copy_of_what_may_only_be_read_may_be_written(tmp_path: Path) -> None:
    # The full segments had the permissions of the log's: a store that was read-only could not be backed up by
    # anybody but root, for the index of the copy could not be built.
    filled(tmp_path / "log").close()
    for each in segment_paths(tmp_path / "log"):
        each.chmod(0o444)
    with Log.open(tmp_path / "log", "r") as log:
        log.backup(tmp_path / "copy")
    assert {each.stat().st_mode & 0o777 for each in (tmp_path / "copy").iterdir()} == {0o600}


def test_damage_is_not_copied(tmp_path: Path) -> None:
    """A backup that was never looked at is found to be worth nothing on the day it is needed."""
    with filled(tmp_path / "log") as log:
        segment = SegmentFile(segment_paths(tmp_path / "log")[1])
        record = list(segment.records())[5]
        segment.data[record.offset + 20] ^= 1
        segment.save()
        with pytest.raises(CorruptionError, match=f"record {record.seq} at offset {record.offset}") as raised:
            log.backup(tmp_path / "copy")
        assert raised.value.filename == str(segment.path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]
        log.backup(tmp_path / "copy", verify=False)
    with Log.open(tmp_path / "copy", "r") as copy:
        assert [damage.seq for damage in copy.verify().damages] == [record.seq]


@pytest.mark.parametrize("which", [0, 2, -1])
def test_a_segment_that_is_missing(tmp_path: Path, which: int) -> None:
    """It did not go because somebody made the log shorter."""
    with filled(tmp_path / "log") as log:
        log.flush()
        segment_paths(tmp_path / "log")[which].unlink()
        with pytest.raises(CorruptionError):
            log.backup(tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


def test_a_cut_tail(tmp_path: Path) -> None:
    """Zeros in place of what is gone would be a copy of nothing."""
    with filled(tmp_path / "log", 10) as log:
        log.close()
    with Log.open(tmp_path / "log", "r") as log:
        os.truncate(segment_paths(tmp_path / "log")[-1], 4096 + 64)
        with pytest.raises(CorruptionError, match="the file ends at 4160"):
            log.backup(tmp_path / "copy", verify=False)


def test_while_others_write(tmp_path: Path) -> None:
    """Whatever is appended meanwhile, the copy ends where the log did when it began, or later."""
    stop = threading.Event()
    with filled(tmp_path / "log", 10) as log:

        def write() -> None:
            for number in itertools.count(10):
                if stop.is_set():
                    return
                log.append(payload(number))
                if number % 1000 == 0:
                    log.flush()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(4):
                before = log.committed
                made = log.backup(tmp_path / f"copy{number}")
                assert before <= made.committed <= log.committed
                holds(tmp_path / f"copy{number}", range(made.committed))
        finally:
            stop.set()
            writer.join()


def test_while_another_process_writes(tmp_path: Path) -> None:
    """Its stores are seen through the page cache, synced or not."""
    code = (
        "import sys, itertools\nfrom mmaplog import Log, FlushPolicy\n"
        "log = Log.open(sys.argv[1], flush_policy=FlushPolicy.NEVER, segment_bytes=65536)\n"
        "for number in itertools.count():\n"
        "    log.append(b'%d.' % number * 20)\n"
        "    if number == 100: print('ready', flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            with Log.open(tmp_path / "log", "r") as log:
                for number in range(4):
                    before = log.committed
                    made = log.backup(tmp_path / f"copy{number}")
                    assert made.committed >= before
                    holds(tmp_path / f"copy{number}", range(made.committed))
        finally:
            child.kill()


def drop_first_segment(path: Path) -> int:
    """What shortening a log at its front does: the manifest, then the file. The new first number."""
    directory = _os.open_directory(str(path))
    found = manifest_file.read(directory, str(path))
    gone, following = segment_paths(path)[:2]
    first: int = SegmentFile(following).base_seq
    manifest_file.write(
        directory, manifest_file.Manifest(found.log_uuid, found.segment_bytes, first, erasing=False)
    )
    gone.unlink()
    return first


@pytest.mark.parametrize("when", [0, 1, 2])
def test_segments_that_vanish_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """Shortened at the front meanwhile, it is copied as it is then, without what was dropped."""
    log = filled(tmp_path / "log")
    log.flush()
    copy = backup_module._copy
    firsts: list[int] = []
    calls = itertools.count()

    def copy_and_drop(*arguments: Any) -> Any:
        if next(calls) == when:
            firsts.extend(drop_first_segment(tmp_path / "log") for _ in range(when + 2))
        return copy(*arguments)

    monkeypatch.setattr(backup_module, "_copy", copy_and_drop)
    made = log.backup(tmp_path / "copy")
    assert made.first_seq == firsts[-1]
    holds(tmp_path / "copy", range(firsts[-1], COUNT))


def test_all_that_there_was_is_dropped_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy began behind its end, verified, and could not be opened."""
    log = filled(tmp_path / "log")
    read = manifest_file.read
    calls = itertools.count()

    def append_and_drop(*arguments: Any) -> Any:
        if next(calls) == 0:
            log.append_many([payload(COUNT + each) for each in range(2)])
            log.truncate_before(COUNT + 1)
        return read(*arguments)

    with Log.open(tmp_path / "log", "r") as reader:
        monkeypatch.setattr(manifest_file, "read", append_and_drop)
        made = reader.backup(tmp_path / "copy")
    assert (made.first_seq, made.committed) == (COUNT + 1, COUNT + 2)
    holds(tmp_path / "copy", range(COUNT + 1, COUNT + 2))


CHANGING = (
    *("make_directory", "open_file", "write_at", "sync", "set_size"),
    *("copy_content", "copy_start", "replace_file", "rename_new"),
)


def attempt(log: Log, target: Path, last: int, error: BaseException, **options: Any) -> bool:
    """Make a backup; whether it was done before the call number `last` of the boundary, which raises."""
    count = itertools.count()

    def counted(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if next(count) == last:
            raise error
        return call(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGING:
            patch.setattr(_os, name, functools.partial(counted, getattr(_os, name)))
        try:
            log.backup(target, **options)
        except type(error) as raised:
            assert raised is error
            return False
    return True


class Killed(BaseException):
    """Stands for the end of the process: nobody cleans up behind it."""


def test_a_killed_backup_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call was the last one; and what it leaves does not stand in the way of the next."""
    log = filled(tmp_path / "log")
    monkeypatch.setattr(backup_module, "_discard", lambda *_: None)
    complete: set[Path] = set()
    for last in itertools.count():
        if attempt(log, tmp_path / "copy", last, Killed(), verify=False):
            break
        if (tmp_path / "copy").exists():
            holds(tmp_path / "copy", range(COUNT))
            (tmp_path / "copy").rename(tmp_path / f"done{last}")
        for left in tmp_path.glob("copy.*"):
            if left in complete:
                continue
            try:
                with Log.open(left, "r") as found:
                    # All that was missing is the name.
                    assert (len(found), found.verify().damages) == (COUNT, ())
                complete.add(left)
            except FileNotFoundError:
                pass
    assert last > 20
    assert len(complete) <= 3


def test_a_backup_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """A full disk, at each step, the last one included: a name that is not known to be durable."""
    log = filled(tmp_path / "log")
    full = OSError(errno.ENOSPC, "No space left on device")
    for last in itertools.count():
        if attempt(log, tmp_path / "copy", last, full):
            break
        assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert last > 20


def test_every_file_is_synced_before_it_counts(tmp_path: Path) -> None:
    """Counted where the kernel is asked: each file, the directory, and then the directory above it."""
    with filled(tmp_path / "log"):
        count = len(segment_paths(tmp_path / "log"))

    def work() -> list[str]:
        synced: list[str] = []
        sync, rename = _os.sync, _os.rename_new

        def noted(opened: Any, metadata: bool = False) -> None:
            synced.append(Path(f"/proc/self/fd/{opened.fd}").readlink().name)
            sync(opened, metadata)

        def renamed(*arguments: Any) -> None:
            synced.append("renamed")
            rename(*arguments)

        vars(_os).update(sync=noted, rename_new=renamed)
        with Log.open(tmp_path / "log", "r") as log:
            log.backup(tmp_path / "copy")
        return synced

    synced = in_child(work)
    before, after = synced[: synced.index("renamed")], synced[synced.index("renamed") + 1 :]
    assert after == [tmp_path.name]
    assert before[-1].startswith("copy.")
    assert sum(name.endswith(".seg") for name in before) == count
    assert {"LOCK", "MANIFEST.tmp"} <= set(before)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    """In steps that only go up."""
    told: list[tuple[int, int]] = []
    with filled(tmp_path / "log") as log:
        log.backup(tmp_path / "copy", progress=lambda *numbers: told.append(numbers))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


def test_the_copy_opens_where_the_log_cannot_be_written(tmp_path: Path) -> None:
    """A reader asks for LOCK, which only a writer makes."""
    with filled(tmp_path / "log", 10) as log:
        log.backup(tmp_path / "copy")
    with Log.open(tmp_path / "copy", "r") as copy:
        assert copy.committed == 10


def test_a_log_with_gaps_and_without_its_ends(tmp_path: Path) -> None:
    """What compaction and truncation left is copied as it is, and nothing of what they removed."""
    with filled(tmp_path / "log") as log:
        log.compact(lambda entry: entry.seq % 3 != 0)
        log.truncate_before(100)
        log.truncate_after(2500)
        log.append(payload(2500))
        expected = [(entry.seq, bytes(entry.payload)) for entry in log.replay()]
        made = log.backup(tmp_path / "copy")
        assert (made.first_seq, made.committed) == (100, 2501)
    for mode in ("r", "w"):
        with Log.open(tmp_path / "copy", mode, flush_policy=MANUAL) as copy:
            assert copy.verify().damages == ()
            assert [(entry.seq, bytes(entry.payload)) for entry in copy.replay()] == expected
            assert (copy.first_seq, copy.committed) == (100, 2501)


def test_while_another_thread_removes_records(tmp_path: Path) -> None:
    """Compaction and truncation at either end, one after the other: each copy is the log of one moment."""
    stop = threading.Event()
    failures: list[BaseException] = []
    with filled(tmp_path / "log") as log:

        def remove() -> None:
            try:
                while not stop.is_set():
                    log.append_many([payload(number) for number in range(log.committed, log.committed + 700)])
                    log.compact(lambda entry: entry.seq % 10 != 0)
                    log.truncate_before(log.first_seq + 300)
                    log.truncate_after(log.committed - 100)
            except BaseException as error:
                failures.append(error)

        remover = threading.Thread(target=remove)
        remover.start()
        try:
            with Log.open(tmp_path / "log", "r") as reader:
                for number in range(6):
                    made = reader.backup(tmp_path / f"copy{number}")
                    with Log.open(tmp_path / f"copy{number}", "r") as copy:
                        assert copy.verify().damages == ()
                        assert (copy.first_seq, copy.committed) == (made.first_seq, made.committed)
                        for entry in copy.replay():
                            assert bytes(entry.payload) == payload(entry.seq)
        finally:
            stop.set()
            remover.join()
    assert failures == []
