"""A store as a queue: put and popitem in turn."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore
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
