"""Transactions: as if nobody else were there, or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmapkv import Conflict, InvalidKey, KVStore, StoreError, Transaction
from tests.support.plain_reader import check_store
from tests.unit.mmapio.processes import run_python
from tests.unit.mmapkv.stores import MANUAL, agreeing, contents, opened
from tests.unit.mmapkv.test_threads import COMMON


def test_it_is_a_mapping_that_sees_its_own_changes(kv: KVStore) -> None:
    with kv.transaction(durable=True) as tx:
        model = dict(kv)
        tx["new"] = model[b"new"] = b"4"
        model.pop(b"a")
        assert tx.pop("a") == b"1"
        model.pop(b"b")
        tx["b"] = model[b"b"] = b"5"
        assert tx.setdefault(b"c", b"6") == b"3"
        assert list(tx.items()) == list(model.items())
        assert list(tx) == list(model)
        assert list(tx.values()) == list(model.values())
        assert len(tx) == len(model) == 3
        assert tx == model
        assert "a" not in tx
        assert tx.get("a") is None
        assert tx.get("a", 5) == 5
        for missing in (lambda: tx["a"], lambda: tx.__delitem__("a"), lambda: tx.pop("a")):
            with pytest.raises(KeyError):
                missing()
        assert repr(tx).endswith("3 keys changed>")
        assert dict(kv) == {b"a": b"1", b"b": b"2", b"c": b"3"}
    assert list(kv.items()) == list(model.items())
    assert kv.stats()["durable"] == kv.stats()["records"]
    with pytest.raises(StoreError, match="the transaction has ended"):
        tx["a"]
    with pytest.raises(StoreError, match="the transaction has ended"):
        tx["a"] = b"1"


def test_it_reads_the_store_of_its_beginning(kv: KVStore) -> None:
    with kv.transaction() as tx:
        kv["a"] = "changed"
        del kv["b"]
        kv["new"] = "1"
        assert dict(tx) == {b"a": b"1", b"b": b"2", b"c": b"3"}
        assert len(tx) == 3
        assert tx["a"] == b"1"
        assert "new" not in tx


def test_an_exception_writes_nothing(kv: KVStore) -> None:
    with pytest.raises(ZeroDivisionError), kv.transaction() as tx:
        tx["a"] = "2"
        raise ZeroDivisionError
    assert kv["a"] == b"1"


def test_clear_and_popitem(kv: KVStore) -> None:
    with kv.transaction() as tx:
        assert tx.popitem() == (b"a", b"1")
        tx["d"] = "4"
        tx.clear()
        assert len(tx) == 0
        tx["e"] = "5"
    assert dict(kv) == {b"e": b"5"}


def test_a_clear_is_one_record(kv: KVStore) -> None:
    """However many keys there were; what is put after it is in the same batch, and creates its keys."""
    model = dict(kv.items())
    assert len(model) > 2
    key, other = list(model)[:2]
    at = kv.stats()["committed"]
    with kv.snapshot() as before, kv.transaction() as tx:
        tx["dropped"] = "1"
        walk = iter(tx.items())
        tx.clear()
        assert dict(walk) == {**model, b"dropped": b"1"}
        assert (len(tx), list(tx), tx.get(key), key in tx, list(tx.scan())) == (0, [], None, False, [])
        with pytest.raises(KeyError):
            del tx[key]
        tx[key] = "new"
        tx[other] = "gone"
        tx["more"] = "2"
        del tx[other]
        assert dict(tx.items()) == dict(tx.scan()) == {key: b"new", b"more": b"2"}
        assert len(tx) == 2
        assert dict(kv.items()) == dict(before.items()) == model
    assert dict(kv.items()) == {key: b"new", b"more": b"2"}
    assert len(kv) == 2
    kinds = [(change.kind, change.key, change.below) for change in kv.changes(at)]
    assert kinds == [("clear", b"", at), ("put", key, None), ("put", b"more", None)]
    assert not kv.verify().damages
    with kv.transaction() as tx:
        tx.clear()
        tx.clear()
    assert (len(kv), dict(kv.items())) == (0, {})
    assert [change.kind for change in kv.changes(at + 3)] == ["clear"]
    with kv.transaction() as tx:
        tx.clear()
        kv["others"] = "1"
    assert dict(kv.items()) == {b"others": b"1"}
    with pytest.raises(Conflict), kv.transaction() as tx:
        tx.clear()
        kv["others"] = "2"
    assert dict(kv.items()) == {b"others": b"2"}
    kv.compact()
    assert not kv.verify().damages
    assert check_store(Path(kv.path)) == {b"others": b"2"}


def test_a_transaction_of_one_segment_and_more_clears(tmp_path: Path) -> None:
    """What is put after it goes to a new segment, where it is too large for the rest of one."""
    with opened(tmp_path / "kv") as kv:
        kv.put_many((b"%d" % number, bytes(500)) for number in range(200))
        with kv.transaction() as tx:
            tx.clear()
            tx.update({b"%d" % number: bytes(1000) for number in range(100)})
        assert len(kv) == 100
        assert set(kv.values()) == {bytes(1000)}
        kv.compact()
        assert not kv.verify().damages
        (tmp_path / "kv" / "INDEX").unlink()
    assert len(contents(tmp_path / "kv")) == 100


def test_what_is_added_while_it_is_iterated(kv: KVStore) -> None:
    """The iteration is over what was there, as that of a store."""
    with kv.transaction() as tx:
        for key in tx:
            tx[key] = "again"
            tx[key + b"'"] = "new"
        assert len(tx) == 6


_READS: dict[str, Callable[[Transaction], object]] = {
    "[]": lambda tx: tx["a"],
    "get": lambda tx: tx.get("a"),
    "in": lambda tx: "a" in tx,
    "put": lambda tx: tx.put("a", "mine"),
    "del": lambda tx: tx.__delitem__("a"),
    "iter": lambda tx: list(tx),
    "len": len,
    "items": lambda tx: dict(tx.items()),
}
_CHANGES: dict[str, Callable[[KVStore], object]] = {
    "put": lambda kv: kv.put("a", "theirs"),
    "the same": lambda kv: kv.put("a", "1"),
    "del": lambda kv: kv.__delitem__("a"),
    "del and put": lambda kv: (kv.__delitem__("a"), kv.put("a", "1")),
    "put_many": lambda kv: kv.put_many({"a": "theirs", "b": "theirs"}),
}


@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES)
@pytest.mark.parametrize("read", _READS.values(), ids=_READS)
@pytest.mark.parametrize("first", [True, False], ids=["then changed", "changed before"])
def test_conflicts(
    kv: KVStore, read: Callable[[Transaction], object], change: Callable[[KVStore], object], first: bool
) -> None:
    with pytest.raises(Conflict, match="began") as raised, kv.transaction() as tx:
        tx["mine"] = "1"
        if first:
            read(tx)
        change(kv)
        if not first:
            read(tx)
        expected = dict(kv)
    assert "record 3" in str(raised.value) or "record 4" in str(raised.value)
    assert dict(kv) == expected


def test_a_key_that_was_absent_conflicts_too(kv: KVStore) -> None:
    with pytest.raises(Conflict), kv.transaction() as tx:
        tx["mine"] = str(tx.get("theirs"))
        kv["theirs"] = "1"
    assert "mine" not in kv


def test_what_does_not_conflict(kv: KVStore) -> None:
    with kv.transaction() as tx:
        assert tx["a"] == b"1"
        kv["b"] = "theirs"
        tx["c"] = "mine"
    assert dict(kv) == {b"a": b"1", b"b": b"theirs", b"c": b"mine"}
    with kv.transaction() as tx:
        assert len(tx) == 3
        kv["a"] = "theirs"
    with kv.transaction() as tx:
        tx["mine"] = "1"
        assert tx["mine"] == b"1"
        kv["a"] = "theirs"
    assert kv["mine"] == b"1"


def test_the_second_of_two_conflicts(kv: KVStore) -> None:
    first, second = kv.transaction(), kv.transaction()
    with pytest.raises(Conflict), second:
        with first:
            first["a"] = first["a"] + b"!"
        second["a"] = second["a"] + b"?"
    assert kv["a"] == b"1!"


def test_arguments_are_checked_at_once(kv: KVStore) -> None:
    with kv.transaction() as tx:
        with pytest.raises(InvalidKey):
            tx[b""] = b""
        with pytest.raises(TypeError, match="a value is"):
            tx["a"] = 5  # type: ignore[assignment]
        with pytest.raises(ValueError, match="time to live"):
            tx.put("a", "1", ttl=-1)
        assert tx["a"] == b"1"


def test_retry(kv: KVStore) -> None:
    calls = []

    def work(tx: Transaction) -> bytes:
        calls.append(tx["a"])
        if len(calls) < 3:
            kv["a"] = str(len(calls) + 10)
        tx["a"] = tx["a"] + b"!"
        return tx["a"]

    assert kv.retry(work) == b"12!"
    assert calls == [b"1", b"11", b"12"]
    assert kv["a"] == b"12!"
    calls.clear()
    with pytest.raises(Conflict):
        kv.retry(work, attempts=2)
    assert len(calls) == 2
    with pytest.raises(ValueError, match="not 0 times"):
        kv.retry(work, attempts=0)
    with pytest.raises(ZeroDivisionError):
        kv.retry(lambda _: 1 // 0)


def test_threads_transfer(tmp_path: Path) -> None:
    """The sum of all accounts stays, for every snapshot on the way."""
    program = COMMON + (
        "import random\n"
        "kv = open_store()\n"
        "kv.put_many({b'%d' % account: b'100' for account in range(8)})\n"
        "def transfer(tx):\n"
        "    one, other = random.sample(range(8), 2)\n"
        "    one, other = b'%d' % one, b'%d' % other\n"
        "    tx[one] = b'%d' % (int(tx[one]) - 1)\n"
        "    tx[other] = b'%d' % (int(tx[other]) + 1)\n"
        "def work():\n"
        "    for _ in range(100): kv.retry(transfer, attempts=1000)\n"
        "def look():\n"
        "    for _ in range(100): assert sum(map(int, kv.snapshot().values())) == 800\n"
        "errors = together(work, work, work, look)\n"
        "answer([repr(errors), sum(map(int, kv.values()))])\n"
    )
    assert run_python(program, str(tmp_path / "kv"), "FlushPolicy.NEVER") == ["[]", 800]


SCANS: list[dict[str, Any]] = [
    {},
    {"prefix": "b"},
    {"prefix": "b", "start": "b2", "stop": "b4"},
    {"stop": "b2"},
    {"start": "b3"},
    {"prefix": "z"},
]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("wanted", SCANS, ids=str)
def test_a_scan_sees_its_own_changes(kv: KVStore, wanted: dict[str, Any], reverse: bool) -> None:
    """Put in between, overwritten and deleted; not what others do, nor what is changed while it goes on."""
    kv.clear()
    kv.update({"a": "1", "b1": "1", "b3": "1", "b5": "1", "c": "1"})
    with pytest.raises(Conflict), kv.transaction() as tx:
        tx["b2"], tx["b3"], tx["bb"] = b"mine", b"mine", b"mine"
        del tx["b5"]
        del tx["bb"]
        kv["b4"] = b"others"
        merged = {b"a": b"1", b"b1": b"1", b"b2": b"mine", b"b3": b"mine", b"c": b"1"}
        low, high = wanted.get("start", ""), wanted.get("stop", "~")
        expected = [
            (key, value)
            for key, value in sorted(merged.items(), reverse=reverse)
            if key.decode().startswith(wanted.get("prefix", "")) and low <= key.decode() < high
        ]
        pairs = tx.scan(**wanted, reverse=reverse)
        keys = tx.scan(**wanted, reverse=reverse, values=False)
        tx["b0"] = b"later"
        assert list(pairs) == expected
        assert list(keys) == [key for key, _ in expected]


def test_a_scan_conflicts_with_whatever_is_changed(kv: KVStore) -> None:
    """What it did not find may be there by now."""
    with pytest.raises(Conflict), kv.transaction() as tx:
        assert list(tx.scan("x")) == []
        tx["none"] = b"yes"
        kv["x"] = b"1"
    assert "none" not in kv
    with pytest.raises(StoreError, match="has ended"):
        tx.scan()


def test_one_that_clears_a_shared_store(tmp_path: Path) -> None:
    """The other writer sees it, and conflicts with it; both go on."""
    with (
        KVStore.open(tmp_path / "kv", shared=True, flush_policy=MANUAL) as one,
        KVStore.open(tmp_path / "kv", shared=True, flush_policy=MANUAL) as two,
    ):
        one.update({"a": "1", "b": "2"})
        with pytest.raises(Conflict), two.transaction() as other:
            assert other["a"] == b"1"
            with one.transaction() as tx:
                tx.clear()
                tx["c"] = "3"
            other["c"] = "4"
        two["a"] = "5"
        for each in (one, two):
            assert agreeing(each) == {b"a": b"5", b"c": b"3"}
        assert not one.verify().damages


def test_what_has_expired_counts_once_when_it_is_put_again(kv: KVStore) -> None:
    """The store counts it until it is swept, or replaced as here; a deletion has nothing to delete."""
    kv.put_many({"e": "1", "f": "1", "g": "1"}, ttl=0.001)
    time.sleep(0.002)
    with kv.transaction() as tx:
        tx["e"] = "2"
        tx["f"] = "2"
        del tx["f"]
        with pytest.raises(KeyError):
            del tx["g"]
        # The last two count on, in here as afterwards.
        assert list(tx) == [b"a", b"b", b"c", b"e"]
        assert len(tx) == 6
    assert len(kv) == 6
    assert kv.sweep() == 2
    assert len(kv) == 4


def test_what_has_a_time_to_live_counts_like_the_rest(kv: KVStore) -> None:
    """As long as that is not over."""
    kv.put_many({"e": "1", "f": "1"}, ttl=60)
    with kv.transaction() as tx:
        tx["e"] = "2"
        del tx["f"]
        assert len(tx) == len(list(tx)) == 4
        tx["f"] = "3"
        assert len(tx) == len(list(tx)) == 5
        del tx["e"]
        assert len(tx) == len(list(tx)) == 4


def test_setdefault_gives_bytes(kv: KVStore) -> None:
    """Whatever the default was given as; as in the store."""
    with kv.transaction() as tx:
        assert tx.setdefault("new", "v") == b"v" == tx["new"]
        assert tx.setdefault("new", "w") == b"v"
        assert tx.setdefault(b"a", bytearray(b"x")) == b"1"
        with pytest.raises(TypeError):
            tx.setdefault("none")
    assert kv["new"] == b"v"
    assert "none" not in kv
