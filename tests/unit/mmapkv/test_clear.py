"""Clearing a store is one record, and everybody sees all of it or nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mmapio import FlushPolicy
from mmapio.errors import InvalidMode
from mmapkv import Conflict, KVStore, repair, verify
from mmapkv.codecs import Json
from tests.support.plain_log import read_log
from tests.support.plain_reader import check_store, read_store
from tests.unit.mmapio.processes import in_child

SEGMENT = 64 << 10
VALUE = b"v" * 500


def filled(path: Path, keys: int = 600) -> KVStore:
    """A store of several segments."""
    kv = KVStore.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT)
    for number in range(keys):
        kv[b"%d" % number] = VALUE
    return kv


def test_it_is_one_record_and_everybody_sees_it(tmp_path: Path) -> None:
    with filled(tmp_path / "kv") as kv, KVStore.open(kv.path, "r") as reader:
        assert reader[b"7"] == VALUE
        kv.clear()
        assert kv.stats()["committed"] == 601
        for each in (kv, reader):
            assert (len(each), list(each), list(each.scan()), each.get(b"7")) == (0, [], [], None)
            assert b"7" not in each
            assert each.get_many([b"7", b"8"]) == [None, None]
        assert in_child(lambda: len(list(KVStore.open(tmp_path / "kv", "r")))) == 0
        kv.clear()
        assert kv.stats()["committed"] == 601, "of nothing, nothing is cleared"
        kv[b"7"] = b"new"
        assert [dict(each.items()) for each in (kv, reader)] == [{b"7": b"new"}] * 2
        assert list(reader.scan()) == [(b"7", b"new")]
        assert len(kv) == len(reader) == 1
        assert kv.verify().damages == reader.verify().damages == ()
    assert check_store(tmp_path / "kv") == {b"7": b"new"}


def test_every_kind_of_write_finds_the_key_absent(tmp_path: Path) -> None:
    with filled(tmp_path / "kv", 10) as kv:
        for change, left in (
            (lambda: kv.add("1", "a"), b"a"),
            (lambda: kv.replace("1", "a"), None),
            (lambda: kv.append("1", "a"), b"a"),
            (lambda: kv.incr("1", 5), b"5"),
            (lambda: kv.setdefault("1", "b"), b"b"),
            (lambda: kv.compare_and_set("1", "c", expected=None), b"c"),
            (lambda: kv.touch("1", 5), None),
            (lambda: kv.pop("1", None), None),
            (lambda: kv.put_many({"1": "d"}), b"d"),
            (lambda: kv.delete_many(["1"]), None),
        ):
            kv["1"] = "before"
            kv.clear()
            change()
            assert kv.get("1") == left
            assert len(kv) == (left is not None)
        kv["1"] = "before"
        kv.clear()
        with pytest.raises(KeyError):
            del kv["1"]
        with pytest.raises(KeyError):
            kv.popitem()
        assert kv.verify().damages == ()
    for lost in ("INDEX", "CONTROL"):
        (tmp_path / "kv" / lost).unlink()
        with KVStore.open(tmp_path / "kv", "w") as kv:
            assert (len(kv), dict(kv)) == (0, {})
            assert kv.verify().damages == ()


def test_what_began_before_sees_what_there_was(tmp_path: Path) -> None:
    with filled(tmp_path / "kv") as kv, KVStore.open(kv.path, "r") as reader:
        before = dict(kv.items())
        walk, snapshot, theirs = iter(kv.items()), kv.snapshot(), reader.snapshot()
        got = [next(walk)]
        kv.clear()
        kv[b"7"] = b"new"
        middle = kv.snapshot()
        kv.clear()
        kv[b"8"] = b"newer"
        for _ in range(2):
            assert [dict(each.items()) for each in (snapshot, theirs)] == [before] * 2
            assert (snapshot[b"7"], theirs[b"8"], len(snapshot)) == (VALUE, VALUE, 600)
            assert list(snapshot.scan()) == sorted(before.items())
            assert (dict(middle.items()), middle.get(b"7"), middle.get(b"8")) == (
                {b"7": b"new"},
                b"new",
                None,
            )
            assert kv.compact().segments_written >= 0
        assert dict([*got, *walk]) == before
        assert dict(kv.items()) == {b"8": b"newer"}


def test_a_compaction_gives_the_space_back(tmp_path: Path) -> None:
    def segments() -> int:
        return sum(each.stat().st_blocks * 512 for each in (tmp_path / "kv").glob("*.seg"))

    with filled(tmp_path / "kv") as kv, KVStore.open(kv.path, "r") as reader:
        assert reader[b"7"] == VALUE
        full = segments()
        snapshot = kv.snapshot()
        kv.clear()
        kv.compact()
        assert segments() >= full, "a snapshot needs it"
        assert snapshot[b"7"] == VALUE
        snapshot.close()
        kv[b"a"] = b"1"
        kv.clear()
        kv[b"b"] = b"2"
        done = kv.compact()
        assert done.records_removed == 603
        assert segments() < full / 4
        assert reader.get(b"7") is None
        assert [dict(each.items()) for each in (kv, reader)] == [{b"b": b"2"}] * 2
        assert kv.compact().records_removed == 0
        assert kv.verify().damages == ()
        assert kv.verify().entries == 1
    assert verify(tmp_path / "kv").damages == ()
    (tmp_path / "kv" / "INDEX").unlink()
    with KVStore.open(tmp_path / "kv") as kv:
        assert (dict(kv.items()), len(kv), kv.verify().damages) == ({b"b": b"2"}, 1, ())


def test_the_record_stays_while_there_is_something_to_hide(tmp_path: Path) -> None:
    """An index that is built from the log must not bring back what was cleared."""
    path = tmp_path / "kv"
    with filled(path) as kv:
        snapshot = kv.snapshot()
        kv.clear()
        kv.compact()
        assert snapshot[b"7"] == VALUE
    (path / "INDEX").unlink()
    with KVStore.open(path) as kv:
        assert (len(kv), list(kv)) == (0, [])
        kv.compact()
        assert kv.stats()["records"] == 0


def test_changes_tell_of_it(tmp_path: Path) -> None:
    with filled(tmp_path / "kv", 2) as kv:
        kv.clear()
        kv[b"0"] = b"1"
        told = [(each.kind, each.key, each.value, each.below, each.previous) for each in kv.changes(1)]
        assert told == [
            ("put", b"1", VALUE, None, None),
            ("clear", b"", None, 2, None),
            ("put", b"0", b"1", None, 0),
        ]


def test_transactions_conflict_with_it(tmp_path: Path) -> None:
    with filled(tmp_path / "kv", 3) as kv:
        with pytest.raises(Conflict), kv.transaction() as tx:
            assert tx["1"] == VALUE
            kv.clear()
            tx["new"] = "x"
        kv["1"] = "again"
        with pytest.raises(Conflict), kv.transaction() as tx:
            kv.clear()
            tx["1"] = "x"
        kv["1"] = "again"
        with kv.transaction() as tx:
            # What was absent before and after is not changed by it.
            assert "2" not in tx
            kv.clear()
            tx["3"] = "x"
        assert dict(kv.items()) == {b"3": b"x"}
        with kv.transaction() as tx:
            tx["4"] = tx["3"] + b"y"
        assert dict(kv.items()) == {b"3": b"x", b"4": b"xy"}


def test_a_namespace_clears_its_own_keys_only(tmp_path: Path) -> None:
    with KVStore.open(tmp_path / "kv") as kv:
        kv.update({"a/1": "1", "a/2": "2", "b/1": "3"})
        kv.namespace("a/").clear()
        assert dict(kv.items()) == {b"b/1": b"3"}


def test_a_repaired_store_stays_cleared(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    with filled(path, 5) as kv:
        kv.clear()
        kv["x"] = "y"
    data = bytearray((path / "INDEX").read_bytes())
    data[4096 + 104 : 4096 + 112] = bytes(8)
    (path / "INDEX").write_bytes(data)
    assert verify(path).damages, "the index counts as cleared what the log does not, or the other way round"
    assert repair(path).keys == 1
    assert verify(path).damages == ()
    assert read_store(read_log(path)) == {b"x": b"y"}


def test_a_reader_never_sees_a_part_of_it(tmp_path: Path) -> None:
    """Each look of a walk is of one moment: all keys of a generation, or none."""
    with KVStore.open(tmp_path / "kv") as kv, KVStore.open(kv.path, "r") as reader:
        stop = threading.Event()
        wrong: list[object] = []

        def look() -> None:
            while not stop.is_set():
                snapshot = reader.snapshot()
                found = set(snapshot.values())
                if len(found) > 1 or len(snapshot) not in (0, 20):
                    wrong.append((found, len(snapshot)))
                snapshot.close()

        thread = threading.Thread(target=look)
        thread.start()
        for generation in range(300):
            kv.put_many({b"%d" % number: b"%d" % generation for number in range(20)})
            kv.clear()
        stop.set()
        thread.join()
        assert wrong == []


def test_a_reader_cannot_clear(tmp_path: Path) -> None:
    filled(tmp_path / "kv", 1).close()
    with KVStore.open(tmp_path / "kv", "r") as reader, pytest.raises(InvalidMode):
        reader.clear()


def test_a_typed_store_clears_as_its_store_does(tmp_path: Path) -> None:
    with KVStore.open(tmp_path / "kv", codec=Json()) as objects:
        objects.update({b"a": [1], b"b": {"c": 2}})
        written = objects.stats()["committed"]
        objects.clear()
        assert (len(objects), objects.stats()["committed"]) == (0, written + 1)
