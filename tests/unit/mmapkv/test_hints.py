"""An index built from hints is the one that the records give, and a hint that is not sound is not used."""

from __future__ import annotations

import logging
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from xxhash import xxh3_64_intdigest

from mmapio import FlushPolicy, _os
from mmapkv import KVStore, hints, repair, verify
from mmapkv.hint import Hint, read
from mmapkv.hinter import Hinter
from mmaplog.errors import CorruptionError
from mmaplog.log import Log
from mmaplog.segment import Segment
from tests.support.plain_hint import expected, read_hint
from tests.support.plain_log import read_log
from tests.support.waiting import until
from tests.unit.mmapio.processes import killed_after
from tests.unit.mmapkv.colliding_keys import HashInverter, seed_of
from tests.unit.mmapkv.stores import SEGMENT, agreeing, dead_bytes, lose, opened
from tests.unit.mmaplog.damage import overwrite, overwrite_whole

Content = dict[bytes, bytes]
BIG = 6_000
"""So large a value that few fit in a segment, and its hint has few bytes."""


def hint_files(path: Path) -> list[Path]:
    """The hints of a store, in the order of their segments."""
    return sorted(path.glob("*.hint"))


def rebuilt(path: Path) -> tuple[Content, dict[int, int], int]:
    """What a closed store holds and counts once its index was lost, and of how many records hints told."""
    lose(path, "INDEX")
    told = 0
    real = hints.load

    def load(log: Log, segment: Segment) -> Hint | None:
        nonlocal told
        found = real(log, segment)
        told += found.records if found else 0
        return found

    with mock.patch.object(hints, "load", load), opened(path) as kv:
        found = agreeing(kv)
        # Has what was not fit for use made again.
        kv.flush()
        damages = kv.verify().damages
    assert damages == ()
    return found, dead_bytes(path), told


def scribble(kv: KVStore, chance: random.Random, model: Content, count: int) -> None:
    """Change a store in all ways that leave records of different kinds."""
    for _ in range(count):
        key = b"%d" % chance.randrange(600)
        value = chance.randbytes(chance.choice((0, 8, 100, 100, 100, 700)))
        what = chance.random()
        if what < 0.6:
            kv.put(key, value, ttl=chance.choice((None, 1e6)))
            model[key] = value
        elif what < 0.8:
            assert kv.pop(key, None) == model.pop(key, None)
        else:
            pairs = {b"%d" % chance.randrange(600): value for _ in range(5)}
            kv.put_many(pairs)
            model.update(pairs)


def make_all(kv: KVStore) -> None:
    """Have every segment that may have a hint get one; a flush makes a few."""
    log, index = kv._open_parts()
    while not kv._hinter.make(log, index):
        pass


def full(path: Path, segments: int = 3) -> Content:
    """A closed store of so many segments of few records, all but the last with hints."""
    content: Content = {}
    with opened(path) as kv:
        while len(list(path.glob("*.seg"))) < segments or len(content) % 10:
            key = b"key %d" % len(content)
            kv[key] = content[key] = key * (BIG // len(key))
    assert len(hint_files(path)) == segments - 1
    return content


@pytest.mark.parametrize("seed", range(4))
def test_hints_give_what_the_records_give(tmp_path: Path, seed: int) -> None:
    """A count, an old version or a deletion that is taken differently would only show after a power cut."""
    path, chance, model = tmp_path / "kv", random.Random(seed), Content()
    with opened(path) as kv:
        for _ in range(3):
            scribble(kv, chance, model, 1500)
            if chance.random() < 0.6:
                with kv.snapshot():
                    scribble(kv, chance, model, 200)
                    kv.compact()
        kv.flush()
        make_all(kv)
    records = len(read_log(path).records)
    by_hints = rebuilt(path)
    assert by_hints[0] == model
    assert by_hints[2] > records / 2
    lose(path, *(each.name for each in hint_files(path)))
    by_records = rebuilt(path)
    assert by_records[:2] == by_hints[:2]
    assert by_records[2] == 0


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_some_hints_and_some_records(tmp_path: Path, missing: int) -> None:
    """What a record without a hint replaces may have one, and the other way round."""
    path, chance, model = tmp_path / "kv", random.Random(missing), Content()
    with opened(path) as kv:
        scribble(kv, chance, model, 3000)
        kv.flush()
        make_all(kv)
    names = [each.name for each in hint_files(path)]
    assert len(names) > 4
    lose(path, *names[missing::3])
    found, dead, told = rebuilt(path)
    assert found == model
    assert told > 0
    lose(path, *(each.name for each in hint_files(path)))
    assert rebuilt(path)[:2] == (found, dead)


def test_a_hint_says_what_the_page_says(tmp_path: Path) -> None:
    """Both sides of the code could be wrong alike; the reader in plain Python knows the page alone."""
    path, chance, model = tmp_path / "kv", random.Random(1), Content()
    with opened(path) as kv:
        scribble(kv, chance, model, 3000)
        kv.compact()
        scribble(kv, chance, model, 3000)
        kv.flush()
        make_all(kv)
    log = read_log(path)
    told = 0
    for segment in log.segments:
        file = path / hints.name_of(segment.name)
        if file.exists():
            seed, found = read_hint(segment, file.read_bytes())
            assert found == expected(log, segment, seed)
            told += len(found)
    assert told > len(log.records) / 2


def test_keys_that_hints_cannot_tell_apart(tmp_path: Path) -> None:
    """A hint has 33 bits of a hash. Keys that agree in all of them are different keys all the same."""
    path = tmp_path / "kv"
    with opened(path):
        pass
    twins = list(HashInverter(seed_of(path)).twins(3, 24, 9, 30))
    model: Content = {}
    with opened(path) as kv:
        for turn in range(4):
            for key in twins[turn::2]:
                kv[key] = model[key] = bytes([turn]) * BIG
            for key in twins[turn::5]:
                assert kv.pop(key, None) == model.pop(key, None)
        kv.flush()
        make_all(kv)
    found, dead, told = rebuilt(path)
    assert found == model
    assert told > 20
    lose(path, *(each.name for each in hint_files(path)))
    assert rebuilt(path)[:2] == (found, dead)


def test_keys_that_collide_under_the_seed_of_the_hints(tmp_path: Path) -> None:
    """The seed of the hints is not kept where it does not do: the index comes from the records then."""
    path = tmp_path / "kv"
    full(path)
    with opened(path, "r") as kv:
        content = agreeing(kv)
    before = seed_of(path)
    twins = list(HashInverter(before).twins(3, 64 - 9, 9, 1))
    crowd = list(HashInverter(before).twins(3, 24, 9, 70))
    with opened(path) as kv:
        for key in twins + crowd:
            kv[key] = content[key] = b"x"
    found, _, _ = rebuilt(path)
    assert found == content
    assert seed_of(path) != before


def test_hints_of_another_seed_are_not_mixed_in(tmp_path: Path) -> None:
    """An index has one seed. Hints from before it was built anew have another."""
    path = tmp_path / "kv"
    content = full(path, 4)
    with opened(path) as kv:
        log, _ = kv._open_parts()
        segment, _ = next(iter(hints.sealed(log)))
        hints.write(log, segment, 12345)
    found, _, told = rebuilt(path)
    assert found == content
    assert 0 < told < len(content)
    assert seed_of(path) != 12345


def test_a_hint_that_comes_too_late_goes_again(tmp_path: Path) -> None:
    """Its segment was compacted while it was made, when there was no hint to go with that."""
    path = tmp_path / "kv"
    full(path, 4)
    with opened(path) as kv:
        log, index = kv._open_parts()
        segment, _ = next(iter(hints.sealed(log)))
        kv.update(dict.fromkeys(list(kv), b"y"))
        kv.compact()
        hints.write(log, segment, index.seed)
        assert not (path / hints.name_of(segment.name)).exists()


def test_the_seed_stays(tmp_path: Path) -> None:
    """Under another one, none of the hints would be good for anything."""
    path = tmp_path / "kv"
    full(path)
    before = seed_of(path)
    rebuilt(path)
    assert seed_of(path) == before


def resealed(data: bytes, segment_id: int) -> bytes:
    """A hint whose checksums hold again."""
    content = struct.pack("<Q", xxh3_64_intdigest(data[112:], segment_id))
    head = data[:96] + content
    return head + struct.pack("<Q", xxh3_64_intdigest(head, segment_id)) + data[112:]


def test_each_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """A hint is believed without a look at the records, so no bit of it may be wrong."""
    path = tmp_path / "kv"
    full(path, 2)
    data = hint_files(path)[0].read_bytes()
    assert len(data) < 250
    with opened(path, "r") as kv:
        log, _ = kv._open_parts()
        segment, _ = next(iter(hints.sealed(log)))
        assert read(data, segment, log.segments.log_uuid, "here").records > 5
        for at in range(len(data)):
            for bit in range(8):
                damaged = bytearray(data)
                damaged[at] ^= 1 << bit
                with pytest.raises(OSError, match="here"):
                    read(bytes(damaged), segment, log.segments.log_uuid, "here")
        for size in range(len(data)):
            with pytest.raises(CorruptionError):
                read(data[:size], segment, log.segments.log_uuid, "here")
        with pytest.raises(CorruptionError):
            read(data + b"\0", segment, log.segments.log_uuid, "here")


def test_what_verifies_but_does_not_add_up_is_noticed(tmp_path: Path) -> None:
    """Offsets come from it, and lead into mapped memory."""
    path = tmp_path / "kv"
    full(path, 2)
    data = hint_files(path)[0].read_bytes()
    with opened(path, "r") as kv:
        log, _ = kv._open_parts()
        segment, _ = next(iter(hints.sealed(log)))
        (records,) = struct.unpack_from("<Q", data, 72)
        refused = 0
        for at in range(112 + 4 * records, len(data) - (records + 7) // 8):
            for value in range(256):
                changed = bytearray(data)
                changed[at] = value
                try:
                    read(resealed(bytes(changed), segment.id), segment, log.segments.log_uuid, "here")
                except CorruptionError as error:
                    assert "add up" in str(error)
                    refused += 1
        assert refused > 500


SPOILT: dict[str, Callable[[Path, Path], object]] = {
    "empty": lambda one, _: overwrite_whole(one, b""),
    "cut": lambda one, _: overwrite_whole(one, one.read_bytes()[:-1]),
    "flipped": lambda one, _: overwrite(one, b"\xff\xfe", 130),
    "of another segment": lambda one, other: overwrite_whole(one, other.read_bytes()),
    "of another log": lambda one, _: overwrite_whole(
        one, resealed(one.read_bytes()[:24] + bytes(16) + one.read_bytes()[40:], id_of(one))
    ),
    "stale": lambda one, _: overwrite_whole(
        one, resealed(one.read_bytes()[:56] + struct.pack("<Q", 3) + one.read_bytes()[64:], id_of(one))
    ),
    "newer": lambda one, _: overwrite_whole(
        one, resealed(one.read_bytes()[:8] + struct.pack("<I", 2) + one.read_bytes()[12:], id_of(one))
    ),
    "of a damaged version": lambda one, _: overwrite(one, struct.pack("<I", 2), 8),
    "with an unknown feature": lambda one, _: overwrite_whole(
        one, resealed(one.read_bytes()[:20] + struct.pack("<I", 1) + one.read_bytes()[24:], id_of(one))
    ),
    "a link": lambda one, other: (one.unlink(), one.symlink_to(other)),
}


def id_of(file: Path) -> int:
    """The segment that a hint is named after."""
    return int(file.name.split("-")[1][:16], 16)


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_hint_is_not_used(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong index is worse than a slow one. That it was slow is said."""
    path = tmp_path / "kv"
    content = full(path, 4)
    one, other, _ = hint_files(path)
    SPOILT[how](one, other)
    with caplog.at_level(logging.WARNING, "mmapkv"):
        found, _, told = rebuilt(path)
    assert found == content
    assert 0 < told < len(content)
    assert any("the records are read instead" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("flipped", range(3))
def test_an_opening_survives_each_flipped_byte(tmp_path: Path, flipped: int) -> None:
    """As a user meets it: the store opens, whatever a hint says."""
    path = tmp_path / "kv"
    content = full(path, 2)
    (file,) = hint_files(path)
    data = file.read_bytes()
    for at in range(flipped, len(data), 12):
        overwrite_whole(file, data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        lose(path, "INDEX")
        with opened(path, "r") as kv:
            assert dict(kv.items()) == content
        # That it is made again is another test's business.
        overwrite_whole(file, data)


LOST = ("CONTROL", "INDEX", "MANIFEST", "hints")


def refused(path: Path, manifest: Path) -> bool:
    """Whether a store whose MANIFEST is damaged says that it should be deleted."""
    overwrite_whole(manifest, manifest.read_bytes()[:-3])
    with pytest.raises(CorruptionError, match="delete it"):
        opened(path)
    return True


@pytest.mark.parametrize("lost", range(1, 16))
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_any_of_the_files_may_be_missing_or_damaged(tmp_path: Path, lost: int, how: str) -> None:
    """The segments are the truth, and everything else can be had from them."""
    path = tmp_path / "kv"
    content = full(path)
    for at, what in enumerate(LOST):
        if lost >> at & 1:
            for file in hint_files(path) if what == "hints" else [path / what]:
                if how == "missing" or (what == "MANIFEST" and refused(path, file)):
                    file.unlink()
                else:
                    data = file.read_bytes()
                    overwrite_whole(file, bytes(8) + data[8:] if what == "INDEX" else data[: len(data) // 2])
    with opened(path) as kv:
        assert agreeing(kv) == content
        kv[b"after"] = content[b"after"] = b"it"
    with opened(path, "r") as kv:
        assert agreeing(kv) == content


def test_a_hint_goes_with_its_segment(tmp_path: Path) -> None:
    """What goes with no segment takes room, and would be in the way of whoever looks."""
    path = tmp_path / "kv"
    full(path, 4)
    before = hint_files(path)
    with opened(path) as kv:
        for key in list(kv)[:15]:
            del kv[key]
        kv.compact()
        kv.flush()
        names = {hints.name_of(file.name) for file in path.glob("*.seg")}
        assert {file.name for file in hint_files(path)} <= names
        assert before[0] not in hint_files(path)
        # What compaction wrote has some, too.
        assert any(".compact." in file.name for file in hint_files(path))


def test_strays_are_swept(tmp_path: Path) -> None:
    """A writer was killed between removing a segment and its hint, or while he wrote one."""
    path = tmp_path / "kv"
    full(path)
    one, _ = hint_files(path)
    stray = path / f"{7:020}-{7:016x}.hint"
    unfinished = path / (one.name + ".tmp")
    bystander = path / "notes.hint"
    for file in (stray, unfinished, bystander):
        file.write_bytes(b"x")
    with opened(path, "r"):
        assert stray.exists()
    with opened(path):
        pass
    assert not stray.exists()
    assert not unfinished.exists()
    assert bystander.exists()
    opened(path, "n").close()
    assert hint_files(path) == [bystander]


def test_a_thread_makes_them_while_the_store_is_written(tmp_path: Path) -> None:
    """They are needed when the store was not closed."""
    path = tmp_path / "kv"

    def load() -> None:
        kv = KVStore.open(path, flush_policy=FlushPolicy.every_millis(1), segment_bytes=SEGMENT)
        for number in range(25):
            kv[b"%d" % number] = bytes(BIG)
        until(lambda: len(hint_files(path)) == 2)

    killed_after(load)
    assert len(hint_files(path)) == 2
    found, _, told = rebuilt(path)
    assert len(found) == 25
    assert told > 15


def test_who_flushes_makes_them_where_there_is_no_thread(tmp_path: Path) -> None:
    """What is not durable may be lost, and other records have its place: no hint may tell of it."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        for number in range(25):
            kv[b"%d" % number] = bytes(BIG)
        assert hint_files(path) == []
        kv.flush()
        assert len(hint_files(path)) == 2


def test_who_fills_many_segments_calls_the_thread_once(tmp_path: Path) -> None:
    """Until it has looked: each call would cost the writer the GIL."""
    with opened(tmp_path / "kv") as kv, mock.patch.object(Hinter, "_start", return_value=True):
        hinter = Hinter(kv, threaded=True)
        for _ in range(3):
            hinter.segment_filled()
        assert hinter._told.qsize() == 1
        hinter._told.get()
        with (
            mock.patch.object(hinter, "_rest"),
            mock.patch.object(hinter, "_made_all", side_effect=looking(hinter)),
        ):
            hinter._told.put(None)
            hinter._serve()
        hinter._ending = False
        hinter.segment_filled()
        hinter.segment_filled()
        assert hinter._told.qsize() == 1


def looking(hinter: Hinter) -> Callable[[], bool]:
    """A look that is the last one."""

    def look() -> bool:
        hinter._ending = True
        return True

    return look


def test_a_full_disk_costs_a_hint_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing needs it."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        for number in range(25):
            kv[b"%d" % number] = bytes(BIG)
        with (
            caplog.at_level(logging.WARNING, "mmapkv"),
            mock.patch("mmapkv.hints._os.write_at", side_effect=OSError(28, "No space left on device")),
        ):
            kv.flush()
        assert "no hint was made" in caplog.text
        assert [file for file in path.iterdir() if ".hint" in file.name] == []
        kv.flush()
        assert len(hint_files(path)) == 2


def test_a_segment_that_is_replaced_meanwhile_needs_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Compaction sweeps up the hint that is being made of it; that is nothing to be told of."""
    path, chance, model = tmp_path / "kv", random.Random(5), Content()
    replace = _os.replace_file

    def replaced(directory: Any, source: str, target: str) -> None:
        if target.endswith(hints.SUFFIX) and not compacted:
            compacted.append(kv.compact().segments_replaced)
        replace(directory, source, target)

    compacted: list[int] = []
    with opened(path) as kv:
        scribble(kv, chance, model, 1500)
        with mock.patch.object(_os, "replace_file", replaced), caplog.at_level(logging.WARNING):
            kv.flush()
        assert compacted[0] > 0
        assert not caplog.records
        make_all(kv)
        assert agreeing(kv) == model
    assert hint_files(path)


def test_one_that_is_being_made_is_not_swept_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When others are replaced meanwhile."""
    path, compacted = tmp_path / "kv", []
    replace = _os.replace_file

    def replaced(directory: Any, source: str, target: str) -> None:
        if target.endswith(hints.SUFFIX) and not compacted:
            compacted.append(kv.compact())
        replace(directory, source, target)

    content = full(path)
    for file in hint_files(path):
        file.unlink()
    with opened(path) as kv:
        with mock.patch.object(_os, "replace_file", replaced), caplog.at_level(logging.WARNING):
            kv.flush()
        assert len(hint_files(path)) == 2
        assert compacted[0].segments_replaced == 0
        assert not caplog.records
        assert agreeing(kv) == content


def test_verify_and_repair_know_them(tmp_path: Path) -> None:
    """What lies at rest is found at rest, not after the power cut for which it was kept."""
    path = tmp_path / "kv"
    content = full(path)
    assert verify(path).damages == ()
    one, other = hint_files(path)
    overwrite(one, b"\xff\xfe", 120)
    data = bytearray(other.read_bytes())
    data[113] ^= 1
    overwrite_whole(other, resealed(bytes(data), id_of(other)))
    assert [(each.path, each.reason) for each in verify(path).damages] == [
        (str(one), "the content of the hint does not match its checksum"),
        (str(other), "the hint does not say what the segment holds"),
    ]
    assert repair(path).changed
    assert verify(path).damages == ()
    assert hint_files(path) == []
    with opened(path) as kv:
        assert agreeing(kv) == content


def test_a_hint_whose_version_is_damaged_is_made_again(tmp_path: Path) -> None:
    """It was taken for one that a newer version wrote: nobody told, and it stayed, of no use."""
    path = tmp_path / "kv"
    content = full(path)
    one, _ = hint_files(path)
    good = one.read_bytes()
    overwrite(one, struct.pack("<I", 3), 8)
    assert [(each.path, each.reason) for each in verify(path).damages] == [
        (str(one), "the version in the header is damaged: it says 3")
    ]
    found, _, told = rebuilt(path)
    assert found == content
    assert told > 0
    assert one.read_bytes() == good
