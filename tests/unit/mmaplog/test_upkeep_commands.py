"""The commands export, import, backup and repair: what goes out comes in again, and what is lost is told."""

from __future__ import annotations

import base64
import json
import os
import pty
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmaplog import FlushPolicy, Log, export
from mmaplog.cli import main
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import ROOT
from tests.unit.mmaplog.segment_file import SegmentFile, segment_paths
from tests.unit.mmaplog.test_cli import Input, said

COUNT = 2000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed log of some segments, with payloads that are no text."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=64 << 10) as log:
        log.append_many([payload(number) for number in range(COUNT)])
    return path


def payload(number: int) -> bytes:
    """What record `number` holds; one is empty."""
    return b"\xff%d\n" % number * (number % 20)


def spoil(path: Path) -> int:
    """Flip a bit in the second segment; the number of the record."""
    segment = SegmentFile(segment_paths(path)[1])
    record = list(segment.records())[7]
    segment.data[record.offset + 20] ^= 1
    segment.save()
    return record.seq


def test_json_lines_go_out_and_in_again(
    path: Path, tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte, and every number."""
    out = said(capfdbinary, "export", path)
    told = [json.loads(line) for line in out.splitlines()]
    assert [each["seq"] for each in told] == list(range(COUNT))
    assert [base64.b64decode(each["payload"]) for each in told] == [payload(each) for each in range(COUNT)]
    monkeypatch.setattr(sys, "stdin", Input(out))
    assert said(capfdbinary, "import", tmp_path / "other") == b"2,000 records appended: [0, 2000)\n"
    assert said(capfdbinary, "export", tmp_path / "other") == out
    monkeypatch.setattr(sys, "stdin", Input(out.splitlines(keepends=True)[7]))
    counted = said(capfdbinary, "import", tmp_path / "other", "--renumber", "--json")
    assert json.loads(counted) == {"start": COUNT, "stop": COUNT + 1}


def test_numbers_are_not_changed_silently(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever refers to a record by its number must find it under that."""
    assert main(["export", str(path), "--start", "5", "-o", str(tmp_path / "out")]) == 0
    monkeypatch.setattr(sys, "stdin", Input((tmp_path / "out").read_bytes()))
    capsys.readouterr()
    assert main(["import", str(tmp_path / "other")]) == 2
    assert "record 5 would become number 0" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b"[]",
        b"{}",
        b'{"seq": 1}',
        b'{"seq": "1", "payload": ""}',
        b'{"seq": 1, "payload": "%"}',
        b"\xff",
    ],
)
def test_what_is_no_record_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    """With the number of its line."""
    monkeypatch.setattr(sys, "stdin", Input(b'{"seq": 0, "payload": "eA=="}\n\n' + line + b"\n"))
    assert main(["import", str(tmp_path / "log")]) == 2
    assert capsys.readouterr().err.startswith("mmaplog import: error: line 3 is not a record")


def test_lengths_and_lines(path: Path, capfdbinary: Any) -> None:
    """For programs in other languages, and for people."""
    out = said(capfdbinary, "export", path, "--format", "binary", "--start", 3, "--stop", 6)
    assert out == b"".join(struct.pack("<I", len(payload(each))) + payload(each) for each in range(3, 6))
    out = said(capfdbinary, "export", path, "--format", "lines", "--stop", 6)
    assert out == b"".join(payload(each) + b"\n" for each in range(6))


def test_a_range_that_is_not_there(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is said before anything is written."""
    with unchanged(tmp_path):
        assert main(["export", str(path), "--stop", "99999", "-o", str(tmp_path / "out")]) == 2
    assert "are not all in the log" in capsys.readouterr().err


def test_a_file_is_written_whole_or_not_at_all(path: Path, tmp_path: Path, capfdbinary: Any) -> None:
    """Damage is met in the middle: what was there before is there still."""
    target = tmp_path / "out"
    told = json.loads(said(capfdbinary, "export", path, "--json", "-o", target))
    assert told == {"start": 0, "stop": COUNT, "records": COUNT, "output": str(target)}
    whole = target.read_bytes()
    assert whole == said(capfdbinary, "export", path)
    spoil(path)
    assert main(["export", str(path), "-o", str(target)]) == 1
    assert target.read_bytes() == whole
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log", "out"]


def test_a_place_for_no_file(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory or a FIFO is not renamed over."""
    os.mkfifo(tmp_path / "fifo")
    for name, word in ((".", "directory"), ("fifo", "regular file")):
        assert main(["export", str(path), "-o", str(tmp_path / name)]) == 2
        assert word in capsys.readouterr().err


@pytest.mark.parametrize("name", ["MANIFEST", "new"])
def test_a_place_among_what_is_read(path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """The log's own manifest was replaced by its records, and the command was content."""
    with unchanged(path):
        assert main(["export", str(path), "-o", str(path / name)]) == 2
    assert "among the files that are read" in capsys.readouterr().err


def test_what_a_compaction_removed_is_not_counted(path: Path, tmp_path: Path, capfdbinary: Any) -> None:
    """So many lines, and not so many numbers."""
    with Log.open(path, "w", flush_policy=FlushPolicy.MANUAL) as log:
        log.compact(lambda entry: entry.seq % 2 == 0)
        left = len(log)
    out = said(capfdbinary, "export", path, "-o", tmp_path / "out", "--format", "json")
    assert len((tmp_path / "out").read_bytes().splitlines()) == left < COUNT
    assert out.startswith(b"%s records written" % f"{left:,}".encode())


def test_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written one after the other."""
    monkeypatch.setattr(export, "_PIECE", 10)
    (tmp_path / "log").mkdir()
    with export.written_whole(str(tmp_path / "out"), str(tmp_path / "log")) as write:
        for number in range(50):
            write(b"%d," % number)
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").read_bytes() == b"".join(b"%d," % number for number in range(50))


def test_a_backup(path: Path, tmp_path: Path, capfdbinary: Any) -> None:
    """Of a log that somebody writes, too."""
    with Log.open(path, "w") as log:
        out = said(capfdbinary, "backup", path, tmp_path / "copy")
        told = json.loads(said(capfdbinary, "backup", path, tmp_path / "again", "--json"))
        assert b"[0, 2000) in %d segments" % told["segments"] in out
        assert (told["committed"], told["path"]) == (COUNT, str(tmp_path / "again"))
        assert told["log_uuid"] != log.stats()["log_uuid"]
    assert main(["backup", str(path), str(tmp_path / "copy")]) == 2
    assert b"is there already" in capfdbinary.readouterr().err
    spoil(path)
    assert main(["backup", str(path), str(tmp_path / "bad")]) == 1
    capfdbinary.readouterr()
    said(capfdbinary, "backup", path, tmp_path / "bad", "--no-verify")


def test_a_repair(path: Path, capfdbinary: Any) -> None:
    """First without writing; the exit code says whether anything is lost."""
    assert said(capfdbinary, "repair", path) == b"nothing to repair: the log holds records [0, 2000)\n"
    seq = spoil(path)
    with unchanged(path):
        out = said(capfdbinary, "repair", path, "--dry-run", code=1)
    assert b"LOST: records [%d, %d): damaged or missing\n" % (seq, seq + 1) in out
    assert out.endswith(b"would be repaired: the log holds records [0, 2000) but for those\n")
    told = json.loads(said(capfdbinary, "repair", path, "--json", code=1))
    assert (told["first_seq"], told["committed"], told["changed"]) == (0, COUNT, True)
    assert told["lost"] == [{"start": seq, "stop": seq + 1, "reason": "damaged or missing"}]
    assert said(capfdbinary, "repair", path).startswith(b"nothing to repair")
    assert said(capfdbinary, "verify", path).endswith(b"all is well\n")


def test_what_costs_no_record(path: Path, capfdbinary: Any) -> None:
    """Is repaired with 0."""
    (path / "MANIFEST").write_bytes(b"nonsense")
    out = said(capfdbinary, "repair", path)
    assert b"PROBLEM: 'MANIFEST': " in out
    assert out.endswith(b"repaired: the log holds records [0, 2000)\n")


@pytest.mark.parametrize("command", ["export", "backup", "repair"])
def test_progress_is_shown_on_a_terminal_only(path: Path, tmp_path: Path, command: str) -> None:
    """Where nobody watches, a log file would fill with it."""
    extra = {
        "export": ["-o", str(tmp_path / "out")],
        "backup": [str(tmp_path / "copy")],
        "repair": ["--dry-run"],
    }
    spoken = [sys.executable, "-m", "mmaplog", command, str(path), *extra[command]]
    quiet = subprocess.run(spoken, capture_output=True, check=True, cwd=ROOT)
    assert quiet.stderr == b""
    if command == "backup":
        spoken[-1] += " again"
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        subprocess.run(spoken, stderr=theirs, stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
        os.close(theirs)
        assert command.encode() in terminal.read(10_000)


@pytest.mark.parametrize(
    "lines",
    [b"garbage\n", b'{"seq": 3, "payload": ""}\n', b'{"seq": 0, "payload": ""}\n{"seq": 2, "payload": ""}\n'],
)
def test_what_is_no_export_makes_no_log(
    tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch, lines: bytes
) -> None:
    """An empty one was left behind."""
    monkeypatch.setattr(sys, "stdin", Input(lines))
    assert main(["import", str(tmp_path / "log")]) == 2
    assert b"no record was appended" in capfdbinary.readouterr().err
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "", "\u0663"])
@pytest.mark.parametrize("command", ["replay", "export"])
def test_what_is_no_number_is_said_in_words(path: Path, capsys: Any, command: str, given: str) -> None:
    """The name of a function was said."""
    with pytest.raises(SystemExit) as ended:
        main([command, str(path), f"--start={given}"])
    assert ended.value.code == 2
    assert f"argument --start: {given!r} is not a whole number, 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["replay", "export"])
def test_a_number_that_is_not_there_yet(path: Path, capsys: Any, command: str) -> None:
    """A range that ends before it begins was said not to be in the log."""
    assert main([command, str(path), "--start", "5000"]) == 2
    assert "there is no record 5000 yet: the log holds [0, 2000)" in capsys.readouterr().err
