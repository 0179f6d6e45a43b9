"""A key whose time is over is gone for every read at once, though nobody deleted it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from mmapkv import KVStore
from tests.support.plain_log import read_log
from tests.support.plain_reader import change_of, check_store, read_store
from tests.support.waiting import until
from tests.unit.mmapio.processes import in_child
from tests.unit.mmapkv.stores import contents, lose, opened

SOON = 1e-6
LONG = 1000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store is."""
    return tmp_path / "kv"


@pytest.fixture
def kv(path: Path) -> Iterator[KVStore]:
    """An open store."""
    with opened(path) as store:
        yield store


def expired(kv: KVStore, *keys: str) -> None:
    """Put keys whose time is over when this returns."""
    for key in keys:
        kv.put(key, "expired", ttl=SOON)
    time.sleep(0.001)


def test_every_read_agrees(path: Path, kv: KVStore) -> None:
    kv["stays"] = "1"
    kv.put("lives", "2", ttl=LONG)
    expired(kv, "gone")
    for store in (kv, opened(path, "r")):
        assert "gone" not in store
        assert store.get("gone") is None
        with pytest.raises(KeyError):
            store["gone"]
        with pytest.raises(KeyError):
            store.ttl("gone")
        assert list(store) == [b"stays", b"lives"]
        assert dict(store.items()) == {b"stays": b"1", b"lives": b"2"}
        assert list(store.values()) == [b"1", b"2"]
        assert len(store) == 3
        assert "gone" not in store.snapshot()
    assert in_child(lambda: list(opened(path, "r"))) == [b"stays", b"lives"]


def test_every_change_takes_it_for_absent(kv: KVStore) -> None:
    expired(kv, "a", "b", "c", "d", "e", "f", "g", "h")
    with pytest.raises(KeyError):
        del kv["a"]
    assert kv.pop("a", None) is None
    assert not kv.replace("a", "x")
    assert not kv.touch("a", LONG)
    assert not kv.compare_and_set("a", "x", expected="expired")
    assert kv.delete_many(["a"]) == 0
    assert kv.add("a", "new")
    assert kv.setdefault("b", "new") == b"new"
    assert kv.append("c", "new") == 3
    assert kv.incr("d") == 1
    assert kv.compare_and_set("e", "new", expected=None)
    kv["f"] = "new"
    kv.put_many({"g": "new"})
    assert kv.popitem() == (b"a", b"new")
    assert dict(kv) == {key: b"1" if key == b"d" else b"new" for key in (b"b", b"c", b"d", b"e", b"f", b"g")}
    assert len(kv) == 7


def test_ttl_says_what_is_left(kv: KVStore) -> None:
    kv["stays"] = "1"
    kv.put("a", "1", ttl=LONG)
    kv.put("b", "1", ttl=timedelta(days=2))
    assert kv.ttl("stays") is None
    assert LONG - 60 < kv.ttl("a") <= LONG  # type: ignore[operator]
    assert 172_800 - 60 < kv.ttl("b") <= 172_800  # type: ignore[operator]
    with pytest.raises(KeyError):
        kv.ttl("absent")


def test_touch_changes_the_time_alone(kv: KVStore) -> None:
    kv["a"] = b"v" * 200_000
    assert kv.touch("a", LONG)
    assert kv.ttl("a") is not None
    assert kv.touch("a")
    assert kv.ttl("a") is None
    assert kv["a"] == b"v" * 200_000
    assert kv.touch("a", SOON)
    time.sleep(0.001)
    assert "a" not in kv


def test_what_keeps_a_time_to_live_and_what_ends_it(kv: KVStore) -> None:
    """As in Redis: a new value is a new life, a changed one is not."""
    for key in ("appended", "counted", "put", "batched"):
        kv.put(key, "1", ttl=LONG)
    kv.append("appended", "2")
    kv.incr("counted")
    kv.put("put", "2")
    kv.put_many({"batched": "2"})
    assert [kv.ttl(key) is None for key in ("appended", "counted", "put", "batched")] == [
        False,
        False,
        True,
        True,
    ]


def test_every_way_to_give_one(kv: KVStore) -> None:
    kv.add("add", "1", ttl=LONG)
    kv.replace("add", "2", ttl=LONG)
    kv.compare_and_set("cas", "1", expected=None, ttl=LONG)
    kv.put_many({"many": "1"}, ttl=LONG)
    with kv.batch() as batch:
        batch.put("batch", "1", ttl=LONG)
    with kv.transaction() as tx:
        tx.put("tx", "1", ttl=LONG)
    assert [key for key in kv if kv.ttl(key) is None] == []
    assert len(kv) == 5


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e11, timedelta(0), 10**400])
def test_a_time_that_is_none_is_refused(kv: KVStore, ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl, is more than 0 and at most 10000000000 seconds"):
        kv.put("a", "1", ttl=ttl)
    with pytest.raises(TypeError, match="is a number of seconds, a timedelta or None, not str"):
        kv.put("a", "1", ttl="5")  # type: ignore[arg-type]
    assert "a" not in kv


def test_sweep_deletes_what_is_over(path: Path, kv: KVStore) -> None:
    kv["stays"] = "1"
    expired(kv, "a", "b")
    kv.put("lives", "1", ttl=LONG)
    expired(kv, "a", "deleted")
    kv["deleted"] = "again"
    assert len(kv) == 5
    assert kv.sweep() == 2
    assert len(kv) == 3
    assert kv.sweep() == 0
    assert check_store(path) == dict(kv) == {b"stays": b"1", b"lives": b"1", b"deleted": b"again"}


def test_popitem_ends_when_all_has_expired(kv: KVStore) -> None:
    """It counts two, and finds none: it looked again and again."""
    expired(kv, "a", "b")
    with pytest.raises(KeyError):
        kv.popitem()
    kv["c"] = "1"
    assert kv.popitem() == (b"c", b"1")


def test_a_snapshot_stops_the_clock(kv: KVStore) -> None:
    for ttl in (0.05, 1, 20):
        # On a busy machine the time may be over before the snapshot is there.
        kv.put("a", "1", ttl=ttl)
        before = kv.snapshot()
        if "a" in before:
            break
    until(lambda: "a" not in kv)
    assert dict(before) == {b"a": b"1"}
    assert before["a"] == b"1"


def test_it_is_in_the_record(path: Path, kv: KVStore) -> None:
    """Eight bytes before the key, of nanoseconds since 1970, whether or not there was a version before."""
    kv.put("a", "1", ttl=LONG)
    kv.put("a", "2", ttl=LONG)
    log = read_log(path)
    first, second = (change_of(record) for record in log.records)
    assert (first.previous, second.previous) == (None, 0)
    assert first.expires is not None
    assert second.expires is not None
    assert first.expires <= second.expires
    # Of this century.
    assert 1 << 60 < first.expires < 1 << 62
    assert read_store(log, second.expires - 1) == {b"a": b"2"}
    assert read_store(log, second.expires) == {}


def test_it_survives_a_new_index(path: Path) -> None:
    with opened(path) as kv:
        kv.put("lives", "1", ttl=LONG)
        expired(kv, "gone")
    lose(path, "INDEX", "CONTROL")
    with opened(path) as kv:
        assert kv.ttl("lives") is not None
        assert list(kv) == [b"lives"]
        kv.sweep()
    assert contents(path) == {b"lives": b"1"}
