"""Pairs of other stores, as those wrote them; what cannot be a pair is refused, and nothing is ever run."""

from __future__ import annotations

import dbm.dumb
import json
import os
import pickle
import shelve
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mmapkv.cli import main
from mmapkv.load_diskcache import read_diskcache
from mmapkv.load_source import Refusals
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapkv.stores import contents
from tests.unit.mmapkv.test_commands import said

PAIRS = {b"apple": b"red", b"\xff\x00": bytes(range(256)), b"empty": b""}


def loaded(capfdbinary: Any, kind: str, source: Path, *more: str, code: int = 0) -> dict[str, Any]:
    """What the command says; the store is beside the source."""
    out = said(capfdbinary, "load", "--from", kind, source, source.parent / "kv", *more, "--json", code=code)
    return json.loads(out) if out else {}


def refused_with(capsys: Any, kind: str, source: Path, *more: str) -> str:
    """The message about a source that cannot be read; there is no store then."""
    assert main(["load", "--from", kind, str(source), str(source.parent / "kv"), *more]) == 2
    assert not (source.parent / "kv").exists()
    return str(capsys.readouterr().err)


def test_a_dump_that_is_none_makes_no_store(tmp_path: Path, capsys: Any) -> None:
    """It was there, and empty, for whoever looked next."""
    (tmp_path / "garbage").write_bytes(b"garbage\n")
    assert "garbage" in refused_with(capsys, "dump", tmp_path / "garbage")


# LMDB


def fill_lmdb(path: Path, name: bytes | None = None, *, dupsort: bool = False, subdir: bool = True) -> None:
    lmdb = pytest.importorskip("lmdb", reason="no lmdb: NOT TESTED that its files are loaded")
    with lmdb.open(str(path), max_dbs=4, subdir=subdir) as environment:
        opened = environment.open_db(name, dupsort=dupsort) if name else None
        with environment.begin(opened, write=True) as transaction:
            for key, value in PAIRS.items():
                # Several values of a key are kept as keys, and those are not empty.
                transaction.put(key, value or b"-" * dupsort)
            transaction.put(b"48 bytes", b"x" * 48)


@pytest.mark.parametrize("subdir", [True, False])
def test_lmdb(tmp_path: Path, capfdbinary: Any, subdir: bool) -> None:
    fill_lmdb(tmp_path / "source", subdir=subdir)
    assert loaded(capfdbinary, "lmdb", tmp_path / "source")["loaded"] == 4
    assert contents(tmp_path / "kv") == {**PAIRS, b"48 bytes": b"x" * 48}


def test_lmdb_with_named_databases(tmp_path: Path, capfdbinary: Any) -> None:
    fill_lmdb(tmp_path / "source", b"fruit")
    assert loaded(capfdbinary, "lmdb", tmp_path / "source", "--database", "fruit")["loaded"] == 4


def test_lmdb_that_cannot_be_loaded(tmp_path: Path, capsys: Any) -> None:
    fill_lmdb(tmp_path / "named", b"fruit")
    fill_lmdb(tmp_path / "several", b"fruit", dupsort=True)
    (tmp_path / "foreign").write_bytes(b"x" * 10_000)
    assert "named databases; choose one with --database: 'fruit'\n" in refused_with(
        capsys, "lmdb", tmp_path / "named"
    )
    assert "several values" in refused_with(capsys, "lmdb", tmp_path / "several", "--database", "fruit")
    for name in ("foreign", "nothing"):
        assert refused_with(capsys, "lmdb", tmp_path / name)
    # In words of LMDB's, none of which was the name that is there.
    fill_lmdb(tmp_path / "plain")
    for name, told in (("named", "choose one with --database: 'fruit'"), ("plain", "leave out --database")):
        for absent in ("nuts", "48 bytes"):
            error = refused_with(capsys, "lmdb", tmp_path / name, "--database", absent)
            assert f"has no database '{absent}'; " in error
            assert f"{told}\n" in error


def test_lmdb_without_its_package(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    assert "pip install" in refused_with(capsys, "lmdb", tmp_path)


# dbm


def fill_dumb(path: Path) -> None:
    with closing(dbm.dumb.open(str(path), "n")) as made:
        made.update(PAIRS)


def fill_gnu(path: Path) -> None:
    gnu = pytest.importorskip("dbm.gnu", reason="no dbm.gnu: NOT TESTED that its files are loaded")
    with gnu.open(str(path), "n") as made:
        for key, value in PAIRS.items():
            made[key] = value


def fill_ndbm(path: Path) -> None:
    ndbm = pytest.importorskip("dbm.ndbm", reason="no dbm.ndbm: NOT TESTED that its files are loaded")
    with closing(ndbm.open(str(path), "n")) as made:
        for key, value in PAIRS.items():
            made[key] = value


@pytest.mark.parametrize("fill", [fill_dumb, fill_gnu, fill_ndbm])
def test_dbm(tmp_path: Path, capfdbinary: Any, fill: Callable[[Path], object]) -> None:
    fill(tmp_path / "source")
    assert loaded(capfdbinary, "dbm", tmp_path / "source") == {
        "loaded": 3,
        "expired": 0,
        "refused": 0,
        "examples": [],
    }
    assert contents(tmp_path / "kv") == PAIRS


def test_a_shelf_comes_as_the_pickles_that_it_is(tmp_path: Path, capfdbinary: Any) -> None:
    with shelve.open(str(tmp_path / "source")) as made:
        made["key"] = [1, 2]
    loaded(capfdbinary, "dbm", tmp_path / "source")
    assert pickle.loads(contents(tmp_path / "kv")[b"key"]) == [1, 2]


def test_dbm_that_is_none(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "foreign").write_bytes(b"x" * 10_000)
    assert refused_with(capsys, "dbm", tmp_path / "foreign")
    assert refused_with(capsys, "dbm", tmp_path / "nothing")


# SQLite


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Two tables, one with an awkward name, and values of every type."""
    path = tmp_path / 'source with "quotes" ?#%'
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("CREATE TABLE pairs (k, v, w)")
        rows = [
            ("text", "värde", 1),
            (b"\xff", b"\x00", 2),
            (7, 0.5, 3),
            (None, "x", 4),
            ("null", None, 5),
            ("", "x", 6),
        ]
        made.executemany("INSERT INTO pairs VALUES (?, ?, ?)", rows)
        made.execute('CREATE TABLE "a ""b""" ("x ""y""")')
    return path


def test_sqlite(database: Path, capfdbinary: Any) -> None:
    with unchanged(database.parent):
        found = json.loads(
            said(
                capfdbinary,
                *(
                    "load",
                    "--json",
                    "--from",
                    "sqlite",
                    database,
                    database.parent.parent / "kv",
                    "--table",
                    "pairs",
                ),
                code=1,
            )
        )
    assert (found["loaded"], found["refused"]) == (3, 3)
    expected = {b"text": "värde".encode(), b"\xff": b"\x00", b"7": b"0.5"}
    assert contents(database.parent.parent / "kv") == expected


def test_sqlite_columns(database: Path, capfdbinary: Any) -> None:
    columns = ("--table", "pairs", "--key-column", "w", "--value-column", "k")
    assert loaded(capfdbinary, "sqlite", database, *columns, code=1)["loaded"] == 5
    assert contents(database.parent / "kv")[b"1"] == b"text"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ((), "choose a table"),
        (("--table", "nothing"), "there are ['pairs', 'a \"b\"']"),
        (("--table", 'a "b"'), "one column"),
        (("--table", "pairs", "--key-column", "z"), "has no column 'z'"),
    ],
)
def test_sqlite_needs_to_be_told(database: Path, capsys: Any, more: tuple[str, ...], word: str) -> None:
    assert word in refused_with(capsys, "sqlite", database, *more)


def test_sqlite_that_is_damaged_further_on(tmp_path: Path, capfdbinary: Any) -> None:
    """What was read before counts, and the message says so."""
    path = tmp_path / "source"
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("PRAGMA page_size = 512")
        made.execute("CREATE TABLE pairs (k, v)")
        made.executemany("INSERT INTO pairs VALUES (?, ?)", ((f"{n}", bytes(2_000)) for n in range(50)))
        made.execute("CREATE TABLE more (k, v)")
    # Values of several pages are chained by their first four bytes; the chains at the end lead nowhere.
    data = path.read_bytes()
    half = len(data) // 2 // 512 * 512
    cut = b"".join(
        b"\xff" * 4 + data[at + 4 : at + 512] if data[at] == 0 else data[at : at + 512]
        for at in range(half, len(data), 512)
    )
    path.write_bytes(data[:half] + cut)
    code = main(["load", "--from", "sqlite", "--table", "pairs", str(path), str(tmp_path / "kv")])
    assert code == 2
    error = capfdbinary.readouterr().err.decode()
    assert "cannot be read any further: database disk image is malformed" in error
    found = contents(tmp_path / "kv")
    assert 0 < len(found) < 50
    assert f"({len(found)} pairs before that were loaded)" in error


def test_sqlite_that_is_none(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "foreign").write_bytes(b"x" * 10_000)
    for name in ("foreign", "nothing"):
        assert "SQLite" in refused_with(capsys, "sqlite", tmp_path / name)
    # SQLite calls it an I/O error.
    (tmp_path / "directory").mkdir()
    assert "name its file" in refused_with(capsys, "sqlite", tmp_path / "directory")
    assert not (tmp_path / "nothing").exists()


# diskcache


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["Cache", "FanoutCache"])
def test_diskcache(tmp_path: Path, capfdbinary: Any, kind: str) -> None:
    diskcache = pytest.importorskip("diskcache", reason="no diskcache: NOT TESTED that its caches are loaded")
    with getattr(diskcache, kind)(str(tmp_path / "source")) as made:
        made[b"bytes"], made["text"], made[7], made[0.5] = b"\xff", "värde", 12, 1.5
        made["large"], made["large text"] = b"\xff" * 100_000, "ä" * 100_000
        made["pickle"], made[("a", "tuple")] = [1], b"x"
        made["bomb"] = Bomb(tmp_path / "exploded")
        made.set("stays", b"x", expire=1000)
        # The last: whatever is set later removes what has expired by then.
        made.set("gone", b"x", expire=0.001)
    time.sleep(0.01)
    found = loaded(capfdbinary, "diskcache", tmp_path / "source", code=1)
    assert (found["loaded"], found["expired"], found["refused"]) == (7, 1, 3)
    assert any("pickle" in each for each in found["examples"])
    assert not (tmp_path / "exploded").exists()
    assert contents(tmp_path / "kv") == {
        b"bytes": b"\xff",
        b"text": "värde".encode(),
        b"7": b"12",
        b"0.5": b"1.5",
        b"large": b"\xff" * 100_000,
        b"large text": "ä".encode() * 100_000,
        b"stays": b"x",
    }


def test_a_cache_whose_names_lead_elsewhere(tmp_path: Path) -> None:
    """Made by hand, without the package."""
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "link").symlink_to(tmp_path / "secret")
    with closing(sqlite3.connect(tmp_path / "cache" / "cache.db")) as made, made:
        made.execute("CREATE TABLE Cache (key, raw, mode, filename, value, expire_time)")
        for number, name in enumerate(
            ("../secret", str(tmp_path / "secret"), "", "missing", "a/../../secret")
        ):
            made.execute("INSERT INTO Cache VALUES (?, 1, 2, ?, NULL, NULL)", (number, name))
    refused = Refusals()
    assert list(read_diskcache(str(tmp_path / "cache"), refused).entries) == []
    assert refused.count == 5


def test_diskcache_that_is_none(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "source").mkdir()
    assert "not the directory of a diskcache" in refused_with(capsys, "diskcache", tmp_path / "source")
    with closing(sqlite3.connect(tmp_path / "source" / "cache.db")) as made, made:
        made.execute("CREATE TABLE Cache (key, value)")
    assert "not of a diskcache" in refused_with(capsys, "diskcache", tmp_path / "source")
