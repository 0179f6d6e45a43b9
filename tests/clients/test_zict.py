"""zict, the layered mappings below dask: a store as the slow layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmapkv.codecs import Bytes, Json
from tests.unit.mmapkv.stores import contents, opened

zict = pytest.importorskip("zict", reason="zict is not installed: NOT TESTED as a layer of it")


def test_what_does_not_fit_goes_to_the_store_and_comes_back(tmp_path: Path) -> None:
    """`Buffer`: a mapping of limited weight in front of one that is not limited."""
    with opened(tmp_path / "kv") as kv:
        buffer = zict.Buffer({}, kv.typed(Bytes(), keys=str), n=20, weight=lambda key, value: len(value))
        for number in range(10):
            buffer[f"key{number}"] = b"%d" % number * 8
        assert len(buffer.fast) == 2
        assert len(kv) == 8
        assert dict(buffer) == {f"key{number}": b"%d" % number * 8 for number in range(10)}
        assert buffer["key0"] == b"0" * 8
        assert b"key0" not in kv
        assert "key0" in buffer.fast
        del buffer["key5"]
        buffer["key6"] = b"new"
        assert sorted(buffer) == sorted(f"key{number}" for number in range(10) if number != 5)
        buffer.flush()


def test_objects_through_functions(tmp_path: Path) -> None:
    """`Func`: what dumps and loads values, over the store as it is; and the codec that does the same."""
    with opened(tmp_path / "kv") as kv:
        codec = Json()
        outer = zict.Func(codec.encode, codec.decode, kv)
        outer[b"a"] = [1, 2]
        outer.update({b"b": None, b"c": "text"})
        assert dict(outer) == {b"a": [1, 2], b"b": None, b"c": "text"} == dict(kv.typed(codec))
        del outer[b"b"]
        assert sorted(outer) == [b"a", b"c"]
    assert contents(tmp_path / "kv") == {b"a": b"[1,2]", b"c": b'"text"'}


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    """`LRU` over a store: a cache on disk of limited size."""
    gone = []
    with opened(tmp_path / "kv") as kv:
        lru = zict.LRU(3, kv.typed(Json(), keys=str), on_evict=[lambda key, value: gone.append((key, value))])
        for number in range(4):
            lru[str(number)] = number
            assert lru["0"] == 0
        assert gone == [("1", 1)]
        assert dict(kv.typed(Json(), keys=str)) == {"0": 0, "2": 2, "3": 3}


def test_a_cache_before_the_store(tmp_path: Path) -> None:
    """`Cache` writes through, and reads what it has not from the store."""
    with opened(tmp_path / "kv") as kv:
        cache = zict.Cache(kv, {})
        cache[b"a"] = b"1"
        cache[b"b"] = b"2"
        cache.cache.clear()
        assert cache[b"b"] == b"2"
        assert dict(kv) == dict(cache) == {b"a": b"1", b"b": b"2"}
        del cache[b"a"]
        assert dict(kv) == {b"b": b"2"}
