"""Namespaces: a part of a store is a mapping like the store, and touches nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmapio import Closed
from mmapkv import InvalidKey, KVStore, Namespace
from mmapkv.codecs import Json, Text
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapkv.stores import contents, opened

mapping_tests = pytest.importorskip(
    "test.mapping_tests",
    reason="this Python lacks its test package: NOT TESTED against CPython's mapping protocol",
)

OTHERS = {b"": b"", b"n": b"1", b"n.": b"2", b"n/": b"3", b"o/a": b"4", b"\xff": b"5"}


class TestProtocol(mapping_tests.BasicTestMappingProtocol):  # type: ignore[misc,name-defined]
    """CPython's tests of the protocol, between keys of others that come before, after and in between."""

    def setUp(self) -> None:
        """Every mapping that a test makes is a part of one store."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.kv = opened(Path(directory.name) / "kv")
        self.addCleanup(self.kv.close)
        self.kv.update({key: value for key, value in OTHERS.items() if key})
        self.made = 0

    def tearDown(self) -> None:
        """Nothing that belongs to others was touched."""
        rest = {key: value for key, value in self.kv.items() if not key.startswith(b"mine")}
        assert rest == {key: value for key, value in OTHERS.items() if key}

    def type2test(self, *arguments: Any, **keywords: Any) -> Namespace[bytes, bytes]:
        """What the tests call to make a mapping."""
        self.made += 1
        made = self.kv.namespace(f"mine/{self.made}/")
        made.update(*arguments, **keywords)
        return made

    def _reference(self) -> dict[bytes, bytes]:
        return {b"1": b"2", b"key1": b"value1", b"key2": b"4 5 6"}

    def test_fromkeys(self) -> None:
        """A namespace is a part of some store."""
        assert not hasattr(Namespace, "fromkeys")

    # Three of CPython's tests use keys and values that are no bytes; the same with ours.

    def test_update(self) -> None:
        """Mappings, iterables of pairs, and keywords."""
        part = self._empty_mapping()
        part.update(self.other)
        part.update([(b"a", b"b")], key=b"word")
        assert dict(part) == {**self.other, b"a": b"b", b"key": b"word"}

    def test_get(self) -> None:
        """With and without a default."""
        part = self._full_mapping(self.reference)
        assert part.get(b"missing") is None
        assert part.get(b"missing", 3) == 3
        for key, value in self.reference.items():
            assert part.get(key) == part.get(key, 3) == value

    def test_setdefault(self) -> None:
        """The default is stored, so it must be a value."""
        part = self._empty_mapping()
        assert part.setdefault(b"a", b"1") == part.setdefault(b"a", b"2") == b"1"
        with pytest.raises(TypeError):
            part.setdefault(b"b")
        assert b"b" not in part


def test_keys_stand_below_their_prefix(tmp_path: Path) -> None:
    """In the store with it, in the namespace without; str and any buffer are taken for bytes."""
    with opened(tmp_path / "kv") as kv:
        part = kv.namespace("grüße/")
        part["ä"] = "ö"
        part[bytearray(b"b")] = memoryview(b"2")
        part.put(b"c", b"3", durable=True)
        texts = {key.decode(): value.decode() for key, value in kv.items()}
        assert texts == {"grüße/ä": "ö", "grüße/b": "2", "grüße/c": "3"}
        assert list(part) == list(part.keys()) == ["ä".encode(), b"b", b"c"]
        assert part["ä"] == part["ä".encode()] == "ö".encode()
        assert memoryview(b"b") in part
        assert list(part.values()) == ["ö".encode(), b"2", b"3"]
        assert (part.store, part.prefix) == (kv, "grüße/".encode())
        assert kv.namespace(b"gr").prefix == b"gr"
        assert repr(part).startswith("<Namespace b'gr\\xc3\\xbc\\xc3\\x9fe/' of <KVStore")


def test_a_namespace_in_a_namespace(tmp_path: Path) -> None:
    """The prefixes follow each other; the outer one sees the inner one's keys."""
    with opened(tmp_path / "kv") as kv:
        outer = kv.namespace("a/")
        inner = outer.namespace("b/").namespace("c/")
        inner["k"] = b"1"
        outer["k"] = b"2"
        assert dict(kv) == {b"a/b/c/k": b"1", b"a/k": b"2"}
        assert dict(outer) == {b"b/c/k": b"1", b"k": b"2"}
        assert dict(inner) == {b"k": b"1"}
        inner.clear()
        assert dict(kv) == {b"a/k": b"2"}
        assert not inner
        assert outer


def test_the_prefix_itself_is_the_empty_key(tmp_path: Path) -> None:
    """Which a store cannot have; a namespace of no prefix is the store, and cannot either."""
    with opened(tmp_path / "kv") as kv:
        part = kv.namespace("p")
        part[b""] = b"1"
        assert kv[b"p"] == b"1"
        assert dict(part) == {b"": b"1"}
        assert part.pop("") == b"1"
        whole = kv.namespace(b"")
        whole["a"] = b"1"
        assert dict(whole) == dict(kv) == {b"a": b"1"}
        assert b"" not in whole
        with pytest.raises(InvalidKey):
            whole[b""] = b"1"
        with pytest.raises(InvalidKey):
            kv.namespace(bytes(65_535))["ab"] = b"1"


def test_a_missing_key_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    """Without the prefix."""
    with opened(tmp_path / "kv") as kv:
        part = kv.namespace("p/")
        for use in (part.__getitem__, part.__delitem__, part.pop):
            with pytest.raises(KeyError) as raised:
                use("gone")
            assert raised.value.args == ("gone",)
        with pytest.raises(KeyError, match="empty"):
            part.popitem()


WRONG: dict[str, Callable[[Any], object]] = {
    "key": lambda part: part.__setitem__(5, b"1"),
    "get": lambda part: part.get(None),
    "in": lambda part: 1.5 in part,
    "strided key": lambda part: part.get(memoryview(b"abcd")[::2]),
    "value": lambda part: part.__setitem__("a", 5),
    "strided value": lambda part: part.__setitem__("a", memoryview(b"abcd")[::2]),
    "put": lambda part: part.put("a", None),
    "setdefault": lambda part: part.setdefault("new"),
    "prefix": lambda part: part.namespace(5),
}


@pytest.mark.parametrize("use", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("prefix", ["", "p/"])
def test_what_is_not_bytes_is_refused(tmp_path: Path, prefix: str, use: Callable[[Any], object]) -> None:
    """By a TypeError, as in the store, and with nothing written."""
    with opened(tmp_path / "kv") as kv:
        part = kv.namespace(prefix)
        with pytest.raises(TypeError):
            use(part)
        assert kv.stats()["records"] == 0


def test_popitem_takes_each_pair_once(tmp_path: Path) -> None:
    """Whatever is set in between; and what came after nothing had been found."""
    with opened(tmp_path / "kv") as kv:
        part = kv.namespace("p/")
        for number in range(100):
            part[b"%d" % number] = b"v"
            kv[b"other%d" % number] = b"o"
        assert part.popitem() == (b"0", b"v")
        part[b"1"] = b"new"
        part[b"100"] = b"v"
        found = [part.popitem() for _ in range(100)]
        assert sorted(key for key, _ in found) == sorted(b"%d" % number for number in range(1, 101))
        assert (b"1", b"new") in found
        assert found[-1] == (b"100", b"v")
        with pytest.raises(KeyError):
            part.popitem()
        part[b"late"] = b"1"
        assert part.popitem() == (b"late", b"1")
        assert len(kv) == 100


def test_a_walk_stays_at_the_moment_it_began(tmp_path: Path) -> None:
    """As over a store: changes, deletions and new keys meanwhile do not show."""
    with opened(tmp_path / "kv") as kv:
        part = kv.namespace("p/")
        part.update({b"%d" % number: b"v" for number in range(5)})
        walks = [iter(part), iter(part.values()), iter(part.items())]
        for key in part:
            del part[key]
            part[key + b"x"] = b"new"
        keys = [b"0", b"1", b"2", b"3", b"4"]
        values = [b"v"] * 5
        assert [list(walk) for walk in walks] == [keys, values, list(zip(keys, values, strict=True))]
        assert list(part) == [key + b"x" for key in keys]


def test_text_keys_that_are_no_text(tmp_path: Path) -> None:
    """A walk that promised str says which bytes are none; bytes find them."""
    with opened(tmp_path / "kv") as kv:
        part = kv.namespace("p/").typed(Text(), keys=str)
        part[b"\xff"] = "v"
        assert part[b"\xff"] == "v"
        with pytest.raises(UnicodeDecodeError):
            list(part)
        with pytest.raises(TypeError, match="bytes or str"):
            kv.namespace("p/").typed(Text(), keys=int)  # type: ignore[call-overload]


def test_values_through_a_codec(tmp_path: Path) -> None:
    """Of a part, and of a part of that; another codec takes the place of the first."""
    with opened(tmp_path / "kv") as kv:
        users = kv.namespace("users/").typed(Json(), keys=str)
        users["ann"] = {"age": 5}
        users.namespace("x/")["bob"] = None
        assert dict(users) == {"ann": {"age": 5}, "x/bob": None}
        assert dict(users.namespace("x/")) == {"bob": None}
        assert dict(users.typed(Text())) == {b"ann": '{"age":5}', b"x/bob": "null"}
        assert users.pop("x/bob", "default") is None


@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_closed_store_refuses(tmp_path: Path, mode: str) -> None:
    """Through its parts, too."""
    path = tmp_path / "kv"
    opened(path).close()
    kv = opened(path, mode)
    part = kv.namespace("p/")
    kv.close()
    uses: list[Callable[[], object]] = [
        lambda: part["a"], lambda: part.get("a"), lambda: "a" in part, lambda: len(part), lambda: bool(part),
        lambda: list(part), lambda: iter(part), lambda: list(part.items()), lambda: iter(part.values()),
        lambda: part.__setitem__("a", b"1"), lambda: part.put("a", b"1"), lambda: part.__delitem__("a"),
        lambda: part.pop("a", None), part.popitem, part.clear, lambda: part.setdefault("a", b"1"),
        lambda: part.update(a=b"1"), part.flush, part.sync,
    ]  # fmt: skip
    with unchanged(path):
        for use in uses:
            with pytest.raises(Closed):
                use()
    assert contents(path) == {}


def test_a_namespace_is_not_hashable_and_equals_a_dict(tmp_path: Path) -> None:
    """As a mapping that changes."""
    with opened(tmp_path / "kv") as kv:
        part = kv.namespace("p/")
        part["a"] = b"1"
        assert part == {b"a": b"1"} == kv.namespace(b"p/")
        assert part != kv
        with pytest.raises(TypeError):
            hash(part)
        assert isinstance(kv, KVStore)


def test_in_order_it_reads_its_own_keys_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each walk of a small part went through the log of the whole store, though its keys were sorted."""

    def refuse(*_: object) -> None:
        raise AssertionError("the log was gone through")

    with KVStore.open(tmp_path / "kv", ordered=True) as kv:
        part = kv.namespace("b/")
        part["2"], part["1"], kv["a"], kv["c"] = b"two", b"one", b"other", b"other"
        monkeypatch.setattr(KVStore, "_walk", refuse)
        assert list(part) == list(part.keys()) == [b"1", b"2"]
        assert list(part.items()) == [(b"1", b"one"), (b"2", b"two")]
        assert list(part.values()) == [b"one", b"two"]
        assert len(part) == 2
        part.clear()
        assert not part
        monkeypatch.undo()
        assert dict(kv) == {b"a": b"other", b"c": b"other"}


@pytest.mark.parametrize("key", ["ab", b"ab", bytearray(b"ab")], ids=repr)
@pytest.mark.parametrize("part", ["n/", ""])
def test_one_key_is_not_many(tmp_path: Path, part: str, key: Any) -> None:
    """Its characters were deleted and looked up, which the store refuses."""
    with opened(tmp_path / "kv") as kv:
        for mapping in (kv.namespace(part), kv.typed(Json()).namespace(part)):
            kv.update({f"{part}a": "1", f"{part}b": "2"})
            for method in (mapping.delete_many, mapping.get_many):
                with pytest.raises(TypeError) as raised:
                    method(key)
                assert str(raised.value).endswith(f"is one key: pass [{key!r}]")
            assert len(kv) == 2
