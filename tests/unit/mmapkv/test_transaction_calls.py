"""The calls that a transaction has as a store has: nothing changes before its end, what it read counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from mmapkv import Conflict, InvalidKey, KVStore, Transaction


def test_get_many_sees_its_own_changes(kv: KVStore) -> None:
    with kv.transaction() as tx:
        tx["b"] = "mine"
        del tx["c"]
        assert tx.get_many(iter(["a", b"b", "c", "absent", "a"])) == [b"1", b"mine", None, None, b"1"]
        assert tx.get_many(["absent", "a"], default=5) == tx.get_many(["absent", "a"], 5) == [5, b"1"]
        assert tx.get_many([]) == []
        tx.clear()
        assert tx.get_many(["a", "b"]) == [None, None]


def test_get_many_of_a_snapshot(kv: KVStore) -> None:
    """It had none, while everything else that looks keys up did."""
    with kv.snapshot() as before:
        kv.put_many({"a": "new", "d": "new"})
        del kv["b"]
        assert before.get_many(["a", "b", b"d", "a"]) == [b"1", b"2", None, b"1"]
        assert before.get_many(iter(["d", "c"]), default=b"") == [b"", b"3"]
        assert before.get_many(["d", "c"], 5) == [5, b"3"]


@pytest.mark.parametrize("one", ["ab", b"ab", bytearray(b"ab"), memoryview(b"ab")])
def test_one_key_in_place_of_many_is_refused(kv: KVStore, one: bytes) -> None:
    """Its characters, or numbers, would be taken for keys."""
    with kv.snapshot() as before, kv.transaction() as tx:
        for call in (before.get_many, tx.get_many, tx.delete_many):
            with pytest.raises(TypeError, match="is one key: pass"):
                call(one)  # type: ignore[operator]
        tx["b"] = "mine"
        kv["a"] = "theirs"
    assert kv["b"] == b"mine"


class Keyed:
    """As much of a mapping as `put_many` of a store asks for."""

    def keys(self) -> list[str]:
        """One."""
        return ["c"]

    def __getitem__(self, key: str) -> str:
        return "keyed"


def test_put_many_and_delete_many(kv: KVStore) -> None:
    with kv.transaction() as tx:
        tx.put_many({"a": "mine", b"d": bytearray(b"4")})
        tx.put_many(iter([("e", "5"), ("e", "6")]), ttl=60)
        tx.put_many([])
        tx.put_many(kv.snapshot())
        tx.put_many(Keyed())
        assert tx.delete_many(["a", "b", "b", "absent", "", b"x" * 70_000]) == 2
        assert tx.delete_many(iter(["a"])) == 0
        assert dict(tx) == {b"c": b"keyed", b"d": b"4", b"e": b"6"}
        assert dict(kv) == {b"a": b"1", b"b": b"2", b"c": b"3"}
    assert list(kv.items()) == [(b"d", b"4"), (b"e", b"6"), (b"c", b"keyed")]
    assert kv.ttl("d") is None
    assert 50 < (kv.ttl("e") or 0) <= 60


def test_put_many_sets_all_or_none(kv: KVStore) -> None:
    """Who goes on after an error commits nothing that he does not know of."""

    def failing() -> Iterator[tuple[str, str]]:
        yield "a", "mine"
        raise ZeroDivisionError

    with kv.transaction() as tx:
        with pytest.raises(ZeroDivisionError):
            tx.put_many(failing())
        for wrong, error in (("", InvalidKey), (b"x" * 70_000, InvalidKey), (5, TypeError)):
            with pytest.raises(error):
                tx.put_many([("a", "mine"), (wrong, "1")])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="a value is"):
            tx.put_many({"a": "mine", "b": 5})  # type: ignore[dict-item]
        with pytest.raises(ValueError, match="time to live"):
            tx.put_many({"a": "mine"}, ttl=-1)
        assert dict(tx) == {b"a": b"1", b"b": b"2", b"c": b"3"}


def test_incr_and_append(kv: KVStore) -> None:
    with kv.transaction() as tx:
        assert tx.incr("a") == 2
        assert tx.incr("a", -5) == -3
        assert tx.incr("new", 2, initial=10) == 12
        assert tx.append("b", "xy") == 3
        assert tx.append("b", b"z") == 4
        assert tx.append("text", "t") == 1
        del tx["c"]
        assert tx.incr("c") == 1
        assert (tx["a"], tx["b"], kv["a"], kv["b"]) == (b"-3", b"2xyz", b"1", b"2")
    expected = {b"a": b"-3", b"new": b"12", b"b": b"2xyz", b"text": b"t", b"c": b"1"}
    assert dict(kv) == expected


def test_incr_refuses_what_the_store_refuses(kv: KVStore) -> None:
    kv.put_many({"word": "x", "large": str(2**63 - 1)})
    for other in (kv, None):
        with kv.transaction() as tx:
            on = other or tx
            with pytest.raises(ValueError, match=r"b'word' is not a decimal number"):
                on.incr("word")
            with pytest.raises(OverflowError, match="more than 64 bits"):
                on.incr("large")
            with pytest.raises(OverflowError, match=f"by={2**64} is not a number of 64 bits"):
                on.incr("a", 2**64)
            with pytest.raises(TypeError, match="initial is an integer, not float"):
                on.incr("a", initial=1.5)  # type: ignore[arg-type]
            with pytest.raises(InvalidKey):
                on.incr("")
            with pytest.raises(InvalidKey):
                on.append("", "x")
    assert kv["large"] == str(2**63 - 1).encode()


def test_a_time_to_live_stays_as_it_was(kv: KVStore) -> None:
    """As with incr and append of a store; a put in between decides anew."""
    kv.put_many({"n": "1", "text": "1", "put": "1"}, ttl=60)
    with kv.transaction() as tx:
        tx.incr("n")
        tx.append("text", "2")
        tx.append("text", "3")
        tx["put"] = "5"
        tx.incr("put")
        tx.put("own", "1", ttl=30)
        tx.incr("own")
        tx.put("again", "1", ttl=30)
        tx["again"] = "2"
        tx.incr("again")
        tx.put("gone", "1", ttl=30)
        del tx["gone"]
        tx.incr("gone")
    for key in ("n", "text"):
        assert 50 < (kv.ttl(key) or 0) <= 60
    assert 20 < (kv.ttl("own") or 0) <= 30
    for key in ("put", "again", "gone"):
        assert kv.ttl(key) is None
    kv.put("n", "1", ttl=0.001)
    time.sleep(0.002)
    with kv.transaction() as tx:
        assert tx.incr("n") == 1
        tx.put("m", "1", ttl=60)
        tx.clear()
        assert tx.incr("m") == 1
    assert dict(kv) == {b"m": b"1"}
    assert kv.ttl("m") is None


_CALLS: dict[str, Callable[[Transaction], object]] = {
    "get_many": lambda tx: tx.get_many(["b", "a"]),
    "delete_many": lambda tx: tx.delete_many(["a"]),
    "put_many": lambda tx: tx.put_many({"a": "mine"}),
    "incr": lambda tx: tx.incr("a"),
    "append": lambda tx: tx.append("a", "mine"),
    "setdefault": lambda tx: tx.setdefault("a", "mine"),
    "pop": lambda tx: tx.pop("a"),
    "update": lambda tx: tx.update({"a": "mine"}),
}


@pytest.mark.parametrize("call", _CALLS.values(), ids=_CALLS)
def test_what_they_read_or_change_conflicts(kv: KVStore, call: Callable[[Transaction], object]) -> None:
    """A count that somebody else raised meanwhile would be lost."""
    with pytest.raises(Conflict), kv.transaction() as tx:
        tx["mine"] = "1"
        call(tx)
        kv["a"] = "7"
    assert kv["a"] == b"7"
    assert "mine" not in kv
    with kv.transaction() as tx:
        tx["mine"] = "1"
        call(tx)
        kv["c"] = "7"
    assert kv["mine"] == b"1"


@pytest.mark.parametrize("call", [lambda tx: tx.get_many(["x"]), lambda tx: tx.delete_many(["x"])])
def test_what_was_absent_is_read_too(kv: KVStore, call: Callable[[Transaction], object]) -> None:
    with pytest.raises(Conflict), kv.transaction() as tx:
        tx["mine"] = "1"
        call(tx)
        kv["x"] = "theirs"
    assert "mine" not in kv
