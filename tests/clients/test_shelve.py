"""The standard library's shelve, which pickles objects into any mapping of bytes."""

from __future__ import annotations

import pickle
import shelve
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from mmapkv import dbm
from tests.unit.mmapkv.stores import contents, opened

Objects = MutableMapping[str, Any]


@pytest.mark.parametrize("via", ["store", "dbm", "namespace"])
def test_objects_survive(tmp_path: Path, via: str) -> None:
    """Written by one shelf, read by the next; which closes what is below it."""
    path = tmp_path / "kv"

    def below(mode: Any) -> Any:
        kv = opened(path, mode)
        return {"store": kv, "dbm": dbm.Database(kv), "namespace": kv.namespace("shelf/")}[via], kv

    mapping, kv = below("c")
    with shelve.Shelf(mapping) as shelf:
        shelf["list"] = [1, 2]
        shelf["none"] = None
        shelf["grüße"] = {"a": (1, 2)}
        del shelf["none"]
        assert sorted(shelf) == ["grüße", "list"]
        assert shelf.get("none", 5) == 5
        shelf.sync()
    # A namespace is a part of a store, which others may go on using.
    assert kv.closed == (via != "namespace")
    kv.close()
    mapping, kv = below("r")
    with shelve.Shelf(mapping) as shelf:
        assert dict(shelf) == {"list": [1, 2], "grüße": {"a": (1, 2)}}
        assert "list" in shelf
        assert len(shelf) == 2
    kv.close()


def test_a_shelf_that_writes_back(tmp_path: Path) -> None:
    """What was changed in place is written by `sync` and by `close`, and not before."""
    path = tmp_path / "kv"
    with shelve.Shelf(opened(path), writeback=True) as shelf:
        shelf["a"] = [1]
        shelf["b"] = [1]
        shelf["a"].append(2)
        assert shelf["a"] == [1, 2]
        assert pickle.loads(shelf.dict[b"a"]) == [1]
        shelf.sync()
        assert pickle.loads(shelf.dict[b"a"]) == [1, 2]
        shelf["b"].append(3)
    assert set(contents(path)) == {b"a", b"b"}
    with shelve.Shelf(opened(path, "r")) as shelf:
        assert dict(shelf) == {"a": [1, 2], "b": [1, 3]}


def test_a_shelf_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`shelve.open` asks dbm for the database; told of our module, it takes that."""
    standard = pytest.importorskip("dbm")
    standard.open(str(tmp_path / "other"), "n").close()  # has it look for its own modules first
    monkeypatch.setattr(standard, "whichdb", dbm.whichdb)
    monkeypatch.setattr(standard, "_defaultmod", dbm)
    monkeypatch.setitem(standard._modules, "mmapkv.dbm", dbm)
    path = str(tmp_path / "shelf")
    with shelve.open(path) as shelf:
        shelf["a"] = {1, 2}
    with shelve.open(path, "r") as shelf:
        assert isinstance(shelf.dict, dbm.Database)
        assert shelf["a"] == {1, 2}
