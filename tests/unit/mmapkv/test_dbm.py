"""`mmapkv.dbm` where CPython's own tests do not look: walks by key, paths, flags, what is at a path."""

from __future__ import annotations

import dbm as standard
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore, Locked, dbm
from mmaplog import Log
from tests.unit.mmapkv.stores import opened


@pytest.fixture
def db(tmp_path: Path) -> Any:
    """A database of ten pairs, open for writing."""
    with dbm.Database(opened(tmp_path / "db")) as found:
        for number in range(10):
            found[f"key{number}"] = f"value{number}"
        yield found


def test_it_is_a_store(tmp_path: Path) -> None:
    """Readable as one, and the other way round."""
    with pytest.raises(dbm.error):
        dbm.open(tmp_path / "db")
    with dbm.open(tmp_path / "db", "c") as db:
        db["ä"] = "ö"
        db[b"b"] = bytearray(b"2")
    with KVStore.open(tmp_path / "db") as kv:
        assert dict(kv) == {"ä".encode(): "ö".encode(), b"b": b"2"}
        kv[b"c"] = b"3"
    with dbm.open(os.fsencode(tmp_path / "db"), "r") as db:
        assert db.keys() == ["ä".encode(), b"b", b"c"]
        assert list(db.values()) == ["ö".encode(), b"2", b"3"]
        assert list(db.items()) == list(zip(db.keys(), db.values(), strict=True))
        assert db == {"ä".encode(): "ö".encode(), b"b": b"2", b"c": b"3"}
        assert db["ä"] == db.get("ä".encode()) == "ö".encode()
        assert "ä" in db
        assert "x" not in db
        db.sync()
        for change in (lambda: db.update(a="1"), lambda: db.pop("b"), db.clear, lambda: db.setdefault("x")):
            with pytest.raises(dbm.error):
                change()
    with pytest.raises(dbm.error):
        db["ä"]
    assert repr(db).startswith("<mmapkv.dbm.Database of <KVStore")


def test_changes_as_in_a_dict(db: Any) -> None:
    """All that a mutable mapping has."""
    assert db.pop("key0") == b"value0"
    assert db.pop("key0", None) is None
    assert db.setdefault("new") == b""
    assert db.setdefault("key1", "other") == b"value1"
    del db["key2"]
    with pytest.raises(KeyError):
        del db["key2"]
    assert db.popitem()[0] in {b"key1", b"key3"}
    assert len(db) == 8
    db.clear()
    assert db.keys() == []
    assert not db


def test_a_walk_by_keys(db: Any) -> None:
    """As GNU's: each once, in some order, and then None."""
    found = []
    key = db.firstkey()
    while key is not None:
        found.append(key)
        key = db.nextkey(key)
    assert found == db.keys()
    assert db.nextkey(found[3].decode()) == found[4]
    assert db.nextkey(found[3]) == found[4]
    assert db.nextkey(found[4]) == found[5]
    assert db.nextkey(found[9]) is None
    assert db.nextkey(found[9]) is None
    assert db.nextkey("missing") is None
    with pytest.raises(TypeError):
        db.nextkey(5)


def test_a_walk_that_deletes_and_adds(db: Any) -> None:
    """The keys that were there when it began, each once, whatever happens to them."""
    wanted = db.keys()
    found = []
    key = db.firstkey()
    while key is not None:
        found.append(key)
        del db[key]
        db[key + b"x"] = b"new"
        key = db.nextkey(key)
    assert found == wanted
    assert sorted(db.keys()) == [key + b"x" for key in sorted(wanted)]


def test_a_walk_over_nothing(tmp_path: Path) -> None:
    """None at once."""
    with dbm.Database(opened(tmp_path / "db")) as db:
        assert db.firstkey() is None
        assert db.nextkey("a") is None


def test_flags(tmp_path: Path) -> None:
    """As every dbm has them."""
    path = tmp_path / "db"
    for flag in ("r", "w"):
        with pytest.raises(dbm.error):
            dbm.open(path, flag)
    with pytest.raises(ValueError):
        dbm.open(path, "x")  # type: ignore[arg-type]
    with dbm.open(path, "n", 0o600) as db:
        db["a"] = "1"
    with dbm.open(path, "w") as db:
        assert db["a"] == b"1"
        with pytest.raises(Locked):
            dbm.open(path, "c")
    with dbm.open(path, "n") as db:
        assert len(db) == 0


def test_a_name_that_was_found_free(tmp_path: Path) -> None:
    """An empty file makes room for a new database; another file and a link do not, nor with "c"."""
    descriptor, name = tempfile.mkstemp(dir=tmp_path)
    os.close(descriptor)
    with pytest.raises(NotADirectoryError):
        dbm.open(name, "c")
    dbm.open(name, "n").close()
    assert dbm.whichdb(name) == "mmapkv.dbm"
    full = tmp_path / "full"
    full.write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    (tmp_path / "target").touch()
    for path in (full, link):
        with pytest.raises(NotADirectoryError):
            dbm.open(path, "n")
    assert full.read_text() == "precious"
    assert (tmp_path / "target").exists()


def test_which_database_it_is(tmp_path: Path) -> None:
    """Ours, one of the standard library's, none, or one that nobody knows."""
    dbm.open(tmp_path / "ours", "c").close()
    dumb = pytest.importorskip("dbm.dumb")
    dumb.open(str(tmp_path / "dumb"), "c").close()
    (tmp_path / "text").write_text("some text")
    (tmp_path / "directory").mkdir()
    Log.open(tmp_path / "log").close()
    expected = {
        "ours": "mmapkv.dbm", "dumb": "dbm.dumb", "text": "", "directory": None, "log": None, "absent": None
    }  # fmt: skip
    assert {name: dbm.whichdb(tmp_path / name) for name in expected} == expected
    assert dbm.whichdb(os.fsencode(tmp_path / "ours")) == "mmapkv.dbm"
    assert standard.whichdb(str(tmp_path / "ours")) is None


def test_a_database_is_pickled_as_its_store(db: Any) -> None:
    """To read it elsewhere."""
    db.firstkey()
    with pickle.loads(pickle.dumps(db)) as again:
        assert dict(again) == dict(db)
        with pytest.raises(dbm.error):
            again["a"] = "1"


def test_reorganizing_keeps_what_there_is(tmp_path: Path) -> None:
    """As gdbm's: what is gone takes no room any more."""
    with dbm.open(tmp_path / "db", "n") as db:
        for number in range(500):
            db["passing"] = b"%500d" % number
        db["kept"] = b"1"
        del db["passing"]
        before = sum(file.stat().st_blocks for file in (tmp_path / "db").iterdir())
        db.reorganize()
        assert dict(db) == {b"kept": b"1"}
    assert sum(file.stat().st_blocks for file in (tmp_path / "db").iterdir()) < before
