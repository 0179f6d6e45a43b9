"""A store, a namespace or a transaction as a queue: put and popitem in turn."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore
from mmapkv.codecs import Json
from tests.unit.mmapkv.stores import MANUAL, SEGMENT, opened


class WatchedStore(KVStore):
    """Notes which records its walks are to read."""

    ranges: list[range]

    def _walk_until(self, stop: int, cleared: int, *rest: Any) -> Any:
        self.ranges.append(range(cleared, stop))
        return super()._walk_until(stop, cleared, *rest)


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[WatchedStore]:
    """A store that compacts when it is told to."""
    with WatchedStore.open(
        tmp_path / "kv", flush_policy=MANUAL, segment_bytes=SEGMENT, compaction=False
    ) as made:
        made.ranges = []
        yield made


@pytest.mark.parametrize("waiting", [0, 1, 5])
def test_each_walk_begins_where_the_last_one_ended(kv: WatchedStore, waiting: int) -> None:
    """So that a queue reads each of its records once or twice, however long it has been in use."""
    rounds = 500
    for number in range(waiting):
        kv[b"%d" % number] = b"v"
    for number in range(waiting, waiting + rounds):
        kv[b"%d" % number] = b"v"
        assert kv.popitem() == (b"%d" % (number - waiting), b"v")
    assert len(kv) == waiting
    written = kv.stats()["records"]
    assert sum(map(len, kv.ranges)) <= written
    assert all(after.start == before.stop for before, after in zip(kv.ranges, kv.ranges[1:], strict=False))


def test_a_queue_that_runs_empty_goes_on_where_it_was(kv: WatchedStore) -> None:
    """An empty store is no reason to look for anything."""
    for number in range(100):
        kv[b"%d" % number] = b"v"
        assert kv.popitem() == (b"%d" % number, b"v")
        with pytest.raises(KeyError, match="the store is empty"):
            kv.popitem()
    assert sum(map(len, kv.ranges)) <= kv.stats()["records"]


def test_what_has_expired_is_passed_once(kv: WatchedStore) -> None:
    """It counts, but is not there to be taken; nobody need come by it again unless nothing else is found."""
    kv.put_many([(b"e%d" % number, b"v") for number in range(300)], ttl=0.001)
    time.sleep(0.002)
    for number in range(100):
        kv[b"%d" % number] = b"v"
        assert kv.popitem() == (b"%d" % number, b"v")
    assert sum(map(len, kv.ranges)) <= kv.stats()["records"]
    with pytest.raises(KeyError):
        kv.popitem()
    assert len(kv) == 300


def test_what_a_walk_passed_without_taking_it_is_found_before_the_store_counts_as_empty(
    kv: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removal may fail, and the walk has gone on."""
    kv.update({b"a": b"1", b"b": b"2"})
    with monkeypatch.context() as patched:

        def fails(*_: object) -> None:
            raise OSError("no space")

        patched.setattr(WatchedStore, "pop", fails)
        with pytest.raises(OSError, match="no space"):
            kv.popitem()
    assert kv.popitem() == (b"b", b"2")
    kv[b"c"] = b"3"
    assert kv.popitem() == (b"c", b"3")
    assert kv.popitem() == (b"a", b"1")
    with pytest.raises(KeyError):
        kv.popitem()


def test_compaction_between_does_not_matter(kv: WatchedStore) -> None:
    """A walk that finds itself too old is followed by one from the beginning."""
    for number in range(50):
        kv[b"%d" % number] = b"v"
    for number in range(50):
        kv[b"%d" % (number + 50)] = b"v"
        kv[b"%d" % (number + 1)] = b"w"
        kv.compact()
        assert kv.popitem()[0] not in kv
    left = dict(kv)
    assert dict(kv.popitem() for _ in range(len(kv))) == left
    with pytest.raises(KeyError):
        kv.popitem()


@pytest.mark.parametrize("seed", range(4))
def test_it_takes_what_there_is_and_each_once(tmp_path: Path, seed: int) -> None:
    """Among all else that may be done to a store."""
    rng = random.Random(seed)
    model: dict[bytes, bytes] = {}
    with opened(tmp_path / "kv") as kv:
        for step in range(800):
            key = b"%d" % rng.randrange(20)
            action = rng.randrange(12)
            if action < 5:
                kv[key] = model[key] = b"%d" % step
            elif action == 5:
                assert kv.pop(key, None) == model.pop(key, None)
            elif action == 6 and rng.random() < 0.1:
                kv.clear()
                model.clear()
            elif action == 7 and rng.random() < 0.3:
                kv.compact()
            elif model:
                key, value = kv.popitem()
                assert model.pop(key) == value
            else:
                with pytest.raises(KeyError):
                    kv.popitem()
        for _ in range(len(model)):
            key, value = kv.popitem()
            assert model.pop(key) == value
        assert not model
        with pytest.raises(KeyError):
            kv.popitem()


def test_a_namespace_goes_on_where_it_was(kv: WatchedStore) -> None:
    """Beside the keys of others, and when it runs empty, which no number tells it."""
    kv["other"] = "v"
    part = kv.namespace("part/")
    for number in range(200):
        part[b"%d" % number] = b"v"
        kv[b"other%d" % number] = b"o"
        assert part.popitem() == (b"%d" % number, b"v")
        with pytest.raises(KeyError, match="the namespace is empty"):
            part.popitem()
    assert sum(map(len, kv.ranges)) <= kv.stats()["records"]
    assert len(kv) == 201


def test_what_a_namespace_could_not_decode_is_found_again(kv: WatchedStore) -> None:
    """It is not removed, and the walk has gone on."""
    part = kv.namespace("part/").typed(Json())
    kv["part/a"] = "?"
    part[b"b"] = 2
    with pytest.raises(ValueError, match="Expecting value"):
        part.popitem()
    assert part.popitem() == (b"b", 2)
    kv["part/a"] = "1"
    assert part.popitem() == (b"a", 1)
    with pytest.raises(KeyError):
        part.popitem()
    kv["part/c"] = "?"
    for _ in range(2):
        with pytest.raises(ValueError, match="Expecting value"):
            part.popitem()


def test_a_key_that_is_no_text_is_not_removed(kv: WatchedStore) -> None:
    """Where keys come back as text, as a value that cannot be decoded stays, too."""
    part = kv.typed(Json(), keys=str)
    kv[b"\xff"] = b"1"
    for _ in range(2):
        with pytest.raises(UnicodeDecodeError):
            part.popitem()
    assert dict(kv) == {b"\xff": b"1"}


def test_a_namespace_in_order_is_a_queue_all_the_same(tmp_path: Path) -> None:
    """What was changed longest ago comes first, not the least key."""
    with KVStore.open(tmp_path / "kv", ordered=True) as kv:
        part = kv.namespace("part/")
        part.put_many({b"b": b"1", b"a": b"2"})
        assert [part.popitem() for _ in range(2)] == [(b"b", b"1"), (b"a", b"2")]


def test_a_transaction_reads_what_was_there_once(kv: WatchedStore) -> None:
    """However much is put and taken in it."""
    model = {b"%d" % number: b"v" for number in range(100)}
    kv.put_many(model)
    with kv.transaction() as tx:
        tx[b"0"] = model[b"0"] = b"changed"
        del tx[b"1"], model[b"1"]
        for number in range(100, 150):
            tx[b"%d" % number] = model[b"%d" % number] = b"w"
            key, value = tx.popitem()
            assert model.pop(key) == value
        tx[b"2"] = model[b"2"] = b"again"
        assert dict(tx.popitem() for _ in range(len(model))) == model
        for number in range(3):
            tx[b"last"] = b"%d" % number
            tx[b"last but one"] = b"%d" % number
            assert {tx.popitem(), tx.popitem()} == {
                (b"last", b"%d" % number),
                (b"last but one", b"%d" % number),
            }
            with pytest.raises(KeyError, match="the transaction sees no key"):
                tx.popitem()
        assert len(kv.ranges) == 1
    assert len(kv) == 0


def test_a_transaction_that_clears_has_only_its_own(kv: WatchedStore) -> None:
    """Wherever popitem was in what there had been."""
    kv.put_many({b"%d" % number: b"v" for number in range(3)})
    with kv.transaction() as tx:
        assert tx.popitem() == (b"0", b"v")
        tx["own"] = "1"
        tx.clear()
        tx["own"] = "2"
        assert tx.popitem() == (b"own", b"2")
        with pytest.raises(KeyError):
            tx.popitem()
    assert dict(kv) == {}


@pytest.mark.parametrize("seed", range(3))
def test_a_transaction_takes_what_there_is_and_each_once(kv: WatchedStore, seed: int) -> None:
    """Among all else that may be done in one."""
    rng = random.Random(seed)
    for _ in range(10):
        model = dict(kv)
        with kv.transaction() as tx:
            for step in range(60):
                key, action = b"%d" % rng.randrange(15), rng.randrange(10)
                if action < 5:
                    tx[key] = model[key] = b"%d" % step
                elif action == 5:
                    assert tx.pop(key, None) == model.pop(key, None)
                elif action == 6 and rng.random() < 0.1:
                    tx.clear()
                    model.clear()
                elif model:
                    key, value = tx.popitem()
                    assert model.pop(key) == value
                else:
                    with pytest.raises(KeyError):
                        tx.popitem()
        assert dict(kv) == model
