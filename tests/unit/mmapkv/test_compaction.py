"""Compacting a store: the same to see for everybody, in less room."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmapio import FlushPolicy, _os
from mmapio.errors import InvalidMode
from mmapkv import KVStore, Snapshot, compaction
from mmapkv.victims import Choice
from tests.crash.child import Child
from tests.unit.mmapkv.index_words import COUNTING, IndexWords

SEGMENT = 64 << 10
KEYS = [b"key %d" % number for number in range(150)]


def opened(path: Path) -> KVStore:
    """A writer whose segments are as small as can be."""
    return KVStore.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT, compaction=False)


def segment_bytes(path: Path) -> int:
    """What the segments take on the disk."""
    return sum(512 * entry.stat().st_blocks for entry in path.glob("*.seg"))


def require_same(store: KVStore | Snapshot, model: dict[bytes, bytes]) -> None:
    """A walk goes by the log, look-ups by the index; both must be the dict's."""
    assert dict(store.items()) == model
    assert len(store) == len(model)
    assert [store.get(key) for key in KEYS] == [model.get(key) for key in KEYS]


def change_many(chance: random.Random, store: KVStore, model: dict[bytes, bytes]) -> None:
    """The same in a store and a dict, by two batches."""
    put = {key: chance.randbytes(50) for key in chance.sample(KEYS, 20)}
    store.put_many(put)
    model.update(put)
    gone = chance.sample(KEYS, 20)
    store.delete_many(gone)
    for key in gone:
        model.pop(key, None)


@pytest.mark.parametrize("seed", range(4))
def test_a_store_that_is_compacted_now_and_then_is_a_dict(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "kv"
    model: dict[bytes, bytes] = {}
    store, reader = opened(path), KVStore.open(path, "r")
    walks: list[tuple[Iterator[tuple[bytes, bytes]], dict[bytes, bytes]]] = []
    snapshots: list[tuple[Snapshot, dict[bytes, bytes]]] = []
    for _ in range(40):
        for _ in range(chance.randrange(200)):
            key = chance.choice(KEYS)
            if chance.random() < 0.3:
                assert store.pop(key, None) == model.pop(key, None)
            else:
                store[key] = model[key] = chance.randbytes(chance.randrange(400))
        change_many(chance, store, model)
        what = chance.random()
        if what < 0.4:
            store.compact()
        elif what < 0.6:
            walks.append((iter(chance.choice((store, reader)).items()), dict(model)))
            snapshots.append((chance.choice((store, reader)).snapshot(), dict(model)))
        elif what < 0.75 and walks:
            walk, seen = walks.pop(chance.randrange(len(walks)))
            assert dict(walk) == seen
            snapshot, seen = snapshots.pop(chance.randrange(len(snapshots)))
            require_same(snapshot, seen)
            snapshot.close()
        elif what < 0.85:
            walks.clear()
            snapshots.clear()
            store.close()
            reader.close()
            if what < 0.8:
                (path / "INDEX").unlink()
            store, reader = opened(path), KVStore.open(path, "r")
        require_same(store, model)
        require_same(reader, model)
    store.close()
    reader.close()


def test_what_is_superseded_or_deleted_leaves(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as store:
        for _ in range(5):
            store.update((key, os.urandom(1000)) for key in KEYS)
        for key in KEYS[1:]:
            del store[key]
        before = segment_bytes(tmp_path / "kv")
        done = store.compact()
        assert done.records_removed == 5 * len(KEYS) - 1 + len(KEYS) - 1
        assert done.segments_replaced > done.segments_written == 1
        after = segment_bytes(tmp_path / "kv")
        assert after < before // 4
        # Two segments: what is left, and the one that is written next.
        assert len(list((tmp_path / "kv").glob("*.seg"))) == 2
        assert len(store._log) == 1
        assert list(store) == KEYS[:1]
        assert store.compact().segments_replaced == 0


def test_a_step_of_the_only_writer_looks_at_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows what is there, and which hints go with what it removes."""
    path = tmp_path / "kv"
    looks: list[str] = []

    def first(found: list[tuple[int, int, int, int, int]], needed: int) -> Choice | None:
        dead = [segment_id for _, _, segment_id, _, dead in found if dead]
        return Choice(dead[:1], dead[0], 0, 0, SEGMENT) if dead else None

    with KVStore.open(
        path, flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT, compaction=False
    ) as store:
        store.update((key, os.urandom(2000)) for key in KEYS)
        store.update((key, os.urandom(2000)) for key in KEYS[::2])
        store.flush()
        assert len(list(path.glob("*.hint"))) > 2
        model = dict(store)
        assert compaction.step(store, store._pins, first, None) is not None
        real = _os.list_directory
        monkeypatch.setattr(_os, "list_directory", lambda *given: (looks.append("list"), real(*given))[1])
        assert compaction.step(store, store._pins, first, None) is not None
        assert looks == []
        assert len(list(path.glob("*.compact.seg"))) == 2
        names = {name.stem for name in path.glob("*.seg")}
        assert {name.stem for name in path.glob("*.hint")} <= names
        assert dict(store) == model


def test_a_tombstone_stays_while_what_it_hides_is_there(tmp_path: Path) -> None:
    """A walk keeps the old value; without the tombstone an index built from the log would bring it back."""
    path = tmp_path / "kv"
    with opened(path) as store:
        store.update((key, bytes(1000)) for key in KEYS)
        walk = iter(store.items())
        del store[KEYS[0]]
        store.compact()
        (path / "INDEX").unlink()
        store._rebuild_index(store._parts()[1])  # type: ignore[arg-type]
        assert KEYS[0] not in store
        assert len(store) == len(KEYS) - 1
        assert dict(walk) == dict.fromkeys(KEYS, bytes(1000))
        assert store.compact().records_removed == 2


def test_a_walk_of_another_process_keeps_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    store = opened(path)
    store.update((key, b"old" * 300) for key in KEYS)
    going, gone = os.pipe()
    again, on = os.pipe()

    def walk() -> dict[bytes, bytes]:
        with KVStore.open(path, "r") as reader:
            begun = iter(reader.items())
            first = next(begun)
            os.write(gone, b"+")
            os.read(again, 1)
            return dict([first, *begun])

    def body(_: object) -> None:
        assert walk() == dict.fromkeys(KEYS, b"old" * 300)
        os.write(gone, b"=")

    child = Child(body)
    os.read(going, 1)
    for _ in range(2):
        store.update((key, b"new" * 300) for key in KEYS)
        store.compact()
    os.write(on, b"+")
    assert os.read(going, 1) == b"="
    assert child.kill() == ""
    # Nobody needs them now.
    assert store.compact().records_removed == 2 * len(KEYS)
    store.close()


def test_a_reader_of_another_process_never_sees_a_wrong_value(tmp_path: Path) -> None:
    """Slots are used again, and entries led elsewhere, under its eyes."""
    path = tmp_path / "kv"
    store = opened(path)
    store.update((key, b"%b 0" % key * 30) for key in KEYS)
    going, gone = os.pipe()

    def body(_: object) -> None:
        newest = dict.fromkeys(KEYS, 0)
        with KVStore.open(path, "r") as reader:
            os.write(gone, b"+")
            while b"end" not in reader:
                for key in KEYS:
                    value = reader[key]
                    number = int(value[: len(value) // 30].rpartition(b" ")[2])
                    assert value == b"%b %d" % (key, number) * 30
                    assert number >= newest[key]
                    newest[key] = number
        os.write(gone, b"=")

    child = Child(body)
    os.read(going, 1)
    for turn in range(1, 40):
        store.update((key, b"%b %d" % (key, turn) * 30) for key in KEYS[turn % 3 :: 2])
        store.compact()
    store[b"end"] = b""
    said = os.read(going, 1)
    assert (said, child.kill()) == (b"=", "")
    store.close()


def test_a_store_without_its_index_is_the_same_after_a_compaction(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    with opened(path) as store:
        for turn in range(3):
            store.update((key, b"%d" % turn * 500) for key in KEYS)
            for key in KEYS[turn::5]:
                del store[key]
        store.compact()
        model = dict(store.items())
    (path / "INDEX").unlink()
    with opened(path) as store:
        require_same(store, model)
        store.compact()
        require_same(store, model)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    """It is told of each segment, and may be where it ends: what was not reached is as it was."""
    told: list[tuple[int, int]] = []

    class Enough(Exception):
        pass

    def until_the_third(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 3:
            raise Enough

    with opened(tmp_path / "kv") as store:
        store.compact(progress=until_the_third)
        assert told == []
        for number in range(4000):
            store[KEYS[number % len(KEYS)]] = b"%d" % number * 20
        segments = store.stats()["segments"]
        assert segments >= 5
        content = dict(store)
        with pytest.raises(Enough):
            store.compact(progress=until_the_third)
        assert dict(store) == content
        told.clear()
        assert store.compact(progress=lambda *each: told.append(each)).records_removed > 2000
        assert [each for each, _ in told] == sorted({each for each, _ in told})
        assert told[0][0] == 0 < told[0][1] == told[-1][0]
        assert {total for _, total in told} == {told[0][1]}
        assert dict(store) == content
        with pytest.raises(ValueError, match=r"stats\(\)"):
            store.compact(background=True, progress=print)  # type: ignore[call-overload]


def test_a_reader_cannot_compact(tmp_path: Path) -> None:
    opened(tmp_path / "kv").close()
    with KVStore.open(tmp_path / "kv", "r") as reader, pytest.raises(InvalidMode):
        reader.compact()


SHORT = 1e-6
LONG = 1e6


def test_what_has_expired_leaves(tmp_path: Path) -> None:
    """And is not counted any more; nor is it in an index built from what is left."""
    path = tmp_path / "kv"
    with opened(path) as store:
        store.update((key, b"before" * 50) for key in KEYS)
        for at, key in enumerate(KEYS):
            store.put(key, b"short" * 50, ttl=SHORT if at % 2 else LONG)
        store.put(b"never seen again", b"", ttl=SHORT)
        assert len(store) == len(KEYS) + 1
        assert store.compact().records_removed == len(KEYS) + len(KEYS) // 2 + 1
        require_same(store, dict.fromkeys(KEYS[::2], b"short" * 50))
        assert store.compact().segments_replaced == 0
        store[KEYS[1]] = b"again"
        assert store.verify().damages == ()
    (path / "INDEX").unlink()
    with opened(path) as store:
        require_same(store, dict.fromkeys(KEYS[::2], b"short" * 50) | {KEYS[1]: b"again"})


def test_what_has_expired_stays_while_what_it_hides_is_there(tmp_path: Path) -> None:
    """A walk keeps the old value, an index built from the log would bring it back."""
    path = tmp_path / "kv"
    with opened(path) as store:
        store.update((key, bytes(1000)) for key in KEYS)
        walk = iter(store.items())
        store.put(KEYS[0], b"", ttl=SHORT)
        store.compact()
        (path / "INDEX").unlink()
        store._rebuild_index(store._parts()[1])  # type: ignore[arg-type]
        assert KEYS[0] not in store
        assert dict(walk) == dict.fromkeys(KEYS, bytes(1000))
        assert store.compact().records_removed == 2
        assert len(store) == len(KEYS) - 1


def test_a_snapshot_keeps_what_lived_when_it_was_taken(tmp_path: Path) -> None:
    """Though it is over by now, and though nothing is newer than it."""
    with opened(tmp_path / "kv") as store:
        store.update((key, bytes(100)) for key in KEYS)
        ttl = 0.01
        while True:
            store.put(b"short", b"lived", ttl=ttl)
            snapshot = store.snapshot()
            if b"short" in snapshot:
                break
            # The machine was busy.
            ttl *= 2
        while b"short" in store:
            continue
        store.compact()
        assert snapshot[b"short"] == b"lived"
        assert len(store) == len(KEYS) + 1
        snapshot.close()
        del snapshot
        store.compact()
        assert len(store) == len(KEYS)


@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_count_that_is_not_certain_is_counted_again(tmp_path: Path, mode: str) -> None:
    """Whoever was killed while he took expired keys out of it has left that word behind."""
    path = tmp_path / "kv"

    def writer() -> None:
        store = opened(path)
        store.update((key, b"") for key in KEYS)
        # Not closed: it is as if killed.
        os._exit(0)

    child = multiprocessing.get_context("fork").Process(target=writer)
    child.start()
    child.join()
    words = IndexWords(path)
    words[COUNTING] = 1
    words[words.count_at] -= 3
    (path / "INDEX").write_bytes(words.data)
    with KVStore.open(path, mode) as store:
        assert len(store) == len(KEYS)
        assert IndexWords(path)[COUNTING] == 0


def test_a_key_that_is_put_while_its_deletion_leaves(tmp_path: Path) -> None:
    """Its new record leads to the deletion, which is gone; a snapshot from in between must not mind."""
    with opened(tmp_path / "kv") as store:
        store.update((key, bytes(100)) for key in KEYS)
        del store[KEYS[0]]
        taken: list[Snapshot] = []

        def meanwhile() -> None:
            # The segments have been gone through, nothing is written yet.
            if not taken:
                taken.append(store.snapshot())
                store[KEYS[0]] = b"again"

        assert compaction.compact(store, store._pins, meanwhile).records_removed == 2
        assert taken[0].get(KEYS[0]) is None
        assert dict(taken[0]) == dict.fromkeys(KEYS[1:], bytes(100))
        assert dict(store) == dict.fromkeys(KEYS[1:], bytes(100)) | {KEYS[0]: b"again"}
        assert store.verify().damages == ()


@pytest.mark.parametrize("keys", [1, 3, 100], ids=["one key", "some keys", "more than are told at a time"])
def test_of_keys_that_are_written_to_all_the_time(tmp_path: Path, keys: int) -> None:
    """Of each version below what is needed one stays, wherever in its segments the others are."""
    path = tmp_path / "kv"
    names = [b"hot %d" % number for number in range(keys)]
    model: dict[bytes, bytes] = {}
    snapshots: list[tuple[Snapshot, dict[bytes, bytes]]] = []
    with opened(path) as store:
        for turn in range(60):
            if turn in (20, 21, 50):
                snapshots.append((store.snapshot(), dict(model)))
            for name in names:
                store[name] = model[name] = b"%d" % turn * 200
        # 40 versions since the first of them are more than are gone through for each record.
        store.compact()
        changed = [change.key for change in store.changes(0, too_old="skip")]
        for snapshot, seen in snapshots:
            require_same(snapshot, seen)
        require_same(store, model)
        # The one that was current at the first snapshot, and what came since.
        assert [changed.count(name) for name in names] == [41] * keys
        for snapshot, _ in snapshots:
            snapshot.close()
        store.compact()
        require_same(store, model)
        assert store.verify().damages == ()
    (path / "INDEX").unlink()
    with opened(path) as store:
        require_same(store, model)
