"""What is dumped is loaded again, by us and by those whose formats they are."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmapio._wait import HAS_ROBUST_MUTEX
from mmapkv import KVStore, RecordTooLarge, _transfer
from mmapkv.cli import main
from mmapkv.dump_format import FORMATS, TIMELESS, MalformedDump, read_dump
from mmapkv.load_source import EXPIRES_NS_MAX, Entry
from mmaplog._progress import Meter
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapkv.stores import contents
from tests.unit.mmapkv.test_commands import Input, said

CHOSEN = random.Random(5)
PAIRS = {
    b"apple": b"red",
    b"empty": b"",
    "Äpfel".encode(): "\u2028 \x00".encode(),
    b"\xff\x00\n": bytes(range(256)),
    b"like json": b'{"base64": "AAAA"}',
    b"-> \n+1,1:": b"\nDATA=END\n",
    **{
        CHOSEN.randbytes(CHOSEN.randrange(1, 30)): CHOSEN.randbytes(CHOSEN.randrange(300)) for _ in range(200)
    },
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of all that."""
    with KVStore.open(tmp_path / "kv") as kv:
        kv.update(PAIRS)
    return tmp_path / "kv"


@pytest.mark.parametrize("form", FORMATS)
def test_out_and_in_again(
    store: Path, tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """By pipes and by files; whichever format it is shows by itself."""
    out = said(capfdbinary, "dump", store, "--format", form)
    monkeypatch.setattr(sys, "stdin", Input(out))
    assert said(capfdbinary, "load", "-", tmp_path / "piped") == b"%d pairs loaded\n" % len(PAIRS)
    told = json.loads(said(capfdbinary, "dump", store, "--format", form, "-o", tmp_path / "file", "--json"))
    assert told["keys"] == len(PAIRS)
    assert (tmp_path / "file").read_bytes() == out
    told = json.loads(said(capfdbinary, "load", tmp_path / "file", tmp_path / "filed", "--json"))
    assert told == {"loaded": len(PAIRS), "expired": 0, "refused": 0, "examples": []}
    assert contents(tmp_path / "piped") == contents(tmp_path / "filed") == PAIRS
    assert said(capfdbinary, "dump", tmp_path / "piped", "--format", form).count(b"\n") == out.count(b"\n")


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_store(form: str) -> None:
    """Its dump is no error."""
    assert list(read_dump(io.BytesIO(b"".join(FORMATS[form]([], 0))))) == []
    assert list(read_dump(io.BytesIO(b""))) == []


@pytest.mark.parametrize("form", FORMATS)
def test_a_dump_that_is_cut_or_spoilt_is_no_dump(form: str) -> None:
    """Cut anywhere, but for JSON lines at the end of one; and changed anywhere, no other error comes."""
    times = (None, 1, EXPIRES_NS_MAX) if form not in TIMELESS else (None,)
    entries = [(*pair, times[at % len(times)]) for at, pair in enumerate(PAIRS.items()) if at < 6]
    whole = b"".join(FORMATS[form](entries, 1000))
    assert list(read_dump(io.BytesIO(whole))) == entries
    for length in range(1, len(whole)):
        try:
            found = list(read_dump(io.BytesIO(whole[:length])))
        except MalformedDump:
            continue
        # The last line end is missed by nobody.
        assert form == "jsonl" or length == len(whole) - 1
        assert found == entries[: len(found)]
    for at in range(len(whole)):
        spoilt = bytearray(whole)
        spoilt[at] ^= 1 << at % 8
        try:
            list(read_dump(io.BytesIO(spoilt)))
        except MalformedDump:
            continue


def test_what_others_write_is_read() -> None:
    """mdb_dump -p, and JSON of other programs."""
    printed = rb"""VERSION=3
format=print
database=x
type=btree
db_pagesize=4096
HEADER=END
 a\\b\0a
 \ff value
DATA=END
"""
    assert list(read_dump(io.BytesIO(printed))) == [(b"a\\b\n", b"\xff value", None)]
    lines = rb'{"value":"\u00e4","key":"k","more":1}' + b"\n\n" + b'{"key": {"base64": "AA=="}, "value": ""}'
    assert list(read_dump(io.BytesIO(lines))) == [(b"k", "ä".encode(), None), (b"\0", b"", None)]


MALFORMED = {
    "nothing known": (b"hello", "no dump in a known format"),
    "not an object": (b'{"key": "a"}\n', "line 1 is no pair"),
    "a number": (b'{"key": "a", "value": 1}\n', "neither a string"),
    "half of a surrogate": (rb'{"key": "\ud800", "value": ""}', "line 1"),
    "several values": (b"VERSION=3\nformat=print\ndupsort=1\nHEADER=END\nDATA=END\n", "several values"),
    "two databases": (b"VERSION=3\nformat=print\nHEADER=END\nDATA=END\nVERSION=3\n", "second database"),
    "another version": (b"VERSION=2\nformat=print\nHEADER=END\nDATA=END\n", "version 3"),
    "no value": (b"VERSION=3\nformat=print\nHEADER=END\n a\nDATA=END\n", "no value"),
    "no escape": (b"VERSION=3\nformat=print\nHEADER=END\n a\\x\n b\nDATA=END\n", "no escape"),
    "a length that lies": (b"+5,9999999999:apple->", "cut in the middle"),
    "no arrow": (b"+1,1:a=>b\n\n", "add up"),
}


@pytest.mark.parametrize(("content", "word"), MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_wrong_is_said(tmp_path: Path, capsys: Any, content: bytes, word: str) -> None:
    """With the exit code for a wrong request; what came before is in the store."""
    (tmp_path / "dump").write_bytes(content)
    assert main(["load", str(tmp_path / "dump"), str(tmp_path / "kv")]) == 2
    assert word in capsys.readouterr().err


def test_what_is_wrong_is_said_in_short(tmp_path: Path, capsys: Any) -> None:
    # The whole line was shown, however long.
    (tmp_path / "dump").write_bytes(b'{"key": "\xff' + bytes(100_000))
    assert main(["load", str(tmp_path / "dump"), str(tmp_path / "kv")]) == 2
    error = capsys.readouterr().err
    assert "line 1 is no pair: UnicodeDecodeError: " in error
    assert len(error) < 300


def test_what_is_no_file_is_to_come_by_the_standard_input(tmp_path: Path, capsys: Any) -> None:
    # Of `load <(zcat dump.gz) STORE` it was said that a pipe cannot be mapped.
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path(os.devnull)):
        assert main(["load", str(path), str(tmp_path / "kv")]) == 2
        assert "give - for SOURCE" in capsys.readouterr().err
    assert not (tmp_path / "kv").exists()


@pytest.mark.parametrize("option", ["--database", "--table", "--key-column", "--value-column"])
def test_an_option_of_another_kind_of_source_is_refused(
    store: Path, tmp_path: Path, capsys: Any, option: str
) -> None:
    # It was passed over.
    assert main(["load", str(store), str(tmp_path / "new"), option, "x"]) == 2
    assert f"{option} is for --from " in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_pairs_that_a_store_cannot_hold_are_refused(tmp_path: Path, capfdbinary: Any) -> None:
    """And counted; the others are loaded."""
    (tmp_path / "dump").write_text('{"key": "", "value": "x"}\n{"key": "a", "value": "x"}\n' * 7)
    told = said(capfdbinary, "load", tmp_path / "dump", tmp_path / "kv", code=1)
    assert b"7 pairs loaded" in told
    assert b"REFUSED: key b''" in told
    assert b"7 refused in all" in told
    assert contents(tmp_path / "kv") == {b"a": b"x"}


def test_a_file_is_written_whole_or_not_at_all(store: Path, tmp_path: Path, capfdbinary: Any) -> None:
    """A store that turns out to be damaged leaves the last dump as it was."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_bytes(b"before")
    segment = next(store.glob("*.seg"))
    data = bytearray(segment.read_bytes())
    data[data.index(b"apple")] ^= 1
    segment.write_bytes(data)
    with unchanged(tmp_path / "out"):
        said(capfdbinary, "dump", store, "-o", tmp_path / "out" / "file", code=1)


def test_lmdb_reads_what_is_dumped_for_it(store: Path, tmp_path: Path, capfdbinary: Any) -> None:
    """Where its tool is there."""
    out = said(capfdbinary, "dump", store, "--format", "mdb")
    try:
        subprocess.run(["mdb_load", str(tmp_path)], input=out, check=True)
        back = subprocess.run(["mdb_dump", str(tmp_path)], check=True, capture_output=True).stdout
    except FileNotFoundError:
        pytest.skip("no mdb_load: NOT TESTED that LMDB's own tool reads a dump")
    assert {key: value for key, value, _ in read_dump(io.BytesIO(back))} == PAIRS


def test_pairs_are_put_many_at_a_time(
    store: Path, tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one they took three times as long."""
    said(capfdbinary, "dump", store, "-o", tmp_path / "dump")

    put, sizes = KVStore._put_entries, []

    def counted(kv: KVStore, entries: list[Entry]) -> None:
        sizes.append(len(entries))
        put(kv, entries)

    monkeypatch.setattr(KVStore, "_put_entries", counted)
    said(capfdbinary, "load", tmp_path / "dump", tmp_path / "copy")
    monkeypatch.undo()
    assert sizes == [len(PAIRS)]
    assert contents(tmp_path / "copy") == PAIRS


def test_a_large_value_is_put_by_itself(
    store: Path, tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together with the small ones before it, one of 512 MiB was more than a commit holds."""
    with KVStore.open(store) as kv:
        kv.put_many({"large": b"x" * 3000, "small": b"y"})
        kv.put_many({"exact": b"x" * 995, "last": b"z"})
    kept = contents(store)
    puts: list[list[int]] = []
    put_entries = KVStore._put_entries

    def put(kv: KVStore, entries: list[Entry]) -> None:
        puts.append([len(key) + len(value) for key, value, _ in entries])
        put_entries(kv, entries)

    monkeypatch.setattr(KVStore, "_put_entries", put)
    monkeypatch.setattr(_transfer, "_CHUNK_BYTES", 1000)
    said(capfdbinary, "dump", store, "-o", tmp_path / "file")
    said(capfdbinary, "load", tmp_path / "file", tmp_path / "to")
    assert contents(tmp_path / "to") == kept
    assert [3005] in puts
    assert [1000] in puts
    assert all(sum(sizes) < 2000 for sizes in puts if len(sizes) > 1)


def test_what_one_commit_cannot_hold_is_refused_by_its_key(
    store: Path, tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a value is that is too large; the others are loaded."""
    put_entries = KVStore._put_entries

    def put(kv: KVStore, entries: list[Entry]) -> None:
        if any(key == b"apple" for key, _, _ in entries):
            raise RecordTooLarge("more than are atomic")
        put_entries(kv, entries)

    monkeypatch.setattr(KVStore, "_put_entries", put)
    said(capfdbinary, "dump", store, "-o", tmp_path / "file")
    told = json.loads(said(capfdbinary, "load", tmp_path / "file", tmp_path / "to", "--json", code=1))
    assert told["loaded"] == len(PAIRS) - 1
    assert told["examples"] == ["key b'apple': more than are atomic"]


@pytest.mark.skipif(not HAS_ROBUST_MUTEX, reason="no robust mutexes: NOT TESTED that load shares a store")
def test_a_store_that_others_share_is_loaded(store: Path, tmp_path: Path, capfdbinary: Any) -> None:
    """It was locked for this command alone, where put, del and compact work beside them."""
    said(capfdbinary, "dump", store, "-o", tmp_path / "file")
    with KVStore.open(tmp_path / "to", shared=True) as kv:
        kv["before"] = b"1"
        said(capfdbinary, "load", tmp_path / "file", tmp_path / "to")
        kv["after"] = b"2"
        assert dict(kv) == {**PAIRS, b"before": b"1", b"after": b"2"}


def test_progress_comes_to_the_end(
    store: Path, tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It stopped at the last whole block.
    told: list[tuple[str, int, int]] = []

    class Told(Meter):
        def __call__(self, done: int, total: int) -> None:
            told.append((self._label, done, total))

    monkeypatch.setattr(_transfer, "Meter", Told)
    said(capfdbinary, "dump", store, "-o", tmp_path / "dump")
    assert told[-1] == ("dump", len(PAIRS), len(PAIRS))
    said(capfdbinary, "load", tmp_path / "dump", tmp_path / "copy")
    assert told[-1] == ("load", len(PAIRS), 0)
