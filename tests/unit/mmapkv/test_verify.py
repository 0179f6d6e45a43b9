"""Whatever is wrong with a store is found, and nothing is where nothing is wrong."""

from __future__ import annotations

import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmapkv import FormatError, KVStore, repair, verify
from mmapkv import verify as verify_path
from mmaplog import Log
from tests.support.plain_reader import check_store
from tests.support.waiting import until
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import in_child, killed_after, living_child
from tests.unit.mmapkv.index_words import (
    CLEAN,
    END,
    INCARNATION,
    ROOT,
    SEGMENTS,
    SLOTS,
    SLOTS_USED,
    SPARE,
    IndexWords,
)
from tests.unit.mmapkv.stores import NEVER, opened
from tests.unit.mmaplog.damage import overwrite
from tests.unit.mmaplog.segment_file import SegmentFile, segment_paths

#: Enough for several index segments, overflow lines and a spare.
COUNT = 9000


def fill(path: Path) -> KVStore:
    """Some keys, a third of them changed, some deleted, some put again."""
    kv = KVStore.open(path, flush_policy=NEVER, segment_bytes=256 << 10)
    for number in range(COUNT):
        kv[b"key %d" % number] = b"%d" % number * 3
    for number in range(0, COUNT, 3):
        kv[b"key %d" % number] = b"changed"
    for number in range(0, COUNT, 7):
        del kv[b"key %d" % number]
    for number in range(0, COUNT, 14):
        kv[b"key %d" % number] = b"again"
    return kv


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose writer was killed: its index is believed as it is, no checksum helps."""
    path = tmp_path_factory.mktemp("verify") / "kv"
    killed_after(lambda: fill(path))
    return path


@pytest.fixture
def words(store: Path) -> IndexWords:
    """Its index."""
    return IndexWords(store)


def reasons(path: Path, *, full: bool = True) -> list[str]:
    """What is wrong with a store."""
    return [each.reason for each in verify(path, full=full).damages]


def test_a_store_in_order(store: Path, words: IndexWords) -> None:
    """Counted as an independent reader counts."""
    content = check_store(store)
    with unchanged(store, ignoring=("LOCK",)):
        found = verify(store)
    assert (found.damages, found.omitted, found.note) == ((), 0, None)
    files = [SegmentFile(each) for each in segment_paths(store)]
    records = [record for file in files for record in file.records()]
    assert (found.segments, found.records) == (len(files), len(records))
    assert found.record_bytes == sum(record.size for record in records)
    assert found.keys == len(content)
    assert found.entries == COUNT == len(list(words.entries()))
    assert found.index_segments == len(words.segments) > 3
    assert 0 < found.live_bytes < found.record_bytes
    assert words[SPARE]
    assert any(len(words.chain(each, bucket)) > 1 for each in words.segments for bucket in range(512))


def test_the_quick_way_looks_at_the_index_alone(store: Path) -> None:
    """And at the records that it leads to."""
    found = verify(store, full=False)
    assert (found.entries, found.records, found.keys, found.damages) == (COUNT, 0, 0, ())


def test_progress_comes_to_an_end(store: Path) -> None:
    """In order, and never beyond what was announced."""
    told: list[tuple[int, int]] = []
    with opened(store, "r") as kv:
        kv.verify(progress=lambda done, total: told.append((done, total)))
    assert len({total for _, total in told}) == 1
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]


# In the index.


def first_chain(words: IndexWords, length: int) -> list[int]:
    """The lines of a bucket that has so many."""
    chains = (words.chain(each, bucket) for each in words.segments for bucket in range(512))
    return next(chain for chain in chains if len(chain) == length)


def used(words: IndexWords, number: int = 0) -> int:
    """Where some entry is."""
    return list(words.entries())[number][2]


def exchange(words: IndexWords, one: int, other: int) -> None:
    words[one], words[other] = words[other], words[one]


def drop_last_of_chain(words: IndexWords) -> None:
    line = first_chain(words, 2)[-1]
    last = next(at for at in range(line + 48, line - 8, -8) if words[at])
    words[last] = 0


def second_entry(words: IndexWords) -> None:
    """The entry of a key stands in its bucket twice."""
    line = next(line for _, _, at in words.entries() for line in [at // 64 * 64] if not words[line + 48])
    free = next(at for at in range(line, line + 56, 8) if not words[at])
    words[free] = words[line]


def older_version(words: IndexWords) -> None:
    """An entry leads to what its key had before."""
    first = SegmentFile(segment_paths(words.path.parent)[0])
    # Key 6 was put and changed; the other record of it is in another place.
    offset = next(each.offset for each in first.records() if each.payload[8:13] == b"key 6")
    tag, bucket = words.place_of(b"key 6")
    for segment, found, at in words.entries():
        if (segment, found) == bucket and words[at] >> 40 == tag:
            words[at] = tag << 40 | offset // 8


def cycle(words: IndexWords) -> None:
    lines = first_chain(words, 2)
    words[lines[1] + 56] = words[lines[0] + 56]


def shared_line(words: IndexWords) -> None:
    """Two chains go on in the same line."""
    chains = [
        words.chain(words.segments[0], bucket)
        for bucket in range(512)
        if len(words.chain(words.segments[0], bucket)) == 2
    ]
    words[chains[0][0] + 56] = words[chains[1][0] + 56]


PLANTED: dict[str, tuple[Callable[[IndexWords], object], str]] = {
    "an address": (lambda w: w.__setitem__(used(w), w[used(w)] ^ 4), "no record is"),
    "a slot": (lambda w: w.__setitem__(used(w), w[used(w)] ^ 1 << 38), "slot"),
    "a tag": (lambda w: w.__setitem__(used(w), w[used(w)] ^ 1 << 45), "tag"),
    "two entries changed places": (lambda w: exchange(w, used(w, 0), used(w, 100)), "belongs elsewhere"),
    "two segments changed places": (
        lambda w: exchange(w, w.directory[0], w.directory[-1]),
        "belongs elsewhere",
    ),
    "an entry is gone": (drop_last_of_chain, "no entry"),
    "two entries for a key": (second_entry, "another entry"),
    "an older version": (older_version, "is newer than record"),
    "an empty entry in between": (lambda w: w.__setitem__(first_chain(w, 2)[0] + 16, 0), "has no entry"),
    "a chain in a cycle": (cycle, "in a chain already"),
    "a line in two chains": (shared_line, "in a chain already"),
    "an overflow line too many": (
        lambda w: w.__setitem__(first_chain(w, 1)[0] + 56, 63),
        "overflow line 63",
    ),
    "fewer overflow lines taken": (lambda w: w.__setitem__(w.segments[0] + 8, 1), "are taken"),
    "too many overflow lines": (lambda w: w.__setitem__(w.segments[0] + 8, 64), "there are 63"),
    "a key too many": (lambda w: w.__setitem__(w.count_at, w[w.count_at] + 1), "the index counts"),
    "a key too few": (lambda w: w.__setitem__(w.count_at, w[w.count_at] - 1), "the index counts"),
    "an index segment too many": (lambda w: w.__setitem__(SEGMENTS, w[SEGMENTS] + 1), "the state counts"),
    "the spare is in use": (lambda w: w.__setitem__(SPARE, w.segments[1] // 4096), "the spare"),
    "the spare is the slot table": (lambda w: w.__setitem__(SPARE, 3), "makes no sense"),
    "the end too early": (lambda w: w.__setitem__(END, w.segments[-1]), "not in use"),
    "the end no page": (lambda w: w.__setitem__(END, w[END] + 8), "makes no sense"),
    "a directory word": (
        lambda w: w.__setitem__(w.directory[1], w[w.directory[1]] + (1 << 32)),
        "belongs elsewhere",
    ),
    "two runs that name one segment": (
        lambda w: w.__setitem__(w.directory[-1], w[w.directory[0]]),
        "overlaps another",
    ),
    "a run too short": (
        lambda w: w.__setitem__(w.directory[0], w[w.directory[0]] - (1 << 6)),
        "is not that of its run",
    ),
    "tags from another bit on": (
        lambda w: w.__setitem__(w.directory[0], w[w.directory[0]] ^ 1),
        "tag",
    ),
    "two slots for one segment": (lambda w: w.__setitem__(SLOTS + 8, w[SLOTS]), "slot 1 names"),
    "a slot for nothing": (lambda w: w.__setitem__(SLOTS, 0), "slot 0, which is free"),
    "a slot for what is not there": (lambda w: w.__setitem__(SLOTS, 12345), "0000000000003039"),
    "fewer slots": (lambda w: w.__setitem__(SLOTS_USED, 1), "1 are used"),
}


@pytest.mark.parametrize(("plant", "word"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_defect_of_the_index_is_found(
    store: Path, words: IndexWords, plant: Callable[[IndexWords], object], word: str
) -> None:
    """Named with its file, its place and what to do; and gone when the index is as it was."""
    plant(words)
    assert words.data != words.original
    with words.planted():
        found = in_child(lambda: verify(store))
    assert any(word in each.reason for each in found.damages), found.damages[:5]
    assert all(str(store) in each.path and each.remedy for each in found.damages)
    assert verify(store).damages == ()


def test_any_flipped_bit_of_the_index_is_found(store: Path, words: IndexWords) -> None:
    """Some of all that mean something: in state, slots, directory, entries and links."""
    chosen = random.Random(1)
    entries = [at for _, _, at in words.entries()]
    links = [
        line + 56
        for segment in words.segments
        for bucket in chosen.sample(range(512), 3)
        for line in words.chain(segment, bucket)
    ]
    # A generation is only ever compared with itself; what a link or an entry is not used for is 0.
    bits = [(at, bit) for at in chosen.sample(entries, 16) for bit in chosen.sample(range(64), 1)]
    bits += [(at, chosen.randrange(64)) for at in chosen.sample(links, 8)]
    bits += [(at, chosen.choice([*range(12), *range(32, 64)])) for at in words.directory]
    bits += [(at, chosen.randrange(64)) for at in range(SLOTS, SLOTS + 8 * words[SLOTS_USED], 8)]
    bits += [(at, bit) for at in (ROOT, SEGMENTS) for bit in range(0, 63, 9)]
    # More slots than were ever taken are so many free ones.
    bits += [(SLOTS_USED, bit) for bit in (0, *range(18, 63, 9))]
    bits += [(words.count_at, bit) for bit in range(0, 64, 16)]

    def missed() -> list[tuple[int, int]]:
        found = []
        for at, bit in bits:
            words[at] ^= 1 << bit
            with words.planted():
                seen = verify(store)
            if not seen.damages:
                found.append((at, bit))
        return found

    assert in_child(missed) == []


def test_an_index_that_is_not_believed_is_told_apart(tmp_path: Path) -> None:
    """Damaged, or only out of date: the records are looked at all the same."""
    path = tmp_path / "kv"
    killed_after(lambda: fill(path))
    index = IndexWords(path)
    overwrite(path / "INDEX", b"\x99", 45)
    found = verify(path)
    assert "header does not match" in found.damages[0].reason
    assert found.keys > 0
    overwrite(path / "INDEX", index.original[:64])
    overwrite(path / "INDEX", b"\x99" * 8, INCARNATION)
    found = verify(path)
    assert (found.damages, found.entries) == ((), 0)
    assert found.keys > 0
    assert "not closed" in str(found.note)
    (path / "INDEX").unlink()
    found = verify(path)
    assert (found.damages, found.note) == ((), "there is no index")


@pytest.mark.parametrize("control", [True, False], ids=["with CONTROL", "without CONTROL"])
def test_a_flipped_byte_of_a_closed_index_is_found(tmp_path: Path, control: bool) -> None:
    """By its checksums: anywhere in what is used, in a reader that has it open as well."""
    path = tmp_path / "kv"
    fill(path).close()
    with opened(path) as kv:
        kv[b"more"] = b"x"
    if not control:
        (path / "CONTROL").unlink()
    words = IndexWords(path)
    assert words[CLEAN] == 1
    assert verify(path).damages == ()
    missed = []
    for at in [
        16,
        44,
        520,
        4096 + 8,
        ROOT,
        SLOTS,
        *words.directory[:2],
        *range(words.segments[0], words[END], 7777),
    ]:
        words.data[at] ^= 0x10
        with words.planted():
            if not in_child(lambda: verify(path)).damages:
                missed.append(at)
    assert [at for at in missed if any(each <= at < each + 36864 for each in words.segments)] == []
    assert [at for at in missed if at < words.segments[0]] == []


# In the log.


def with_records(path: Path, *changes: tuple[bytes, bytes | None]) -> SegmentFile:
    """A closed store with one segment, taken apart."""
    with opened(path) as kv:
        for key, value in changes:
            if value is None:
                del kv[key]
            else:
                kv[key] = value
    return SegmentFile(segment_paths(path)[0])


CHANGES = ((b"one", b"1"), (b"two", b"2"), (b"one", b"11"), (b"two", None), (b"one", b"111"), (b"two", b"22"))

FORGED: dict[str, tuple[int, int, int, str]] = {
    "creates nothing": (0, 3, 0, "without naming a version before"),
    "a deletion first": (0, 2, 2, "without naming a version before"),
    "creates what is there": (2, 3, 3, "does not delete"),
    "replaces what is deleted": (5, 3, 2, "deletes"),
    "deletes and creates": (3, 3, 3, "says that it creates"),
    "another kind": (3, 2, 4, "kind 4"),
    "unknown flags": (3, 3, 10, "flags 0xa"),
    "an empty key": (1, 0, 0, "lengths do not add up"),
    "follows another's version": (4, 8, 1, "another key"),
    "follows itself": (4, 8, 4, "comes after it"),
    "follows the last but one": (4, 8, 0, "followed by another one"),
    "no zeros behind the key": (0, 11, 1, "other bytes than zeros"),
}


@pytest.mark.parametrize(("number", "at", "byte", "word"), FORGED.values(), ids=FORGED.keys())
def test_a_record_that_verifies_and_is_wrong_is_found(
    tmp_path: Path, number: int, at: int, byte: int, word: str
) -> None:
    """Its checksum says only that it is what was written."""
    path = tmp_path / "kv"
    segment = with_records(path, *CHANGES)
    assert verify(path).damages == ()
    record = list(segment.records())[number]
    segment.data[record.offset + 16 + at] = byte
    segment.reseal(record.offset)
    segment.save()
    found = verify(path)
    assert any(word in each.reason and f"record {number}" in each.reason for each in found.damages), found
    assert {each.path for each in found.damages} <= {str(segment.path), str(path / "INDEX")}
    assert record.offset in [each.offset for each in found.damages]


def test_a_version_that_none_follows_is_found(tmp_path: Path) -> None:
    """Two histories of one key, of which the index knows one."""
    path = tmp_path / "kv"
    segment = with_records(path, (b"k", b"1"), (b"k", b"2"), (b"k", b"3"))
    record = list(segment.records())[2]
    payload = bytearray(record.payload)
    # The third follows the first: so the second is followed by none.
    struct.pack_into("<Q", payload, 8, 0)
    segment.put_record(record.offset, record.seq, bytes(payload), lag=record.lag)
    segment.save()
    found = reasons(path)
    assert any("record 2 follows record 0" in each for each in found), found


def test_a_damaged_segment_is_reported_once(store: Path) -> None:
    """By the log; what cannot be looked at for that is no damage of the index."""
    segment = SegmentFile(segment_paths(store)[0])
    record = list(segment.records())[200]
    overwrite(segment.path, b"\xff", record.offset + 20)
    try:
        with opened(store, "r") as kv:
            found = kv.verify()
        assert [(each.path, each.offset) for each in found.damages] == [(str(segment.path), record.offset)]
        assert "backup" in found.damages[0].remedy
    finally:
        overwrite(
            segment.path, bytes(segment.data[record.offset + 20 : record.offset + 21]), record.offset + 20
        )
    assert reasons(store) == []


def test_many_consequences_are_counted(store: Path, words: IndexWords) -> None:
    """A whole index segment is empty: most of its keys are not described."""
    start = words.segments[0]
    words.data[start : start + 36864] = bytes(36864)
    with words.planted():
        found = verify(store)
    assert len(found.damages) == 100
    assert found.omitted > 1000


def test_a_log_that_does_not_open_is_a_damage(tmp_path: Path) -> None:
    """Not an exception: it is what was asked about."""
    path = tmp_path / "kv"
    with_records(path, *CHANGES)
    overwrite(path / "MANIFEST", b"\x00", 60)
    found = verify(path)
    assert len(found.damages) == 1
    assert "repair" in found.damages[0].remedy
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "nothing")


def test_more_numbers_than_are_kept_account_of_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is gone through again for each window, and finds the same."""
    from importlib import import_module

    path = tmp_path / "kv"
    segment = with_records(path, *CHANGES)
    record = list(segment.records())[4]
    for numbers in (1, 2, 5):
        monkeypatch.setattr(import_module("mmapkv.verify"), "NUMBERS_MAX", numbers)
        assert verify(path).damages == ()
    segment.data[record.offset + 16 + 8] = 0
    segment.reseal(record.offset)
    segment.save()
    expected = None
    for numbers in (1, 2, 5, 100):
        monkeypatch.setattr(import_module("mmapkv.verify"), "NUMBERS_MAX", numbers)
        found = [each for each in reasons(path) if "followed by another one" in each]
        assert found
        assert expected in (None, found)
        expected = found


@pytest.mark.parametrize("mode", ["r", "w"])
def test_beside_a_writer_at_work(tmp_path: Path, mode: str) -> None:
    """Splits, overwrites, deletions, of another process or another thread: nothing of that is damage."""
    path = tmp_path / "kv"
    fill(path).close()

    def write(kv: KVStore) -> Iterator[None]:
        chosen = random.Random(2)
        while True:
            for _ in range(100):
                kv[b"new %d" % chosen.randrange(40_000)] = b"x"
                kv.pop(b"key %d" % chosen.randrange(COUNT), None)
            yield

    if mode == "w":
        with opened(path, "w") as kv:
            writing = write(kv)
            told = kv.verify(progress=lambda *_: next(writing))
            assert told.damages == ()
            assert kv.verify().damages == ()
        return

    def work() -> object:
        kv = KVStore.open(path, "w", flush_policy=NEVER)
        writing = write(kv)
        threading.Thread(target=lambda: [time.sleep(next(writing) or 1e-3) for _ in iter(int, 1)]).start()
        return kv

    with living_child(work), opened(path, "r") as kv:
        before, turns = kv.stats()["committed"], 0

        def is_sound() -> bool:
            nonlocal turns
            turns += 1
            assert kv.verify().damages == ()
            # The number of keys may be the same again.
            return turns >= 5 and kv.stats()["committed"] > before

        until(is_sound)
        assert verify_path(path).damages == ()


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("line", [b"hi", b"a line of text that is no record of a store"])
def test_a_record_that_no_store_wrote(tmp_path: Path, known: bool, line: bytes) -> None:
    # Behind what the index had come to it was not looked at: all was well in a store that nobody could open,
    # and repair had nothing to do.
    with KVStore.open(tmp_path / "kv") as kv:
        kv["key"] = "value"
    with Log.open(tmp_path / "kv", "w") as log:
        log.append(line)
    if not known:
        (tmp_path / "kv" / "INDEX").unlink()
    (damage,) = verify(tmp_path / "kv").damages
    assert "record 1 is " in damage.reason
    assert "Log.truncate_after" in damage.remedy
    with pytest.raises(FormatError, match=r"Log\.truncate_after"), unchanged(tmp_path / "kv"):
        repair(tmp_path / "kv")
    with Log.open(tmp_path / "kv", "w") as log:
        log.truncate_after(1)
    assert verify(tmp_path / "kv").damages == ()
    with KVStore.open(tmp_path / "kv") as kv:
        assert dict(kv) == {b"key": b"value"}


@pytest.mark.parametrize("held", [False, True])
def test_what_compaction_leaves_is_sound(tmp_path: Path, held: bool) -> None:
    """Free slots, empty entries, records that do not tell what was before, versions kept for a snapshot."""
    path = tmp_path / "kv"
    chance = random.Random(7)
    with KVStore.open(path, segment_bytes=1 << 16) as kv:
        snapshot = None
        for step in range(6000):
            key = b"k%d" % chance.randrange(300)
            if chance.random() < 0.7:
                kv[key] = chance.randbytes(chance.randrange(200))
            else:
                kv.pop(key, None)
            if step % 1500 == 700:
                kv.compact()
            if step == 3000 and held:
                snapshot = kv.snapshot()
        assert kv.verify().damages == ()
        kv.compact()
        assert kv.verify().damages == ()
        if snapshot is not None:
            snapshot.close()
    assert verify(path).damages == ()


def test_a_segment_that_is_none_is_found_beside_a_writer(tmp_path: Path) -> None:
    """An earlier one is not looked at when a log is opened that somebody writes: it was an error later."""
    path = tmp_path / "kv"
    with KVStore.open(path, flush_policy=NEVER, segment_bytes=64 << 10) as kv:
        for number in range(100):
            kv[f"{number}"] = bytes(3000)
        first = segment_paths(path)[0]
        overwrite(first, b"garbage!", 0)
        [damage] = verify(path).damages
        assert damage.path == str(first)
        assert "not a segment" in damage.reason
        assert "mmapkv repair" in damage.remedy
