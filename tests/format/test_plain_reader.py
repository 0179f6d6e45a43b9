"""The reader written from the format pages, and the native code, must find the same in the same files.

Were either wrong about the format, or the pages, no release could be trusted with the stores of another.
"""

from __future__ import annotations

import itertools
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import mmapkv
from mmaplog import Log
from mmaplog.errors import CorruptionError
from tests.support import changes as changing
from tests.support.chosen_hashes import key_with_hash
from tests.support.plain_log import read_log
from tests.support.plain_reader import check_store, read_store, walk_index
from tests.support.tree import PROJECT

_NEVER = mmapkv.FlushPolicy.NEVER
_MANUAL = mmapkv.FlushPolicy.MANUAL
_STATE = 4096
_ROOT = _STATE + 64


def open_store(path: Path, policy: mmapkv.FlushPolicy = _NEVER) -> mmapkv.KVStore:
    """Compacted when the test says so: the plain reader sees files, which must not change meanwhile."""
    return mmapkv.KVStore.open(
        path, segment_bytes=changing.SEGMENT_BYTES, flush_policy=policy, compaction=False
    )


def agree(path: Path, store: mmapkv.KVStore, model: dict[bytes, bytes]) -> None:
    """Content, order and index, as the plain reader sees them and as the open store gives them."""
    assert check_store(path) == model
    assert list(store.items()) == list(model.items())
    assert len(store) == len(model)
    log = read_log(path)
    places = {(record.segment_id, record.offset): record for record in log.records}
    found = walk_index(log)
    assert found is not None, "the index is one that the next opening would not believe"
    assert list(read_store(log).items()) == list(model.items())
    for key, place in found.items():
        value = store.get(key)
        assert places[place].payload.endswith(value or b"")
        assert (value is not None) == (key in model)


def killed_writer(path: Path, seed: int, least: int) -> int:
    """Have another process change the store and kill it after `least` changes; how many it acknowledged."""
    program = PROJECT.root / "tests/support/changes.py"
    child = subprocess.Popen([sys.executable, str(program), str(path), str(seed)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    with child:
        done = len(child.stdout.read(least))
        child.kill()
        done += len(child.stdout.read())
    assert done >= least, "the writer ended by itself"
    return done


@pytest.mark.parametrize("seed", range(3))
def test_random_changes_are_read_alike(tmp_path: Path, seed: int) -> None:
    """A store that was written, closed, killed and rebuilt would not be what the pages say it is."""
    path = tmp_path / "store"
    model: dict[bytes, bytes] = {}
    for life in range(2):
        with open_store(path, random.Random(seed + life).choice((_NEVER, _MANUAL))) as store:
            for change in itertools.islice(changing.changes(1000 * seed + life), 120):
                changing.apply(store, change)
                changing.apply(model, change)
            agree(path, store, model)
        assert check_store(path) == model
        killing = 1000 * seed + 500 + life
        done = killed_writer(path, killing, 1 + 40 * life)
        stream = changing.changes(killing)
        for change in itertools.islice(stream, done):
            changing.apply(model, change)
        # The change that was under way may have been committed without being acknowledged.
        possible = [dict(model), dict(model)]
        changing.apply(possible[1], next(stream))
        assert check_store(path) in possible
        with open_store(path) as store:
            model = dict(store.items())
            assert model in possible
            agree(path, store, model)
    for lost in ("INDEX", "CONTROL", "MANIFEST"):
        (path / lost).unlink()
        assert check_store(path) == model
        with open_store(path) as store:
            agree(path, store, model)


@pytest.mark.parametrize("seed", range(3))
def test_what_compaction_leaves_is_read_alike(tmp_path: Path, seed: int) -> None:
    """With gaps in the numbers a record is not where its number says, and the version before may be gone."""
    path = tmp_path / "kv"
    chance = random.Random(seed)
    model: dict[bytes, bytes] = {}
    for _ in range(3):
        with open_store(path) as store:
            for _ in range(3):
                held = store.snapshot()
                for change in itertools.islice(changing.changes(chance.randrange(1000)), 200):
                    changing.apply(store, change)
                    changing.apply(model, change)
                if chance.random() < 0.5:
                    held.close()
                store.compact()
                agree(path, store, model)
                held.close()
            store.compact()
            assert len(read_log(path).records) < store.stats()["committed"]
        assert check_store(path) == model


def test_many_keys_are_read_alike(tmp_path: Path) -> None:
    """Splits, directories that doubled and overflow lines would lead a reader of the pages astray."""
    path = tmp_path / "store"
    with mmapkv.KVStore.open(path, flush_policy=_NEVER) as store:
        model = {b"%d" % number: b"" for number in range(12_000)}
        store.update(model)
        assert store.stats()["index_depth"] >= 2
        agree(path, store, model)


def test_tags_taken_afresh_are_read_alike(tmp_path: Path) -> None:
    """After 16 splits a segment's tags begin at a later bit; by the bits before it no key would be found."""
    path = tmp_path / "store"
    with mmapkv.KVStore.open(path, flush_policy=_NEVER) as store:
        (seed,) = struct.unpack_from("<Q", (path / "INDEX").read_bytes(), 40)
        # All in bucket 0, which has room for 63 keys: first 64 index segments, as fewer would not warrant so
        # deep a directory, then 64 keys that only the 17th bit of their hashes parts.
        hashes = [top << 58 | number << 52 for top in range(64) for number in range(33)]
        hashes += [number << 42 for number in range(64)]
        model = {key_with_hash(each, seed): b"" for each in hashes}
        store.update(model)
        assert store.stats()["index_depth"] == 17
        index = Index(path / "INDEX")
        assert index[index.directory] & 63 == 16, (
            "the tags of the deepest segment begin at the top of the hash"
        )
        agree(path, store, model)


@pytest.mark.parametrize("timestamps", [False, True])
def test_logs_are_read_alike(tmp_path: Path, timestamps: bool) -> None:
    """A number, a time or a payload would differ between the two readers of one log."""
    path, rng = tmp_path / "log", random.Random(5)
    with Log.open(
        path, timestamps=timestamps, segment_bytes=changing.SEGMENT_BYTES, flush_policy=_NEVER
    ) as log:
        for _ in range(60):
            log.append(rng.randbytes(rng.choice((0, 1, 7, 8, 5000, 90_000))))
        entries = [(entry.seq, bytes(entry.payload), entry.timestamp) for entry in log.replay()]
        assert [record[:3] for record in read_log(path).records] == entries
    assert all((time is not None) == timestamps for _, _, time in entries)
    for lost in ("CONTROL", "MANIFEST"):
        (path / lost).unlink()
        assert [record[:3] for record in read_log(path).records] == entries


def cut_after(path: Path, count: int) -> None:
    """Damage the record with that number, and make CONTROL useless, as a power cut does."""
    log = read_log(path)
    record = log.records[count]
    name = next(segment.name for segment in log.segments if segment.id == record.segment_id)
    flip(path / name, record.offset + 16)
    (path / "CONTROL").unlink()


def test_a_torn_tail_ends_the_log_for_both(tmp_path: Path) -> None:
    """What lies behind a torn record, never durable, would be read by one of the two."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=_NEVER) as log:
        for number in range(20):
            log.append(b"%d" % number)
    cut_after(path, 12)
    records = read_log(path).records
    assert [record.payload for record in records] == [b"%d" % number for number in range(12)]
    with Log.open(path) as log:
        assert [bytes(entry.payload) for entry in log.replay()] == [record.payload for record in records]
        log.append(b"new")
        # The stale records behind the end still verify; the boundary keeps them out.
        assert [record.payload for record in read_log(path).records][12:] == [b"new"]
    (path / "CONTROL").unlink()
    assert [record.payload for record in read_log(path).records][12:] == [b"new"]


def test_a_witness_is_heard_by_both(tmp_path: Path) -> None:
    """Damage to a record that had been durable would be taken for a torn tail, and cut off."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=_NEVER) as log:
        for number in range(20):
            log.append(b"%d" % number, durable=number == 14)
    cut_after(path, 12)
    with pytest.raises(CorruptionError, match="records 12 to 14 were durable"):
        Log.open(path)
    with pytest.raises(AssertionError, match="records 12 to 14 were durable"):
        read_log(path)


# ---- controls: what is planted must be found ----


def flip(path: Path, offset: int, mask: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a chain and a few segments, closed without a clean mark: no checksum covers its index."""
    path = tmp_path_factory.mktemp("small") / "store"
    with open_store(path) as store:
        (seed,) = struct.unpack_from("<Q", (path / "INDEX").read_bytes(), 40)
        for number in range(9):
            # Bucket 5: one line and two entries of the next.
            store[key_with_hash(number << 60 | 5, seed)] = bytes(20_000)
        del store[key_with_hash(5, seed)]
    return path


@pytest.fixture
def planted(small_store: Path) -> Callable[[Callable[[], None]], None]:
    """Do something to the files, check the store, put the files back."""

    def plant(change: Callable[[], None]) -> None:
        before = {entry: entry.read_bytes() for entry in small_store.iterdir()}
        try:
            change()
            check_store(small_store)
        finally:
            # Not replaced: CONTROL is known by its inode.
            for entry, data in before.items():
                with entry.open("r+b") as file:
                    file.write(data)

    return plant


def test_every_flipped_byte_of_a_record_is_found(
    small_store: Path, planted: Callable[[Callable[[], None]], None]
) -> None:
    """A reader that misses damage would bless a broken store in every suite that checks with it."""
    record = read_log(small_store).records[-1]
    name = next(each.name for each in read_log(small_store).segments if each.id == record.segment_id)
    assert check_store(small_store)
    for offset in range(record.offset, record.offset + 16 + len(record.payload) + 7 & ~7):
        with pytest.raises(AssertionError):
            planted(partial(flip, small_store / name, offset))


class Index:
    """A copy of the file, with names for the places of the one index segment it has."""

    def __init__(self, path: Path) -> None:
        self.data = bytearray(path.read_bytes())
        self.directory = 4096 * (self[_ROOT] >> 8)
        self.segment = 4096 * (self[self.directory] >> 32)
        self.applied = _STATE + 8 + 16 * (self[_STATE] & 1)

    def __getitem__(self, offset: int) -> int:
        return int.from_bytes(self.data[offset : offset + 8], "little")

    def __setitem__(self, offset: int, word: int) -> None:
        self.data[offset : offset + 8] = word.to_bytes(8, "little")

    def bucket(self, number: int, cell: int = 0) -> int:
        """The offset of a cell; the overflow lines follow bucket 511, cell 7 is the link."""
        return self.segment + 64 * (1 + number) + 8 * cell


def _entry_gone(index: Index) -> None:
    index[index.bucket(512, 1)] = 0


def _gap(index: Index) -> None:
    index[index.bucket(5, 3)] = 0


def _wrong_tag(index: Index) -> None:
    index[index.bucket(5)] ^= 1 << 50


def _wrong_place(index: Index) -> None:
    index[index.bucket(5)] += 1


def _stale_place(index: Index) -> None:
    # The deleted key's entry leads to the record before the deletion: the first of all.
    index[index.bucket(5)] = index[index.bucket(5)] & ~((1 << 40) - 1) | 4096 // 8


def _unused_slot(index: Index) -> None:
    index[index.bucket(5)] ^= 1 << 39


def _second_entry(index: Index) -> None:
    index[index.bucket(512, 2)] = index[index.bucket(5)]


def _wrong_bucket(index: Index) -> None:
    index[index.bucket(6)] = index[index.bucket(512, 1)]
    index[index.bucket(512, 1)] = 0


def _two_chains(index: Index) -> None:
    for cell in range(8):
        index[index.bucket(4, cell)] = index[index.bucket(5, cell)]
    # Buckets are gone through in order: make the first one's own entries right.
    for cell in range(7):
        index[index.bucket(5, cell)] = index[index.bucket(4, cell)]


def _loop(index: Index) -> None:
    for cell in range(2, 7):
        index[index.bucket(512, cell)] = index[index.bucket(5)]
    index[index.bucket(512, 7)] = 1


def _line_not_taken(index: Index) -> None:
    index[index.segment + 8] = 0


def _tag_base(index: Index) -> None:
    index[index.directory] += 1


def _too_deep(index: Index) -> None:
    index[index.directory] += 1 << 6


def _page_outside(index: Index) -> None:
    index[index.directory] += 1 << 63


def _count(index: Index) -> None:
    index[index.applied + 8] += 1


def _applied(index: Index) -> None:
    index[index.applied] -= 3


def _ahead(index: Index) -> None:
    index[index.applied] += 1


def _segments(index: Index) -> None:
    index[_STATE + 168] += 1


def _end(index: Index) -> None:
    index[_STATE + 136] -= 4096


def _spare(index: Index) -> None:
    index[_STATE + 144] = index.segment // 4096


def _twin_slots(index: Index) -> None:
    index[8192] = index[8200]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_entry_gone, "has no entry"),
        (_gap, "has no entry"),
        (_wrong_tag, "has the tag"),
        (_wrong_place, "no record"),
        (_stale_place, "leads not to record 9"),
        (_unused_slot, "which is not used"),
        (_second_entry, "has a second entry"),
        (_wrong_bucket, "the wrong one"),
        (_two_chains, "the wrong one|is in two chains"),
        (_loop, "second entry|is in two chains"),
        (_line_not_taken, "leads to line 1 of 0"),
        (_tag_base, "are spent"),
        (_too_deep, "is deeper than the directory"),
        (_page_outside, "reaches beyond the end"),
        (_count, "the index counts 9 keys, there are 8"),
        (_applied, "the index counts|must not hold yet"),
        (_ahead, "the index holds 11 records, the log 10"),
        (_segments, "1 index segments, the state says 2"),
        (_end, "reaches beyond the end"),
        (_spare, "overlaps"),
        (_twin_slots, "names the segment of another"),
    ],
)
def test_every_planted_fault_of_an_index_is_found(
    small_store: Path,
    planted: Callable[[Callable[[], None]], None],
    damage: Callable[[Index], None],
    complaint: str,
) -> None:
    """A walker that misses a broken invariant would bless broken indexes in every suite that uses it."""

    def change() -> None:
        index = Index(small_store / "INDEX")
        damage(index)
        with (small_store / "INDEX").open("r+b") as file:
            file.write(index.data)

    with pytest.raises(AssertionError, match=complaint):
        planted(change)


def test_every_part_of_a_clean_index_is_sealed(tmp_path: Path) -> None:
    """After a clean close a flipped bit in what is used of an index would go by unseen."""
    path = tmp_path / "store"
    with open_store(path, _MANUAL) as store:
        store.update({b"%d" % number: b"" for number in range(50)})
    index = Index(path / "INDEX")
    assert check_store(path)
    used = [*range(_STATE, _STATE + 128), *range(_STATE + 136, _STATE + 256), *range(8192, 8200)]
    used += [
        *range(index.directory, index.directory + 8),
        *range(index.segment, index.segment + 9 * 4096, 97),
    ]
    for offset in used:
        # The mark and what says where it counts are judged as a whole: without `clean` there is none.
        if _STATE + 72 <= offset < _STATE + 80:
            continue
        flip(path / "INDEX", offset, 1 << offset % 8)
        found: object = "nothing"
        try:
            found = walk_index(read_log(path))
        except AssertionError:
            found = None
        assert found is None, f"a bit flipped at offset {offset} is not noticed"
        flip(path / "INDEX", offset, 1 << offset % 8)
    assert walk_index(read_log(path)) is not None


def test_a_copy_is_read_without_its_control(small_store: Path, tmp_path: Path) -> None:
    """A copied CONTROL speaks of another file: believing it would cut or extend the copy's log."""
    copy = shutil.copytree(small_store, tmp_path / "copy")
    assert read_log(small_store).control is not None
    assert read_log(copy).control is None
    assert check_store(copy) == check_store(small_store)
