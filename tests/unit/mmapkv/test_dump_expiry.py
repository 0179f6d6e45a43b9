"""A time to live goes along with its value, wherever that is copied. Out of a dump, values never expired."""

from __future__ import annotations

import io
import json
import math
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore, dbm
from mmapkv.cli import main
from mmapkv.dump_format import FORMATS, MalformedDump, read_dump
from tests.unit.mmapkv.test_commands import Input, said

HOUR_NS = 3_600_000_000_000
PAST_NS = 1_000_000_000


def expiries(path: Path) -> dict[bytes, int | None]:
    """When each value ceases to be there, by the records that made them."""
    with KVStore.open(path, "r") as kv:
        return {change.key: change.expires_ns for change in kv.changes() if change.key in kv}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Some values that stay, some that do not, in a part of the store too."""
    with KVStore.open(tmp_path / "kv") as kv:
        kv["stays"] = "1"
        kv.put("goes", "2", ttl=3600)
        kv.put("stays again", "3", ttl=3600)
        kv.touch("stays again", None)
        users = kv.namespace("users/")
        users.put("ann", b"4", ttl=7200)
        users["bob"] = b"5"
    return tmp_path / "kv"


def test_load_restores_the_time(store: Path, tmp_path: Path, capfdbinary: Any, monkeypatch: Any) -> None:
    """To the nanosecond: it is a moment, not what is left."""
    out = said(capfdbinary, "dump", store)
    monkeypatch.setattr(sys, "stdin", Input(out))
    told = json.loads(said(capfdbinary, "load", "-", tmp_path / "copy", "--json"))
    assert told == {"loaded": 5, "expired": 0, "refused": 0, "examples": []}
    expected = expiries(store)
    assert [key for key, when in expected.items() if when] == [b"goes", b"users/ann"]
    assert expiries(tmp_path / "copy") == expected
    with KVStore.open(tmp_path / "copy", "r") as kv:
        left = kv.namespace("users/").ttl("ann")
        assert left is not None
        assert 3600 < left <= 7200
        assert kv.namespace("users/").ttl("bob") is None
    assert said(capfdbinary, "dump", tmp_path / "copy") == out


def test_a_new_time_ends_the_old_one(store: Path, tmp_path: Path, capfdbinary: Any) -> None:
    """A value without one that is loaded over one that has it stays, and the other way round."""
    lines = '{"key": "goes", "value": "x"}\n{"key": "stays", "value": "x", "expires_ns": %d}\n'
    when = time.time_ns() + HOUR_NS
    (tmp_path / "dump").write_text(lines % when)
    said(capfdbinary, "load", tmp_path / "dump", store)
    found = expiries(store)
    assert (found[b"goes"], found[b"stays"]) == (None, when)


def test_what_has_expired_meanwhile_is_left_out_and_counted(
    store: Path, tmp_path: Path, capfdbinary: Any
) -> None:
    """It is no failure."""
    lines = ['{"mmapkv_dump": 2}', '{"key": "a", "value": "x"}']
    lines += [f'{{"key": "b{n}", "value": "x", "expires_ns": {PAST_NS}}}' for n in range(1500)]
    (tmp_path / "dump").write_text("\n".join(lines))
    told = json.loads(said(capfdbinary, "load", tmp_path / "dump", tmp_path / "copy", "--json"))
    assert told == {"loaded": 1, "expired": 1500, "refused": 0, "examples": []}
    assert expiries(tmp_path / "copy") == {b"a": None}
    with KVStore.open(tmp_path / "copy") as kv:
        assert (len(kv), kv.sweep()) == (1, 0)
    said_in_words = said(capfdbinary, "load", tmp_path / "dump", tmp_path / "copy")
    assert said_in_words == b"1 pairs loaded\n1,500 left out, for they have expired\n"


def test_a_refused_key_costs_no_other_its_time(tmp_path: Path, capfdbinary: Any) -> None:
    """What is put by itself then has it, too."""
    when = time.time_ns() + HOUR_NS
    lines = '{"key": "", "value": "x"}\n{"key": "a", "value": "x", "expires_ns": %d}\n'
    (tmp_path / "dump").write_text(lines % when)
    said(capfdbinary, "load", tmp_path / "dump", tmp_path / "copy", code=1)
    assert expiries(tmp_path / "copy") == {b"a": when}


def test_the_first_version_is_read(tmp_path: Path, capfdbinary: Any) -> None:
    """It has no line that says which it is."""
    (tmp_path / "dump").write_text('{"key": "a", "value": "x"}\n{"key": {"base64": "/w=="}, "value": ""}\n')
    assert said(capfdbinary, "load", tmp_path / "dump", tmp_path / "copy") == b"2 pairs loaded\n"
    assert expiries(tmp_path / "copy") == {b"a": None, b"\xff": None}


def test_the_first_line_says_the_version(store: Path, capfdbinary: Any) -> None:
    """So that who does not know of times refuses it; two dumps one after the other are one."""
    out = said(capfdbinary, "dump", store)
    assert out.startswith(b'{"mmapkv_dump": 2}\n{"key": "stays", "value": "1"}\n')
    assert len(list(read_dump(io.BytesIO(out + out)))) == 10


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('{"mmapkv_dump": 3}', "version 3; known are 1 and 2"),
        ('{"mmapkv_dump": "2"}', "version '2'"),
        ('{"key": "a", "value": "", "expires_ns": "1"}', "expires_ns"),
        ('{"key": "a", "value": "", "expires_ns": 1.5}', "expires_ns"),
        ('{"key": "a", "value": "", "expires_ns": true}', "expires_ns"),
        ('{"key": "a", "value": "", "expires_ns": 0}', "expires_ns"),
        ('{"key": "a", "value": "", "expires_ns": -1}', "expires_ns"),
        ('{"key": "a", "value": "", "expires_ns": 18446744073709551616}', "expires_ns"),
    ],
)
def test_what_is_no_version_or_time_is_said(tmp_path: Path, capsys: Any, line: str, word: str) -> None:
    """With the line."""
    (tmp_path / "dump").write_text('{"key": "b", "value": ""}\n' + line)
    assert main(["load", str(tmp_path / "dump"), str(tmp_path / "kv")]) == 2
    error = capsys.readouterr().err
    assert "line 2" in error
    assert word in error
    with pytest.raises(MalformedDump, match="line 1"):
        list(read_dump(io.BytesIO(line.encode())))


@pytest.mark.parametrize("form", sorted(set(FORMATS) - {"jsonl"}))
def test_a_format_that_cannot_say_it_is_told_of(
    store: Path, tmp_path: Path, capfdbinary: Any, form: str
) -> None:
    """On stderr, with the number: in the copy these values would stay."""
    assert main(["dump", str(store), "--format", form]) == 0
    error = capfdbinary.readouterr().err.decode()
    assert f"2 of 5 pairs have a time to live, which {form} cannot say" in error
    told = json.loads(
        said(capfdbinary, "dump", store, "--format", form, "-o", tmp_path / "out", "--json"),
    )
    assert told == {"keys": 5, "output": str(tmp_path / "out"), "times_lost": 2}


def test_backup_compaction_and_dbm_keep_it(store: Path, tmp_path: Path, capfdbinary: Any) -> None:
    """They copy records as they are, or none."""
    expected = expiries(store)
    said(capfdbinary, "backup", store, tmp_path / "copy")
    assert expiries(tmp_path / "copy") == expected
    with KVStore.open(store, compaction=False) as kv:
        for each in range(2000):
            kv["stays"] = str(each)
    said(capfdbinary, "compact", store)
    assert expiries(store) == expected
    with closing(dbm.open(store, "w")) as made:
        made["other"] = "6"
        made.reorganize()
    assert expiries(store) == expected | {b"other": None}


def test_a_dbm_does_not_show_what_has_expired(tmp_path: Path, capfdbinary: Any) -> None:
    """Neither its list of keys, nor a walk by `nextkey`."""
    with KVStore.open(tmp_path / "kv") as kv:
        kv._put_entries([(b"a", b"1", None), (b"b", b"2", PAST_NS), (b"c", b"3", None)])
    with dbm.open(tmp_path / "kv", "w") as made:
        assert made.keys() == [b"a", b"c"]
        assert made.firstkey() == b"a"
        assert made.nextkey(b"a") == b"c"
        assert made.get(b"b") is None
        assert made.setdefault(b"b", b"new") == b"new"
    assert expiries(tmp_path / "kv") == {b"a": None, b"b": None, b"c": None}


def test_diskcache_keeps_its_times(tmp_path: Path, capfdbinary: Any) -> None:
    """As the cache has them, in seconds; what never ends has none. Made by hand, without the package."""
    when = float(int(time.time()) + 3600)
    (tmp_path / "cache").mkdir()
    with closing(sqlite3.connect(tmp_path / "cache" / "cache.db")) as made, made:
        made.execute("CREATE TABLE Cache (key, raw, mode, filename, value, expire_time)")
        for key, expires in (
            ("stays", None),
            ("goes", when),
            ("gone", 1.5),
            ("long gone", -5.0),
            ("never there", -math.inf),
            ("for ever", math.inf),
            ("for long", 1e12),
        ):
            made.execute("INSERT INTO Cache VALUES (?, 1, 1, NULL, 'x', ?)", (key, expires))
    told = json.loads(
        said(capfdbinary, "load", "--from", "diskcache", tmp_path / "cache", tmp_path / "kv", "--json")
    )
    assert told == {"loaded": 4, "expired": 3, "refused": 0, "examples": []}
    assert expiries(tmp_path / "kv") == {
        b"stays": None,
        b"goes": int(when) * 1_000_000_000,
        b"for ever": None,
        b"for long": None,
    }


def test_diskcache_rows_whose_file_has_no_name_are_refused(tmp_path: Path, capfdbinary: Any) -> None:
    (tmp_path / "cache").mkdir()
    with closing(sqlite3.connect(tmp_path / "cache" / "cache.db")) as made, made:
        made.execute("CREATE TABLE Cache (key, raw, mode, filename, value, expire_time)")
        for key, name in (("no file", None), ("no text", 5), ("no path", "a\0b")):
            made.execute("INSERT INTO Cache VALUES (?, 1, 2, ?, NULL, NULL)", (key, name))
        made.execute("INSERT INTO Cache VALUES ('sound', 1, 1, NULL, 'x', NULL)")
    assert main(["load", "--from", "diskcache", str(tmp_path / "cache"), str(tmp_path / "kv"), "--json"]) == 1
    told = json.loads(capfdbinary.readouterr().out)
    assert (told["loaded"], told["refused"]) == (1, 3)
