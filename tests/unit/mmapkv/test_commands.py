"""The commands that work with one store: what they print, and their exit codes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore
from mmapkv.cli import main
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapkv.index_words import IndexWords
from tests.unit.mmapkv.stores import contents
from tests.unit.mmaplog.damage import overwrite, rewrite_manifest
from tests.unit.mmaplog.segment_file import VERSION_AT, SegmentFile, segment_paths

BINARY = b"\xff\x00\t\n\\"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A small store."""
    with KVStore.open(tmp_path / "kv") as kv:
        kv.update({b"apple": b"red", "Äpfel": "grün", b"app": b"x", BINARY: BINARY})
    return tmp_path / "kv"


def said(capfdbinary: Any, *arguments: object, code: int = 0) -> bytes:
    """What a command writes to stdout."""
    capfdbinary.readouterr()
    assert main([str(each) for each in arguments]) == code
    return bytes(capfdbinary.readouterr().out)


class Input:
    """A standard input of given bytes."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def test_get(store: Path, capfdbinary: Any) -> None:
    """The bytes as they are; text is UTF-8."""
    assert said(capfdbinary, "get", store, "apple") == b"red\n"
    assert said(capfdbinary, "get", store, "Äpfel") == "grün\n".encode()
    assert said(capfdbinary, "get", store, "--hex", BINARY.hex(), "-n") == BINARY
    told = json.loads(said(capfdbinary, "get", store, "apple", "--json"))
    assert told == {"key": "apple", "value": "red"}
    assert said(capfdbinary, "get", store, "pear", code=1) == b""
    assert said(capfdbinary, "get", store, "--hex", "xy", code=2) == b""
    assert said(capfdbinary, "get", store.parent / "nothing", "x", code=2) == b""


def test_put(store: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line, or from the standard input; a key must be one."""
    assert said(capfdbinary, "put", store, "pear", "green", "--durable") == b""
    monkeypatch.setattr(sys, "stdin", Input(BINARY))
    told = json.loads(said(capfdbinary, "put", store, "fig", "--json"))
    assert told == {"key_bytes": 3, "value_bytes": 5}
    said(capfdbinary, "put", store, "", "x", code=2)
    found = contents(store)
    assert (found[b"pear"], found[b"fig"]) == (b"green", BINARY)
    said(capfdbinary, "put", store.parent / "new", "", "x", code=2)
    assert not (store.parent / "new").exists()
    said(capfdbinary, "put", store.parent / "new", "--hex", "00ff", "01")
    assert contents(store.parent / "new") == {b"\x00\xff": b"\x01"}


def test_put_for_a_while(store: Path, capfdbinary: Any) -> None:
    """Until a time to live is over; what is none makes no store."""
    said(capfdbinary, "put", store, "pear", "green", "--ttl", "3600")
    said(capfdbinary, "put", store, "fig", "blue", "--ttl", "1e-6")
    with KVStore.open(store, "r") as kv:
        assert kv["pear"] == b"green"
        assert "fig" not in kv
    [record] = [each for each in said(capfdbinary, "dump", store).splitlines() if b"pear" in each]
    assert "expires_ns" in json.loads(record)
    for refused in ("0", "-1", "nan", "inf", "1e11", "soon"):
        with pytest.raises(SystemExit) as exit_info:
            main(["put", str(store.parent / "new"), "pear", "green", f"--ttl={refused}"])
        assert exit_info.value.code == 2
        assert "seconds" in capfdbinary.readouterr().err.decode()
    assert not (store.parent / "new").exists()


def test_del(store: Path, capfdbinary: Any) -> None:
    """Those that are there go, and the others are named."""
    assert said(capfdbinary, "del", store, "apple") == b""
    told = json.loads(said(capfdbinary, "del", store, "apple", "app", "", "--json", code=1))
    assert told == {"deleted": 1, "absent": 2}
    assert main(["del", str(store), "fig"]) == 1
    assert b"'fig'" in capfdbinary.readouterr().err
    assert set(contents(store)) == {"Äpfel".encode(), BINARY}
    said(capfdbinary, "del", store.parent / "nothing", "x", code=2)


@pytest.mark.parametrize("content", [b"", b"include *.txt\n"])
def test_verify_finds_a_damaged_manifest(store: Path, capfdbinary: Any, content: bytes) -> None:
    """As damage, which repair mends: it said that this is no log, as of a wrong request."""
    (store / "MANIFEST").write_bytes(content)
    out = said(capfdbinary, "verify", store, code=1).decode()
    assert f"DAMAGE: '{store / 'MANIFEST'}' at offset 0: not a log" in out
    assert "; run mmapkv repair" in out
    told = json.loads(said(capfdbinary, "verify", store, "--json", code=1))
    assert [each["path"] for each in told["damages"]] == [str(store / "MANIFEST")]
    said(capfdbinary, "repair", store)
    assert said(capfdbinary, "verify", store).endswith(b"all is well\n")


def test_verify_finds_the_damaged_magic_of_a_segment(store: Path, capfdbinary: Any) -> None:
    """Which repair mends, too."""
    (path,) = segment_paths(store)
    overwrite(path, b"garbage!", 0)
    out = said(capfdbinary, "verify", store, code=1).decode()
    assert f"DAMAGE: '{path}' at offset 0: not a segment" in out
    assert "run mmapkv repair" in out
    said(capfdbinary, "repair", store)
    assert len(contents(store)) == 4


def test_what_may_be_newer_or_no_store_is_no_damage(store: Path, tmp_path: Path, capfdbinary: Any) -> None:
    """Repair leaves it alone, and so the request is what is wrong."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "MANIFEST").write_bytes(b"include *.txt\n")
    said(capfdbinary, "verify", tmp_path / "other", code=2)
    rewrite_manifest(store, bytes, version=b"2")
    said(capfdbinary, "verify", store, code=2)
    rewrite_manifest(store, bytes)
    segment = SegmentFile(*segment_paths(store))
    segment.patch_header(VERSION_AT, "<I", 2)
    segment.save()
    said(capfdbinary, "verify", store, code=2)


def test_a_store_of_another_byte_order_is_no_damage(store: Path, capfdbinary: Any) -> None:
    """Repair set its segments aside, and nothing was left."""
    for file in (store / "INDEX", *segment_paths(store)):
        head = file.read_bytes()[:12]
        overwrite(file, head[:8][::-1] + head[8:][::-1])
    for command in (("verify",), ("repair", "--dry-run"), ("repair",), ("get", "apple"), ("put", "a", "b")):
        with unchanged(store, ignoring=("LOCK",)):
            assert main([command[0], str(store), *command[1:]]) == 2
        assert b"another byte order; open it there, and take over what" in capfdbinary.readouterr().err


@pytest.mark.parametrize("typed", [("fig",), ("--hex", "ff00")])
def test_a_key_that_is_not_there_is_named_as_it_was_typed(
    store: Path, capfdbinary: Any, typed: tuple[str, ...]
) -> None:
    """The one command said b'fig', the other 'fig'."""
    for command in ("get", "del"):
        assert main([command, str(store), *typed]) == 1
        told = capfdbinary.readouterr().err.decode()
        assert told == f"mmapkv {command}: there is no key '{typed[-1]}'\n"


def test_del_of_what_is_no_key_deletes_nothing(store: Path, capfdbinary: Any) -> None:
    # What came before it on the line was deleted, though nothing is where a request is wrong.
    said(capfdbinary, "del", store, "--hex", b"app".hex(), "xy", code=2)
    assert b"app" in contents(store)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("scan", "{store}", "--limit", "x"), "--limit: 'x' is not a whole number, 0 or more"),
        (("scan", "{store}", "--limit", "-1"), "--limit: '-1' is not a whole number, 0 or more"),
        (
            ("scan", "{store}", "--limit", str(1 << 63)),
            "'9223372036854775808' is more than 9223372036854775807",
        ),
        (("scan", "{store}", "--limit", "9" * 5000), f"'{'9' * 40}...' is more than"),
        (("bench", "--keys", "x"), "--keys: 'x' is not a whole number, 1 or more"),
        (("bench", "--value-bytes", "0"), "--value-bytes: '0' is not a whole number, 1 or more"),
    ],
)
def test_a_number_that_is_none(store: Path, capfdbinary: Any, arguments: tuple[str, ...], told: str) -> None:
    # The message named a function of the program.
    with pytest.raises(SystemExit) as ended:
        main([each.format(store=store) for each in arguments])
    assert ended.value.code == 2
    assert told in capfdbinary.readouterr().err.decode()


def test_scan(store: Path, capfdbinary: Any) -> None:
    """One line for each pair, whatever is in it."""
    lines = said(capfdbinary, "scan", store).decode().splitlines()
    assert lines == [
        "apple\tred",
        "Äpfel\tgrün",
        "app\tx",
        r"\xff\x00\x09\x0a\\" + "\t" + r"\xff\x00\x09\x0a\\",
    ]
    assert said(capfdbinary, "scan", store, "--prefix", "app", "--keys") == b"apple\napp\n"
    assert said(capfdbinary, "scan", store, "--prefix", "app", "--limit", "1") == b"apple\tred\n"
    assert said(capfdbinary, "scan", store, "--limit", "0") == b""
    told = [json.loads(line) for line in said(capfdbinary, "scan", store, "--json").splitlines()]
    assert told[0] == {"key": "apple", "value": "red"}
    assert told[3]["key"] == {"base64": "/wAJClw="}
    assert json.loads(said(capfdbinary, "scan", store, "--json", "--keys", "--limit", "1")) == {
        "key": "apple"
    }


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_that_lacks_letters(
    tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    """As where the locale is not UTF-8: what it cannot say is escaped, in JSON as JSON does."""
    pair = {"key": "né \u2028\U0001f600", "value": "ü"}
    with KVStore.open(tmp_path / "kv") as kv:
        kv[pair["key"]] = pair["value"]
    commands: list[tuple[object, ...]]
    commands = [
        ("scan", tmp_path / "kv"),
        ("scan", tmp_path / "kv", "--json"),
        ("get", tmp_path / "kv", pair["key"], "--json"),
    ]
    out = []
    for command in commands:
        with monkeypatch.context() as patched:
            patched.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding))
            assert main([str(each) for each in command]) == 0
            out.append(sys.stdout.buffer.getvalue().decode(encoding).removesuffix("\n"))  # type: ignore[attr-defined]
    plain, *told = out
    assert plain.encode(encoding)
    assert plain.endswith("\tü" if encoding == "latin-1" else r"\xc3\xbc")
    assert r" \xe2\x80\xa8\xf0\x9f\x98\x80" in plain
    assert [json.loads(each) for each in told] == [pair, pair]


def test_stat(store: Path, capfdbinary: Any) -> None:
    """The same as `stats`."""
    with KVStore.open(store, "r") as kv:
        expected = kv.stats()
    assert json.loads(said(capfdbinary, "stat", store, "--json")) == expected
    assert b"keys             4\n" in said(capfdbinary, "stat", store)


def test_verify_and_repair(store: Path, capfdbinary: Any) -> None:
    """The exit code says that something is wrong, and then that nothing is any more."""
    assert said(capfdbinary, "verify", store).endswith(b"all is well\n")
    told = json.loads(said(capfdbinary, "verify", store, "--quick", "--json"))
    assert (told["entries"], told["damages"]) == (4, [])
    overwrite(store / "INDEX", b"\x77", IndexWords(store).segments[0] + 99)
    out = said(capfdbinary, "verify", store, code=1).decode()
    assert "DAMAGE" in out
    assert "INDEX' at offset" in out
    assert "mmapkv repair" in out
    assert b"would be built anew" in said(capfdbinary, "repair", store, "--dry-run")
    told = json.loads(said(capfdbinary, "repair", store, "--json"))
    assert (told["keys"], told["log"]["lost"]) == (4, [])
    assert said(capfdbinary, "verify", store).endswith(b"all is well\n")
    segment = SegmentFile(segment_paths(store)[0])
    overwrite(segment.path, b"\xff", list(segment.records())[1].offset + 20)
    assert json.loads(said(capfdbinary, "verify", store, "--json", code=1))["damages"][0]["path"] == str(
        segment.path
    )
    out = said(capfdbinary, "repair", store, code=1).decode()
    assert "LOST: records [1, 2)" in out
    assert "3 keys" in out
    assert said(capfdbinary, "verify", store).endswith(b"all is well\n")
    (store / "INDEX").unlink()
    assert b"there is no index; the next opening builds it\nall is well\n" in said(
        capfdbinary, "verify", store
    )


def test_backup(store: Path, tmp_path: Path, capfdbinary: Any) -> None:
    """A store of its own, and no second time."""
    told = json.loads(said(capfdbinary, "backup", store, tmp_path / "copy", "--json"))
    assert (told["path"], told["committed"]) == (str(tmp_path / "copy"), 4)
    assert contents(tmp_path / "copy") == contents(store)
    assert b"4)" in said(capfdbinary, "backup", store, tmp_path / "other", "--no-verify")
    said(capfdbinary, "backup", store, tmp_path / "copy", code=2)


def test_compact(store: Path, capfdbinary: Any) -> None:
    """The pairs stay, what they were before goes."""
    before = contents(store)
    with KVStore.open(store) as kv:
        for number in range(500):
            kv["passing"] = b"%500d" % number
        del kv["passing"]
    told = json.loads(said(capfdbinary, "compact", store, "--json"))
    assert told["records_removed"] >= 500
    assert told["bytes_after"] < told["bytes_before"]
    assert contents(store) == before
    assert b"0 records removed" in said(capfdbinary, "compact", store)


def test_bench(tmp_path: Path, capfdbinary: Any) -> None:
    """Leaves nothing behind."""
    told = json.loads(said(capfdbinary, "bench", tmp_path, "--keys", "50", "--json"))
    assert set(told["nanoseconds"]) == {"put", "get", "get absent", "scan", "durable put", "open"}
    assert all(each > 0 for each in told["nanoseconds"].values())
    assert b"durable put" in said(capfdbinary, "bench", tmp_path, "--keys", "5")
    assert list(tmp_path.iterdir()) == []
    said(capfdbinary, "bench", tmp_path / "nothing", code=2)
    for wrong in (["--keys", "0"], ["--value-bytes", "x"]):
        with pytest.raises(SystemExit):
            main(["bench", *wrong])
