"""The file of a consumer or group: damaged, foreign or torn, it gives a committed place, or an error."""

from __future__ import annotations

import os
import random
import shutil
import struct
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from mmapio import MappingFault, _os
from mmaplog import CorruptionError, FlushPolicy, FormatError, Log, LogError, bookmark
from mmaplog import bookmark_format as layout
from mmaplog.bookmark_format import NOBODY, Claim, Header, Place
from mmaplog.consumer import slowest


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    """In memory: there are thousands of syncs, and none of them matters to what is looked for."""
    return memory_path


KINDS = pytest.mark.parametrize("kind", ["consumer", "group"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log, a consumer and a group of which 3, 5, 6 and 8 were committed, in this order; 5 durably."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=FlushPolicy.NEVER) as log:
        log.append_many([b"x"] * 10)
        log.flush()
        for subscription in (log.consumer("consumer"), log.group("group", batch=10)):
            for _ in range(10):
                subscription.poll()
            for seq in (3, 5, 6, 8):
                subscription.commit(seq, durable=seq == 5)
            # Not closed, which would be a commit more.
            subscription._mark.close()
    return path


def committed(path: Path, name: str) -> int:
    """Where one goes on that is opened, which every other way to ask must agree with."""
    with Log.open(path, "r") as log:
        listed = {each.name: each.committed for each in log.consumers()}[name]
        with log.consumer(name) if name == "consumer" else log.group(name) as subscription:
            found = subscription.committed
        assert found == listed == slowest(log)
        return found


def only(path: Path, name: str) -> Path:
    """The file of one of the two; the other is removed."""
    for each in path.glob("*.consumer"):
        if each.name != f"{name}.consumer":
            each.unlink()
    return path / f"{name}.consumer"


@KINDS
def test_every_byte(path: Path, kind: str) -> None:
    """Flipped, it is an error, or a place that was committed once: never another, and never a later one."""
    file = only(path, kind)
    data = file.read_bytes()
    assert len(data) == layout.file_size(getattr(layout, f"KIND_{kind.upper()}"))
    errors = older = same = 0
    chance = random.Random(1)
    # What is between the copies, and behind what they use, is looked at here and there.
    size = layout.copy_size(getattr(layout, f"KIND_{kind.upper()}"))
    starts = range(layout.COPIES_OFFSET, len(data), size)
    used = {*range(64), *range(0, len(data), 97), *(at + byte for at in starts for byte in range(112))}
    mutex = range(layout.MUTEX_OFFSET, layout.MUTEX_OFFSET + 128)
    for at in sorted(used - set(mutex)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        try:
            found = committed(path, kind)
        except (FormatError, CorruptionError):
            errors += 1
        else:
            assert found in (6, 8)
            same += found == 8
            older += found == 6
        file.unlink()
        file.write_bytes(data)
    assert errors >= 48, "the header"
    assert older >= 64, "the newest copy"
    assert same > 100


@KINDS
def test_every_length(path: Path, kind: str) -> None:
    """A file that was cut is damage, wherever."""
    file = only(path, kind)
    data = file.read_bytes()
    for length in [*range(70), *range(70, len(data), 61), len(data) - 1]:
        file.unlink()
        file.write_bytes(data[:length])
        with pytest.raises(CorruptionError, match="it was cut"):
            committed(path, kind)


@KINDS
def test_no_copy_that_verifies(path: Path, kind: str) -> None:
    """Then the place is not known, and is not made up."""
    file = only(path, kind)
    file.write_bytes(file.read_bytes()[: layout.COPIES_OFFSET].ljust(file.stat().st_size, b"\0"))
    with Log.open(path) as log:
        for call in (log.consumers, lambda: slowest(log), lambda: getattr(log, kind)(kind)):
            with pytest.raises(CorruptionError, match="no copy of the consumer's place verifies"):
                call()
        # What cannot be read can still be removed, by name.
        log.remove_consumer(kind)
        getattr(log, kind)(kind).close()


@KINDS
def test_a_copy_that_is_torn_anywhere(path: Path, kind: str) -> None:
    """The place is the one before, until the last byte has come."""
    tear(path, kind)


@KINDS
def test_a_reader_that_believes_anything_is_caught(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: what the above is for, were it not for the checksum."""
    with Log.open(path) as log:
        log.remove_consumer(kind)
        monkeypatch.setattr(layout, "xxh3_64", lambda *_: 0)
        monkeypatch.setattr(layout, "check_header", lambda *_, **__: None)
        subscription = getattr(log, kind)(kind)
        for _ in range(10):
            subscription.poll()
        for seq in (3, 5, 6, 8):
            subscription.commit(seq)
        subscription._mark.close()
    (path / f"{({'consumer', 'group'} - {kind}).pop()}.consumer").unlink()
    with pytest.raises(AssertionError, match=r"after \d+ bytes"):
        tear(path, kind)


def tear(path: Path, kind: str) -> None:
    """Store a new copy up to each of its bytes, and look."""
    file = only(path, kind)
    data = file.read_bytes()
    header = layout.unpack_header(data[: layout.SECTOR], file)
    size = layout.copy_size(header.kind)
    copies = [
        layout.unpack_copy(data[start : start + size], header.file_id ^ at)
        for at, start in enumerate(range(layout.COPIES_OFFSET, len(data), size))
    ]
    turns = [each.turn if each else -1 for each in copies]
    newest = copies[turns.index(max(turns))]
    assert newest is not None
    target = min(range(layout.LIVE_COPIES), key=lambda at: turns[at])
    place = newest.moved(seq=9, next=10, claims=[Claim(9, 10, NOBODY)] if kind == "group" else [])
    if kind == "consumer":
        place.next = 9
    made = layout.pack_copy(place, header.file_id ^ target)
    start = layout.COPIES_OFFSET + target * size
    for written in range(len(made) + 1):
        torn = data[:start] + made[:written] + data[start + written :]
        file.unlink()
        file.write_bytes(torn)
        same = torn[start : start + len(made)] == made
        assert committed(path, kind) == (9 if same else 8), f"after {written} bytes"


@KINDS
def test_after_a_power_cut_the_durable_place_is_there(path: Path, kind: str) -> None:
    """Whatever became of all that was stored after the sync: torn, lost, or there."""
    file = only(path, kind)
    data = file.read_bytes()
    size = layout.copy_size(getattr(layout, f"KIND_{kind.upper()}"))
    live = layout.LIVE_COPIES * size
    chance = random.Random(2)
    for _ in range(30):
        garbage = bytearray(data)
        for sector in range(layout.COPIES_OFFSET, layout.COPIES_OFFSET + live, layout.SECTOR):
            if chance.random() < 0.7:
                garbage[sector : sector + layout.SECTOR] = chance.randbytes(layout.SECTOR)
        file.unlink()
        file.write_bytes(garbage)
        assert committed(path, kind) in (5, 6, 8)
    garbage[layout.COPIES_OFFSET : layout.COPIES_OFFSET + live] = bytes(live)
    file.write_bytes(garbage)
    assert committed(path, kind) == 5


def test_a_torn_durable_copy_is_the_one_that_is_replaced(path: Path) -> None:
    """By its number it is the newer; to replace the other would leave no durable copy for that long."""
    with Log.open(path) as log, log.consumer("consumer") as consumer:
        mark = consumer._mark
        consumer.commit(8, durable=True)
        consumer.flush()
        consumer.seek(10)
        consumer.commit(9, durable=True)
        places = {at: mark._copy(at) for at in (2, 3)}
        newer = max(places, key=lambda at: places[at].turn)  # type: ignore[union-attr]
        consumer.commit(10)
        mark.file.update_region(mark._offset(newer) + 56, bytes(8))
        mark.load()
        consumer.commit(7, durable=True)
        kept = mark._copy(5 - newer)
        assert kept == places[5 - newer]


def test_a_place_that_is_being_stored_is_looked_at_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older copy would do, but not when the newest is there a moment later."""
    with Log.open(path, "r") as log:
        opened = bookmark._os.open_file("consumer.consumer", False, directory=log.segments.directory)
        header = bookmark.read_header(log, opened)
        looks: list[int] = []

        class Torn:
            def __getattr__(self, name: str) -> object:
                return getattr(_os, name)

            def read_at(self, opened: _os.Descriptor, count: int, offset: int) -> bytes:
                looks.append(count)
                data = _os.read_at(opened, count, offset)
                # Both live copies, at first.
                return data if len(looks) > 1 else bytes(1024) + data[1024:]

        monkeypatch.setattr(bookmark, "_os", Torn())
        assert bookmark.read_place(opened, header).seq == 8
    assert len(looks) > 1


@KINDS
def test_the_file_of_another_log(path: Path, tmp_path: Path, kind: str) -> None:
    """Its numbers mean something else."""
    with Log.open(tmp_path / "other") as log:
        log.append_many([b"x"] * 20)
    shutil.copy(path / f"{kind}.consumer", tmp_path / "other")
    with pytest.raises(FormatError, match=r"a consumer of the log .* its place means nothing here"):
        committed(tmp_path / "other", kind)


def resealed(data: bytes, offset: int, value: bytes) -> bytes:
    """A file with other bytes in its header, and the checksum that fits."""
    head = data[:offset] + value + data[offset + len(value) : 56]
    return head + struct.pack("<Q", xxh3_64_intdigest(head)) + data[64:]


@pytest.mark.parametrize(
    ("offset", "value", "error", "text"),
    [
        (0, b"something", FormatError, "not the file of a consumer: it begins with b'somethin'"),
        (8, b"\x02\0\0\0", FormatError, "version 2, this code knows 1; upgrade"),
        (12, b"\x03\0\0\0", FormatError, "kind 3"),
        (12, b"\x02\0\0\0", CorruptionError, "has 4096 bytes instead of 28672"),
        (16, b"\0" * 16, FormatError, "a consumer of the log 00000000-"),
    ],
)
def test_a_header_that_verifies(
    path: Path, offset: int, value: bytes, error: type[LogError], text: str
) -> None:
    """And is not one of ours, or not of now."""
    file = only(path, "consumer")
    file.write_bytes(resealed(file.read_bytes(), offset, value))
    with pytest.raises(error, match=text):
        committed(path, "consumer")


@pytest.mark.parametrize(
    "place",
    [
        Place(9, 5, 4, 0, 0, 0, []),
        Place(9, 1, 1 << 63, 0, 0, 0, []),
        Place(9, 1, 8, 0, 0, 0, [Claim(5, 5, 0)]),
        Place(9, 1, 8, 0, 0, 0, [Claim(6, 5, 0)]),
        Place(9, 1, 8, 0, 0, 0, [Claim(0, 5, 0)]),
        Place(9, 1, 8, 0, 0, 0, [Claim(5, 9, 0)]),
        Place(9, 1, 8, 0, 0, 0, [Claim(1, 5, 0), Claim(4, 6, 1)]),
        Place(9, 1, 8, 0, 0, 0, [Claim(1, 5, layout.MEMBERS_MAX)]),
        Place(0, 1, 8, 0, 0, 0, []),
    ],
)
def test_a_copy_that_verifies_and_makes_no_sense(place: Place) -> None:
    """Made up by somebody: it is none."""
    assert layout.unpack_copy(layout.pack_copy(place, 7), 7) is None


def test_more_claims_than_fit() -> None:
    """A count is no reason to read beyond the copy."""
    place = Place(9, 0, 8, 0, 0, 0, [Claim(each, each + 1, 0) for each in range(8)])
    data = layout.pack_copy(place, 7)
    assert layout.unpack_copy(data, 7) == place
    assert layout.unpack_copy(data[:-1], 7) is None
    for count in (layout.CLAIMS_MAX + 1, 0xFFFFFFFF):
        assert layout.unpack_copy(data[:44] + struct.pack("<I", count) + data[48:], 7) is None


def test_a_copy_is_good_in_its_own_place_only() -> None:
    """One that was copied over another, or from another file, does not verify."""
    place = Place(9, 1, 8, 0, 0, 0, [])
    assert layout.unpack_copy(layout.pack_copy(place, 4), 4) == place
    assert layout.unpack_copy(layout.pack_copy(place, 4), 5) is None


def test_a_header_comes_back() -> None:
    """What is written is what is read."""
    header = Header(layout.KIND_GROUP, uuid.uuid4(), 1 << 63, 5)
    data = layout.pack_header(header)
    assert len(data) == 64
    assert layout.unpack_header(data, "x") == header


def directory_there(file: Path) -> None:
    """Where the file was."""
    file.mkdir()


def link_there(file: Path) -> None:
    """To a file that is good."""
    target = file.with_suffix(".elsewhere")
    shutil.copy(file.parent / "group.consumer", target)
    file.symlink_to(target)


def pipe_there(file: Path) -> None:
    """Which would block who opens it."""
    os.mkfifo(file)


@pytest.mark.parametrize("make", [directory_there, link_there, pipe_there])
def test_what_is_no_file(path: Path, make: Callable[[Path], None]) -> None:
    """It is neither followed, nor read, nor removed."""
    make(path / "odd.consumer")
    with Log.open(path) as log:
        for call in (log.consumer, log.group, log.remove_consumer):
            with pytest.raises(OSError, match=r"odd\.consumer"):
                call("odd")
        with pytest.raises(OSError, match=r"odd\.consumer"):
            log.consumers()
    assert os.path.lexists(path / "odd.consumer")


@KINDS
def test_a_file_that_is_cut_while_it_is_used(path: Path, kind: str) -> None:
    """An exception, as of any mapped file."""
    with Log.open(path) as log:
        subscription = getattr(log, kind)(kind)
        subscription.poll()
        os.truncate(path / f"{kind}.consumer", 0)
        with pytest.raises(MappingFault):
            subscription.commit()
        with pytest.raises(MappingFault):
            subscription.close()
        assert subscription.closed


def test_a_place_that_is_read_while_it_is_stored(path: Path) -> None:
    """Who lists the consumers takes no lock: he sees a place that was stored whole."""
    file = only(path, "group")
    with Log.open(path, "r") as log, log.group("group", batch=1) as member:
        opened = bookmark._os.open_file("group.consumer", False, directory=log.segments.directory)
        header = bookmark.read_header(log, opened)
        original = type(member._mark.file).update_region
        seen: list[int] = []

        def in_halves(mapped: object, offset: int, data: bytes) -> None:
            for half in (slice(0, len(data) // 2), slice(len(data) // 2, None)):
                seen.append(bookmark.read_place(opened, header).seq)
                original(mapped, offset + (half.start or 0), data[half])  # type: ignore[arg-type]

        class Mapped:
            def __getattr__(self, name: str) -> object:
                return getattr(mapped, name)

            def update_region(self, offset: int, data: bytes) -> None:
                in_halves(mapped, offset, data)

        mapped = member._mark.file
        member._mark.file = Mapped()  # type: ignore[assignment]
        while member.poll() is not None:
            member.commit()
        member._mark.file = mapped
        assert seen == sorted(seen)
        assert set(seen) <= set(range(11))
    assert file.exists()
