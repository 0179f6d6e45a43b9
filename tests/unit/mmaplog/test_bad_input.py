"""Files that are not what they should be: a typed error that helps, and nothing changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmaplog import FlushPolicy, FormatError, Log
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmaplog.damage import DAMAGES, SEGMENT_DAMAGES, Damage, overwrite
from tests.unit.mmaplog.segment_file import SegmentFile, segment_paths

MANUAL = FlushPolicy.MANUAL
COUNT = 600


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A log of two segments that was closed cleanly."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=MANUAL, segment_bytes=64 << 10) as log:
        for number in range(COUNT):
            log.append(b"%d" % number * 35)
    assert len(segment_paths(path)) == 2
    return path


def refuse(path: Path, mode: str, damage: Damage) -> None:
    """Opening raises what `damage` says, twice the same, and changes nothing but the name in LOCK."""
    with unchanged(path, ignoring=("LOCK",)):
        for _ in range(2):
            with pytest.raises(OSError, match=damage.word) as raised:
                Log.open(path, mode, flush_policy=MANUAL)
            assert type(raised.value).__name__ == damage.error
            assert raised.value.errno
            # A bare "MANIFEST" helps nobody who has a hundred logs.
            assert str(path) in str(raised.value)


@pytest.mark.parametrize("mode", ["r", "w"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_spoilt_manifest_or_lock_is_refused(closed: Path, mode: str, damage: Damage) -> None:
    """Going on with a log that one does not understand destroys it."""
    damage.inflict(closed)
    refuse(closed, mode, damage)


@pytest.mark.parametrize(
    ("mode", "control"), [("w", True), ("r", False)], ids=["w with CONTROL", "r without CONTROL"]
)
@pytest.mark.parametrize("damage", SEGMENT_DAMAGES, ids=lambda damage: damage.name)
def test_a_spoilt_last_segment_is_refused(closed: Path, mode: str, damage: Damage, control: bool) -> None:
    """Durable records must not vanish without a word, whether CONTROL still knows of them or not."""
    damage.inflict(closed)
    if not control:
        (closed / "CONTROL").unlink()
    refuse(closed, mode, damage)


@pytest.mark.parametrize("damage", SEGMENT_DAMAGES, ids=lambda damage: damage.name)
def test_a_spoilt_earlier_segment_is_noticed_when_it_is_read(closed: Path, damage: Damage) -> None:
    """Opening costs the same whatever the size, so it does not look at all of them; reading must."""
    names = segment_paths(closed)
    names[1].rename(closed.parent / "aside")
    damage.inflict(closed)
    (closed.parent / "aside").rename(names[1])
    with pytest.raises(OSError, match=r".") as raised, Log.open(closed, "r") as log:
        for number, entry in enumerate(log.replay()):
            assert bytes(entry.payload) == b"%d" % number * 35
    assert type(raised.value).__name__ in (damage.error, "CorruptionError")


@pytest.mark.parametrize("length", [0, 1, 100, 4096, 8191, 8193, 1 << 20])
@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_spoilt_control_is_made_anew(closed: Path, mode: str, length: int) -> None:
    """It holds nothing that the segments do not."""
    raw = (closed / "CONTROL").read_bytes()
    with (closed / "CONTROL").open("r+b") as file:
        file.truncate(length)
    with Log.open(closed, mode, flush_policy=MANUAL) as log:
        assert len(log) == COUNT
        assert log.recovered
    assert len((closed / "CONTROL").read_bytes()) == len(raw)


@pytest.mark.parametrize("offset", [0, 8, 9, 16, 31, 32, 40, 55, 56, 64, 72, 80, 88, 96, 103])
def test_a_control_with_a_flipped_bit_in_its_identity_is_made_anew(closed: Path, offset: int) -> None:
    """Every byte of what binds it to this boot, mount and file is under the checksum."""
    byte = (closed / "CONTROL").read_bytes()[offset]
    overwrite(closed / "CONTROL", bytes([byte ^ 0x10]), offset)
    with Log.open(closed, "w", flush_policy=MANUAL) as log:
        assert (len(log), log.recovered) == (COUNT, True)
        assert log.append(b"more") == COUNT


@pytest.mark.parametrize("offset", range(4096, 4096 + 64, 8))
def test_a_control_that_does_not_fit_the_segments_is_made_anew(closed: Path, offset: int) -> None:
    """Its hot words have no checksum: a valid record must end where it says that the log ends."""
    raw = (closed / "CONTROL").read_bytes()
    overwrite(closed / "CONTROL", bytes(byte ^ 0x55 for byte in raw[offset : offset + 8]), offset)
    with Log.open(closed, "w", flush_policy=MANUAL) as log:
        assert len(log) == COUNT
        assert log.append(b"more") == COUNT
        assert [bytes(entry.payload) for entry in log.replay(COUNT - 1)] == [
            b"%d" % (COUNT - 1) * 35,
            b"more",
        ]


@pytest.mark.parametrize("mode", ["r", "w"])
@pytest.mark.parametrize("first_seq", [1, COUNT, COUNT + 1, 1 << 40])
def test_a_control_that_says_the_log_begins_later(closed: Path, mode: str, first_seq: int) -> None:
    """A flipped bit there hid every record from readers: they were said to have been dropped."""
    overwrite(closed / "CONTROL", first_seq.to_bytes(8, "little"), 4096 + 152)
    with Log.open(closed, mode, flush_policy=MANUAL) as log:
        assert (log.first_seq, len(log)) == (0, COUNT)
        assert len(list(log.replay())) == COUNT


def test_a_control_that_cannot_be_replaced_is_noticed_before_anything_is_written(closed: Path) -> None:
    """A directory of that name stands in the way of the new one."""
    (closed / "CONTROL").unlink()
    (closed / "CONTROL").mkdir()
    for mode in ("r", "w"):
        with unchanged(closed, ignoring=("LOCK",)), pytest.raises(OSError, match="directory"):
            Log.open(closed, mode, flush_policy=MANUAL)


def test_a_missing_lock_file(closed: Path) -> None:
    """A writer makes it; a reader that cannot be counted says so rather than that some file is missing."""
    (closed / "LOCK").unlink()
    with unchanged(closed), pytest.raises(OSError, match="LOCK") as raised:
        Log.open(closed, "r")
    assert str(closed) in str(raised.value)
    with Log.open(closed, "w", flush_policy=MANUAL) as log:
        assert len(log) == COUNT


@pytest.mark.parametrize("content", [b"", b"\xff" * 200, b"process 1\n" * 50])
def test_what_stands_in_the_lock_file_does_not_matter(closed: Path, content: bytes) -> None:
    """Locks are the kernel's; the name in the file is only for people."""
    (closed / "LOCK").write_bytes(content)
    with Log.open(closed, "w", flush_policy=MANUAL) as log:
        assert len(log) == COUNT


@pytest.mark.parametrize(("kind", "flags"), [(2, 0), (0, 0), (255, 0), (1, 0x40), (1, 0x80)])
@pytest.mark.parametrize("control", [True, False], ids=["with CONTROL", "without CONTROL"])
def test_a_record_of_a_newer_kind_is_refused(closed: Path, kind: int, flags: int, control: bool) -> None:
    """Taking it for a torn tail would cut off what a newer version wrote."""
    segment = SegmentFile(segment_paths(closed)[-1])
    record = next(segment.records())
    segment.put_record(record.offset, record.seq, record.payload, kind=kind, flags=flags)
    segment.drop_mark()
    segment.save()
    if not control:
        (closed / "CONTROL").unlink()
        with unchanged(closed, ignoring=("LOCK",)), pytest.raises(FormatError, match="upgrade"):
            Log.open(closed, "w", flush_policy=MANUAL)
        return
    with Log.open(closed, "r") as log, pytest.raises(FormatError, match=f"record {record.seq} .*upgrade"):
        list(log.replay())
