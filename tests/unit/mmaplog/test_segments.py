"""Rolling from segment to segment, and segments that are missing, foreign, renamed or copied."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest

from mmapio._os import open_directory
from mmaplog import CorruptionError, FlushPolicy, FormatError, Log, appender, segment_set
from mmaplog.segment import is_segment, list_files, name_of
from tests.unit.mmapio.processes import in_child, killed_after
from tests.unit.mmaplog.segment_file import (
    HEADER_SIZE,
    SegmentFile,
    payloads_on_disk,
    segment_files,
    segment_paths,
)

MANUAL = FlushPolicy.MANUAL
NEVER = FlushPolicy.NEVER
SEGMENT = 64 << 10
ROOM = SEGMENT - HEADER_SIZE


def fill(path: Path, count: int = 40, *, policy: FlushPolicy = MANUAL) -> list[bytes]:
    """A closed log of several segments, 15 records in each; returns what it holds."""
    records = [b"%d " % number * (4000 // len(b"%d " % number)) for number in range(count)]
    with Log.open(path, flush_policy=policy, segment_bytes=SEGMENT) as log:
        for record in records:
            log.append(record)
    return records


def read(path: Path, mode: str = "r") -> list[bytes]:
    """What the log says that it holds."""
    with Log.open(path, mode, flush_policy=MANUAL) as log:
        return [bytes(entry.payload) for entry in log.replay()]


def without_control(path: Path) -> Path:
    """As after a power cut."""
    (path / "CONTROL").unlink(missing_ok=True)
    return path


def test_segments_roll_and_are_named_after_their_first_record(tmp_path: Path) -> None:
    """The name is how a record is found among thousands of files."""
    path = tmp_path / "log"
    records = fill(path)
    segments = segment_files(path)
    assert len(segments) == 3
    seen = 0
    for segment in segments:
        assert segment.base_seq == int(segment.path.name[:20]) == seen
        assert segment.segment_id == int(segment.path.name[21:37], 16)
        assert segment.path.stat().st_size <= SEGMENT
        seen += len(list(segment.records()))
    assert payloads_on_disk(path) == records == read(path)
    assert read(without_control(path), "w") == records


def test_a_record_may_end_exactly_where_its_segment_does(tmp_path: Path) -> None:
    """One byte of slack in the comparison, and it is written beyond the file."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT) as log:
        log.append(b"a" * (ROOM // 2 - 16))
        log.append(b"b" * (ROOM // 2 - 16))
        assert len(segment_paths(path)) == 1
        log.append(b"c")
        assert len(segment_paths(path)) == 2
        records = [bytes(entry.payload) for entry in log.replay()]
    assert [record[:1] for record in records] == [b"a", b"b", b"c"]
    assert segment_files(path)[0].end() == SEGMENT
    assert read(without_control(path), "w") == records


def test_a_log_that_ends_exactly_at_its_segments_end(tmp_path: Path) -> None:
    """There is not even room for the zero word that says that nothing follows."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT) as log:
        log.append(b"a" * (ROOM - 16))
    assert segment_files(path)[0].end() == SEGMENT == segment_paths(path)[0].stat().st_size
    assert read(path) == read(without_control(path), "w") == [b"a" * (ROOM - 16)]
    with Log.open(path, flush_policy=MANUAL) as log:
        assert log.append(b"next") == 1
    assert read(without_control(path)) == [b"a" * (ROOM - 16), b"next"]


@pytest.mark.parametrize("slack", [1, 7, 8, 15, 16, 17, 23, 24])
def test_what_is_left_at_the_end_of_a_segment_may_be_too_little(tmp_path: Path, slack: int) -> None:
    """Fewer bytes than a record header are left, or as many."""
    path = tmp_path / "log"
    records = [b"a" * (ROOM - 16 - slack), b"b", b"", b"c" * 100]
    with Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT) as log:
        for record in records:
            log.append(record)
    assert read(path) == records
    assert read(without_control(path), "w") == records


@pytest.mark.parametrize("flushed", [True, False], ids=["flushed", "not flushed"])
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("size", [ROOM - 15, SEGMENT, 5 * SEGMENT + 3])
def test_a_record_larger_than_a_segment_gets_one_of_its_own(
    tmp_path: Path, size: int, before: int, flushed: bool
) -> None:
    """The first record of all may be one: then the first segment stays empty, and both begin at 0."""
    path = tmp_path / "log"
    records = [b"small"] * before + [b"L" * size] + [b"tiny"] * 3 + [b"M" * size, b"end"]
    with Log.open(path, flush_policy=MANUAL if flushed else NEVER, segment_bytes=SEGMENT) as log:
        for record in records:
            log.append(record)
            if flushed:
                log.flush()
        assert [bytes(entry.payload) for entry in log.replay()] == records
        assert in_child(lambda: read(path)) == records
        if flushed:
            assert log.durable == len(records)
    assert read(path) == records
    assert read(without_control(path), "w") == records
    assert sorted(payloads_on_disk(path)) == sorted(records)


def test_oversized_records_after_recovery(tmp_path: Path) -> None:
    """Recovery leaves an empty segment behind, which is too small for what comes."""
    path = tmp_path / "log"
    for round_ in range(6):
        with Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT) as log:
            log.append(b"%d" % round_ * (2 * SEGMENT))
            log.append(b"torn")
        segment = segment_files(path)[-1]
        segment.data[segment.end() - 8] ^= 1
        segment.drop_mark()
        segment.save()
        assert read(without_control(path), "w") == [
            b"%d" % number * (2 * SEGMENT) for number in range(round_ + 1)
        ]


def test_segments_start_small_and_grow(tmp_path: Path) -> None:
    """An empty log that took its whole first segment would cost 64 MiB."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=MANUAL) as log:
        assert sum(file.stat().st_blocks * 512 for file in path.iterdir()) <= 256 << 10
        log.append(b"x" * 300_000)
        assert segment_paths(path)[0].stat().st_size <= 1 << 20
        log.append(b"x" * 3_000_000)
    assert len(segment_paths(path)) == 1
    assert [len(record) for record in read(path)] == [300_000, 3_000_000]


# Not among them: without CONTROL and without a sync, a segment that a power cut took is a torn tail.
@pytest.mark.parametrize(
    ("policy", "control"),
    [(MANUAL, True), (MANUAL, False), (NEVER, True)],
    ids=["synced", "synced, without CONTROL", "not synced"],
)
@pytest.mark.parametrize("which", [0, 1, 2], ids=["first", "middle", "last"])
@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_missing_segment_is_an_error(
    tmp_path: Path, which: int, mode: str, control: bool, policy: FlushPolicy
) -> None:
    """At the latest when its records are read; never a shorter log without a word, nor a further loss."""
    path = tmp_path / "log"
    fill(path, policy=policy)
    segment_paths(path)[which].rename(tmp_path / "elsewhere")
    if not control:
        without_control(path)
    names = segment_paths(path)
    with pytest.raises(CorruptionError, match=r"missing|damaged") as raised:
        read(path, mode)
    assert str(path) in str(raised.value) or ".seg" in str(raised.value)
    assert segment_paths(path) == names
    assert not list(path.glob("*.bad"))


def test_a_missing_segment_that_comes_back_is_read(tmp_path: Path) -> None:
    """An administrator's mistake that is made good in time costs nothing."""
    path = tmp_path / "log"
    records = fill(path)
    for which in range(3):
        file = segment_paths(path)[which]
        file.rename(tmp_path / "elsewhere")
        with pytest.raises(CorruptionError):
            read(path, "w")
        (tmp_path / "elsewhere").rename(file)
        assert read(path, "w") == records


@pytest.mark.parametrize("mode", ["r", "w"])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["first", "middle", "last"])
def test_a_segment_of_another_log_in_place_of_ours(tmp_path: Path, which: int, mode: str) -> None:
    """Its records verify, its numbers fit, and they are somebody else's."""
    path, other = tmp_path / "log", tmp_path / "other"
    fill(path)
    with Log.open(other, flush_policy=MANUAL, segment_bytes=SEGMENT) as log:
        for _ in range(40):
            log.append(b"other" * 800)
    ours, theirs = segment_paths(path)[which], segment_paths(other)[which]
    assert ours.name[:20] == theirs.name[:20]
    ours.unlink()
    shutil.copy(theirs, path / theirs.name)
    names = segment_paths(path)
    with pytest.raises((FormatError, CorruptionError)):
        read(path, mode)
    assert segment_paths(path) == names


@pytest.mark.parametrize("mode", ["r", "w"])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["first", "middle", "last"])
def test_a_segment_of_another_log_beside_ours_is_never_deleted(tmp_path: Path, which: int, mode: str) -> None:
    """Copied to the wrong place it may be the only one; cleaning up after ourselves must not take it."""
    path, other = tmp_path / "log", tmp_path / "other"
    records = fill(path, 20)
    fill(other, 40)
    stray = path / segment_paths(other)[which].name
    shutil.copy(segment_paths(other)[which], stray)
    before = stray.read_bytes()
    with contextlib.suppress(FormatError, CorruptionError):
        assert read(path, mode) == records
    assert stray.read_bytes() == before


def test_an_old_copy_of_our_last_segment_beside_it(tmp_path: Path) -> None:
    """A backup put back under its own name does not hide the log it belongs to."""
    path = tmp_path / "log"
    records = fill(path, 20)
    backup = segment_paths(path)[-1]
    shutil.copy(backup, tmp_path / "backup")
    with Log.open(path, flush_policy=MANUAL) as log:
        log.append(b"more")
    shutil.copy(tmp_path / "backup", backup)
    with pytest.raises(CorruptionError):
        assert read(path) != [*records, b"more"]


def test_a_renamed_segment_is_noticed(tmp_path: Path) -> None:
    """The number in the name decides where records are looked for."""
    path = tmp_path / "log"
    fill(path)
    middle = segment_paths(path)[1]
    middle.rename(path / f"{16:020}-{middle.name[21:]}")
    with pytest.raises(FormatError, match="renamed"):
        read(path)


@pytest.mark.parametrize("closed", [True, False], ids=["cleanly closed", "killed"])
@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_moved_log_is_the_same_log(tmp_path: Path, closed: bool, mode: str) -> None:
    """Nothing inside knows the path."""
    path = tmp_path / "log"
    records = [b"%d" % number * 50 for number in range(100)]
    write_and_stop(path, records, closed=closed)
    path.rename(tmp_path / "moved")
    with Log.open(tmp_path / "moved", mode, flush_policy=MANUAL) as log:
        assert not log.recovered
        assert [bytes(entry.payload) for entry in log.replay()] == records


@pytest.mark.parametrize("state", ["open", "cleanly closed", "killed"])
@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_copied_log_does_not_believe_the_copied_control(tmp_path: Path, state: str, mode: str) -> None:
    """The copy of CONTROL speaks of the original's page cache; the two logs must go their own ways."""
    path, copied = tmp_path / "log", tmp_path / "copy"
    records = [b"%d" % number * 50 for number in range(2000)]
    holder = None
    if state == "open":
        holder = Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT)
        for record in records:
            holder.append(record)
    else:
        write_and_stop(path, records, closed=state == "cleanly closed")
    subprocess.run(["cp", "-a", str(path), str(copied)], check=True)
    with Log.open(copied, mode, flush_policy=MANUAL) as log:
        assert log.recovered
        assert [bytes(entry.payload) for entry in log.replay()] == records
        if mode == "w":
            log.append(b"of the copy")
    if holder is not None:
        holder.append(b"of the original")
        holder.close()
        records.append(b"of the original")
    assert read(path) == records


def write_and_stop(path: Path, records: list[bytes], *, closed: bool) -> None:
    """Write a log in a child that closes it, or is killed with it open."""

    def write() -> Log:
        log = Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT)
        for record in records:
            log.append(record)
        return log

    if closed:
        write().close()
    else:
        killed_after(write)


def test_left_overs_of_a_killed_roll_are_cleaned_up(tmp_path: Path) -> None:
    """A segment that was made and never used must neither be read nor stay for ever."""
    path = tmp_path / "log"
    records = fill(path, 20)
    last = SegmentFile(segment_paths(path)[-1])
    last.data[HEADER_SIZE:] = bytes(len(last.data) - HEADER_SIZE)
    last.drop_mark()
    unused = 0x1234
    last.patch_header(40, "<Q", unused)
    last.patch_header(48, "<Q", 20)
    made = path / f"{20:020}-{unused:016x}.seg"
    last.save(made)
    temporary = path / f"{20:020}-{unused + 1:016x}.seg.tmp"
    temporary.write_bytes(b"half")
    assert read(path, "r") == records
    assert read(path, "w") == records
    assert not made.exists()
    assert not temporary.exists()


def test_an_unused_segment_is_no_damage_after_a_power_cut(tmp_path: Path) -> None:
    """It may have reached the disk before the first record in it did."""
    path = tmp_path / "log"
    records = fill(path, 30)
    last = SegmentFile(segment_paths(path)[-1])
    assert last.base_seq == 15
    segment = SegmentFile(segment_paths(path)[-1])
    segment.data[HEADER_SIZE:] = bytes(len(segment.data) - HEADER_SIZE)
    segment.drop_mark()
    segment.save()
    assert read(without_control(path), "w") == records[:15]
    with Log.open(path, flush_policy=MANUAL) as log:
        assert log.append(b"next") == 15
    assert read(without_control(path)) == [*records[:15], b"next"]


@pytest.mark.parametrize("compacted", [False, True])
def test_a_segment_that_is_missing_in_the_middle_is_called_so(tmp_path: Path, compacted: bool) -> None:
    """The record before it was called damaged; behind a compacted segment, its records were passed over."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=64 << 10) as log:
        for number in range(8):
            log.append(b"%d" % number * 30_000)
        if compacted:
            log.compact(lambda entry: entry.seq != 1)
        gone = sorted(segment_paths(path))[1]
        number = int(gone.name[:20])
    gone.unlink()
    with Log.open(path, "r") as log:
        for read in (lambda: list(log.replay()), lambda: log[number]):
            with pytest.raises(CorruptionError, match=f"begins with record {number} is missing"):
                read()


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("00000000000000000042-0123456789abcdef.seg", True),
        ("09999999999999999999-ffffffffffffffff.compact.seg", True),
        ("00000000000000000042-0123456789abcdef.seg.tmp", True),
        ("00000000000000000042-0123456789abcdef.seg.bad", False),
        ("00000000000000000042-0123456789abcdef.hint", False),
        ("00000000000000000042-0123456789abcdef.Seg", False),
        ("00000000000000000042-0123456789abcdef", False),
        ("00000000000000000042-0123456789ABCDEF.seg", False),
        ("00000000000000000042-0123456789abcdeg.seg", False),
        ("00000000000000000042-0123456789abcde.seg", False),
        ("00000000000000000042_0123456789abcdef.seg", False),
        ("0000000000000000004a-0123456789abcdef.seg", False),
        ("0000000000000000042-0123456789abcdef.seg", False),
        ("000000000000000000042-0123456789abcdef.seg", False),
        ("10000000000000000042-0123456789abcdef.seg", False),
        ("0000000000000000004\u0662-0123456789abcdef.seg", False),
        ("\udcff0000000000000000042-0123456789abcdef.seg", False),
        ("00000000000000000042-0123456789abcdef.seg\n", False),
        (" 0000000000000000042-0123456789abcdef.seg", False),
        ("", False),
        (".tmp", False),
    ],
)
def test_what_the_name_of_a_segment_is(name: str, is_one: bool) -> None:
    """Another file, however like it, is none of the log."""
    assert is_segment(name) is is_one


def test_segments_are_listed_in_the_order_of_their_records(tmp_path: Path) -> None:
    """Whatever the order in which the system has them; of one number by their ids."""
    names = {
        (base_seq, segment_id, name_of(base_seq, segment_id, sparse))
        for base_seq in (0, 9, 10, 255, 1 << 40, (1 << 63) - 1)
        for segment_id in (1, 0xA, 0xFFFFFFFFFFFFFFFF)
        for sparse in (False, True)
    }
    others = {"MANIFEST", "00000000000000000042-0123456789abcdef.hint"}
    for name in {name for _, _, name in names} | others:
        (tmp_path / name).touch()
    found, beside = list_files(open_directory(str(tmp_path)))
    assert found == sorted(names)
    assert set(beside) == others


def test_a_segment_that_is_listed_as_soon_as_it_has_its_name_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may read the directory before the one that rolls has said what it made."""
    made = appender.create_segment  # type: ignore[attr-defined]
    with Log.open(tmp_path / "log", flush_policy=MANUAL, segment_bytes=SEGMENT) as log:

        def listed(*args: object, **kwargs: object) -> object:
            segment = made(*args, **kwargs)
            log.segments.relist()
            return segment

        monkeypatch.setattr(appender, "create_segment", listed)
        for number in range(40):
            log.append(b"%d" % number * 2000)
        names = log.segments.listing()
        assert names == sorted(set(names))
        assert len(names) == len(segment_paths(tmp_path / "log")) > 2
        assert log.stats()["segments"] == len(names)
        assert [bytes(entry.payload) for entry in log.replay()] == [b"%d" % each * 2000 for each in range(40)]


def test_an_older_listing_does_not_undo_a_newer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread reads the directory; another process rolls, and another thread of this one knows of it."""
    path = tmp_path / "log"
    listing = segment_set.list_segments  # type: ignore[attr-defined]
    with (
        Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT, shared=True) as one,
        Log.open(path, flush_policy=MANUAL, shared=True) as two,
    ):
        one.append(b"x")
        known = one.segments.listing()
        calls = []

        def listed(directory: object) -> object:
            found = listing(directory)
            calls.append(None)
            # The second look within one reading is the last.
            if len(calls) == 2:
                while len(two.segments.listing()) < 3:
                    two.append(b"x" * 10_000)
                one.segments.relist()
                assert len(one.segments.listing()) == 3
            return found

        monkeypatch.setattr(segment_set, "list_segments", listed)
        one.segments.relist()
        assert len(calls) > 4
        assert len(known) == 1
        assert len(one.segments.listing()) == 3
        assert [entry.payload[:1] for entry in one.replay()] == [b"x"] * len(one)
