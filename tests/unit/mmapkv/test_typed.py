"""Stores of objects: opening and closing, keys that come back as str, and codecs that misbehave."""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest

from mmapio import Closed
from mmapkv import KVStore, Namespace, TypedStore
from mmapkv.codecs import Bytes, Json, Text
from tests.unit.mmapkv.stores import MANUAL, contents, opened


def test_a_store_is_opened_with_a_codec(tmp_path: Path) -> None:
    """The result is the store's handle: it closes it, and tells of it."""
    path = tmp_path / "kv"
    with KVStore.open(path, flush_policy=MANUAL, codec=Json()) as kv:
        assert type(kv) is TypedStore
        assert isinstance(kv, MutableMapping)
        assert not kv
        kv["a"] = [1, None]
        kv.put("b", {"c": "ü"}, durable=True)
        kv.flush()
        assert kv
        assert len(kv) == 2
        assert dict(kv) == {b"a": [1, None], b"b": {"c": "ü"}}
        assert kv.stats()["keys"] == 2
        assert kv.path == str(path)
        assert kv.codec == Json()
        assert repr(kv).startswith("<TypedStore of <KVStore")
        assert not kv.closed
    assert kv.closed
    assert kv.store.closed
    with pytest.raises(Closed):
        kv.__enter__()
    assert contents(path) == {b"a": b"[1,null]", b"b": '{"c":"ü"}'.encode()}
    with opened(path, "r").typed(Json(), keys=str) as texts:
        assert list(texts.items()) == [("a", [1, None]), ("b", {"c": "ü"})]
        texts.close()
        texts.close()


def test_one_store_in_several_ways(tmp_path: Path) -> None:
    """What one writes the others see."""
    with opened(tmp_path / "kv") as kv:
        objects, texts = kv.typed(Json()), kv.typed(Text(), keys=str)
        objects["a"] = [1]
        texts["b"] = "2"
        assert (texts["a"], objects["b"]) == ("[1]", 2)
        assert dict(kv) == {b"a": b"[1]", b"b": b"2"}
        assert texts.setdefault("a", "x") == "[1]"
        assert objects.setdefault("none") is None
        assert objects.get("none", 5) is None
        assert objects.get("missing", 5) == 5
        assert objects.pop("none", 5) is None
        assert objects.popitem() == (b"a", [1])
        texts.clear()
        assert not kv


def test_views_have_what_a_store_has() -> None:
    """A method that is added to the store is to be added to them, or to be named here as none of theirs."""
    public = {name for name in dir(KVStore) if not name.startswith("_")}
    # What works on bytes, or on more than a view shows.
    of_the_store = {"append", "incr", "compare_and_set", "batch", "transaction", "retry", "snapshot", "sweep"}
    of_the_store |= {"get_view", "get_into", "get_many_into", "get_versioned", "changes", "flush_policy"}
    of_the_store |= {"verify", "backup", "compact", "shared"}
    assert public - set(dir(TypedStore)) == {"open"} | of_the_store
    # What concerns a handle and not a part of its content.
    assert public - set(dir(Namespace)) == {"open", "close", "closed", "path", "stats"} | of_the_store


def test_many_at_once_and_in_order(tmp_path: Path) -> None:
    """With keys and values as everywhere else in the view."""
    with opened(tmp_path) as kv:
        kv["a0"] = b"0"
        people = kv.namespace("people/").typed(Json(), str)
        people.update({"bob": 2, "ann": 1, "cy": 3})
        kv["z"] = b"9"
        assert people.get_many(["ann", "dan", "cy"], 0) == [1, 0, 3]
        assert list(people.scan()) == [("ann", 1), ("bob", 2), ("cy", 3)]
        assert list(people.scan("b")) == [("bob", 2)]
        assert list(people.scan(start="b", reverse=True)) == [("cy", 3), ("bob", 2)]
        assert list(people.scan(stop="b")) == [("ann", 1)]


def test_writes_that_depend_on_what_is_there(tmp_path: Path) -> None:
    """Those of the store, below a prefix and through a codec."""
    with opened(tmp_path / "kv") as kv:
        view = kv.namespace("p/").typed(Json(), keys=str)
        assert view.add("a", [1])
        assert not view.add("a", [2])
        assert view.replace("a", [3], durable=True)
        assert not view.replace("b", [3])
        view.put_many({"b": None, "c": 5})
        view.put_many([(b"d", "x")], ttl=100)
        assert dict(view) == {"a": [3], "b": None, "c": 5, "d": "x"}
        assert 90 < (view.ttl("d") or 0) <= 100
        assert view.touch("d")
        assert view.ttl("d") is None
        assert view.delete_many(["a", b"b", "missing"]) == 2
        assert dict(kv) == {b"p/c": b"5", b"p/d": b'"x"'}


def test_many_values_are_encoded_before_one_is_written(tmp_path: Path) -> None:
    """All of them or none."""
    with opened(tmp_path / "kv") as kv:
        view = kv.typed(Json())
        with pytest.raises(TypeError):
            view.put_many({"a": 1, "b": {2}, "c": 3})
        assert not kv


@pytest.mark.parametrize("wrong", [Json, "json", b"", 5, object()], ids=repr)
def test_what_is_no_codec_is_refused(tmp_path: Path, wrong: Any) -> None:
    """Before anything is made: a class in place of its instance would fail at the first value."""
    with pytest.raises(TypeError, match="encode and decode"):
        KVStore.open(tmp_path / "kv", codec=wrong)
    assert not (tmp_path / "kv").exists()
    with opened(tmp_path / "kv") as kv, pytest.raises(TypeError, match="encode and decode"):
        kv.typed(wrong)


Use = Callable[[Any], object]


class Odd:
    """A codec that does as it is told."""

    def __init__(self, encode: Callable[[Any], Any], decode: Callable[[bytes], Any]) -> None:
        self.encode = encode
        self.decode = decode


def fail(value: object) -> Any:
    """Raise."""
    raise ZeroDivisionError(value)


WRITES: dict[str, Use] = {
    "[]=": lambda view: view.__setitem__("a", 1),
    "new": lambda view: view.__setitem__("new", 1),
    "put": lambda view: view.put("a", 1),
    "setdefault": lambda view: view.setdefault("new", 1),
    "update": lambda view: view.update({"a": 1}),
    "put_many": lambda view: view.put_many({"a": 1}),
    "add": lambda view: view.add("new", 1),
    "replace": lambda view: view.replace("a", 1),
}
REMOVALS: dict[str, Use] = {
    "pop": lambda view: view.pop("a"),
    "pop with a default": lambda view: view.pop("a", None),
    "popitem": lambda view: view.popitem(),
}
READS: dict[str, Use] = {
    "[]": lambda view: view["a"],
    "get": lambda view: view.get("a", 1),
    "setdefault": lambda view: view.setdefault("a", 1),
    "items": lambda view: list(view.items()),
    "values": lambda view: list(view.values()),
}


@pytest.mark.parametrize("prefix", ["", "p/"])
@pytest.mark.parametrize("use", WRITES.values(), ids=WRITES.keys())
def test_an_encoder_that_fails_changes_nothing(tmp_path: Path, prefix: str, use: Use) -> None:
    """Neither by raising nor by returning what is no buffer."""
    with opened(tmp_path / "kv") as kv:
        kv[prefix + "a"] = b"before"
        records = kv.stats()["records"]
        with pytest.raises(ZeroDivisionError):
            use(kv.namespace(prefix).typed(Odd(fail, bytes)))
        for wrong in (None, "text", 5, [b"1"], memoryview(b"abcd")[::2]):
            with pytest.raises(TypeError, match="buffer"):
                use(kv.namespace(prefix).typed(Odd(lambda value, wrong=wrong: wrong, bytes)))
        assert kv.stats()["records"] == records
        assert dict(kv) == {f"{prefix}a".encode(): b"before"}


@pytest.mark.parametrize("prefix", ["", "p/"])
@pytest.mark.parametrize("use", [*REMOVALS.values(), *READS.values()], ids=[*REMOVALS, *READS])
def test_a_decoder_that_fails_changes_nothing(tmp_path: Path, prefix: str, use: Use) -> None:
    """What cannot be decoded is not removed: whoever knows how may still read it."""
    with opened(tmp_path / "kv") as kv:
        kv[prefix + "a"] = b"before"
        records = kv.stats()["records"]
        with pytest.raises(ZeroDivisionError):
            use(kv.namespace(prefix).typed(Odd(bytes, fail)))
        assert kv.stats()["records"] == records
        assert dict(kv) == {f"{prefix}a".encode(): b"before"}


def test_what_cannot_be_decoded_can_be_deleted(tmp_path: Path) -> None:
    """Without its value being asked for."""
    with opened(tmp_path / "kv") as kv:
        kv.update({"a": b"1", "b": b"2"})
        view = kv.typed(Odd(bytes, fail))
        del view["a"]
        assert list(view) == [b"b"]
        view.clear()
        assert not kv


@pytest.mark.parametrize("use", [*WRITES.values(), *REMOVALS.values(), *READS.values()])
def test_a_codec_that_uses_the_store(tmp_path: Path, use: Use) -> None:
    """While it is being asked: other keys, the same key, all of them, and so much that the store grows."""
    path = tmp_path / "kv"

    def meddle(value: object) -> bytes:
        kv["a"] = b"meddled"
        kv.pop("b", None)
        kv["large"] = bytes(100_000)
        assert len(list(kv.items())) == len(kv)
        return b"coded"

    with opened(path) as kv:
        kv["b"] = b"2"
        kv["a"] = b"before"
        result = use(kv.typed(Odd(meddle, meddle)))
        expected = dict(kv)
        assert expected[b"large"] == bytes(100_000)
        assert expected.get(b"a") in (None, b"meddled", b"coded")
        assert result != b"before"
    assert contents(path) == expected


def test_a_codec_that_closes_the_store(tmp_path: Path) -> None:
    """Closed, and nothing was written."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv["a"] = b"1"

        def close(value: object) -> bytes:
            kv.close()
            return b"2"

        with pytest.raises(Closed):
            kv.typed(Odd(close, bytes))["a"] = 1
    assert contents(path) == {b"a": b"1"}


def test_a_value_that_changes_while_it_is_decoded(tmp_path: Path) -> None:
    """`pop` returns what it removed; and does not remove what turns out not to be decodable."""
    with opened(tmp_path / "kv") as kv:
        replacements = [b"second"]

        def decode(data: bytes) -> str:
            if replacements:
                kv["a"] = replacements.pop()
            return data.decode()

        kv["a"] = b"first"
        view = kv.typed(Odd(str.encode, decode))
        assert view.pop("a") == "second"
        assert not kv
        kv["a"] = b"first"
        replacements.append(b"\xff")
        with pytest.raises(UnicodeDecodeError):
            view.pop("a")
        assert dict(kv) == {b"a": b"\xff"}


@pytest.mark.parametrize("prefix", ["", "part/"])
def test_a_key_that_is_no_text_is_not_removed(tmp_path: Path, prefix: str) -> None:
    """By who could not be given it."""
    with opened(tmp_path / "kv") as kv:
        kv[prefix.encode() + b"\xff"] = b"v"
        with pytest.raises(UnicodeDecodeError):
            kv.namespace(prefix).typed(Bytes(), keys=str).popitem()
        assert dict(kv) == {prefix.encode() + b"\xff": b"v"}


def test_threads_that_pop_share_the_values(tmp_path: Path) -> None:
    """Each value goes to one of them."""
    found: list[list[int]] = [[], [], []]
    with opened(tmp_path / "kv") as kv:
        view = kv.typed(Json(), keys=str)
        view.update({str(number): number for number in range(500)})

        def take(mine: list[int]) -> None:
            for number in range(500):
                value = view.pop(str(number), None)
                if value is not None:
                    mine.append(value)

        threads = [threading.Thread(target=take, args=(mine,)) for mine in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not kv
    assert sorted(number for mine in found for number in mine) == list(range(500))
