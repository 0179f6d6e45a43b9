"""The ``mmaplog`` command: what it appends it shows again, and what is damaged it tells."""

from __future__ import annotations

import base64
import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmaplog import FlushPolicy, Log
from mmaplog.cli import main
from tests.unit.mmaplog.damage import overwrite_whole, replace_by_directory, rewrite_manifest
from tests.unit.mmaplog.segment_file import SegmentFile, segment_paths


class Input:
    """A standard input of bytes."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory for a log."""
    return tmp_path / "log"


def filled(path: Path, count: int = 20) -> Path:
    """A log of some records."""
    with Log.open(path, flush_policy=FlushPolicy.MANUAL) as log:
        log.append_many([b"record %d" % number for number in range(count)])
    return path


def said(capfdbinary: Any, *arguments: object, code: int = 0) -> bytes:
    """What a command prints."""
    assert main([str(each) for each in arguments]) == code
    printed = capfdbinary.readouterr()
    assert printed.err == b"", printed.err
    return bytes(printed.out)


@pytest.mark.parametrize("durable", [[], ["--durable"]])
def test_what_is_appended_is_shown_again(
    path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch, durable: list[str]
) -> None:
    """Line by line, bytes that are no text included; the last line needs no end."""
    for content in (b"one\n\ntw\xffo\n", b"last"):
        monkeypatch.setattr(sys, "stdin", Input(content))
        said(capfdbinary, "append", path, *durable)
    assert said(capfdbinary, "replay", path) == b"one\n\ntw\xffo\nlast\n"
    assert said(capfdbinary, "replay", path, "--start", 1, "--stop", 3) == b"\ntw\xffo\n"
    assert said(capfdbinary, "replay", path, "--reverse") == b"last\ntw\xffo\n\none\n"


@pytest.mark.parametrize("command", ["append", "import"])
def test_the_log_of_a_store_takes_no_lines(
    path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    # It took them, and nobody could open the store any more.
    filled(path)
    (path / "INDEX").touch()
    monkeypatch.setattr(sys, "stdin", Input(b'{"seq": 20, "payload": ""}\n'))
    assert main([command, str(path)]) == 2
    assert b"is a store, whose records are no lines" in capfdbinary.readouterr().err
    with Log.open(path, "r") as log:
        assert log.committed == 20


def test_append_says_where(path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For people and for programs."""
    monkeypatch.setattr(sys, "stdin", Input(b"a\nb\n"))
    assert said(capfdbinary, "append", path) == b"2 records appended: [0, 2)\n"
    monkeypatch.setattr(sys, "stdin", Input(b"c\n"))
    told = json.loads(said(capfdbinary, "append", path, "--json", "--durable", "--timestamps"))
    assert told == {"start": 2, "stop": 3, "records": 1, "durable": True}
    with Log.open(path, "r") as log:
        assert log[2].timestamp is not None


def test_more_lines_than_are_appended_at_once(
    path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is left over between two calls."""
    content = b"".join(b"%d\n" % number for number in range(25_000))
    monkeypatch.setattr(sys, "stdin", Input(content))
    said(capfdbinary, "append", path)
    assert said(capfdbinary, "replay", path) == content


def test_no_line_waits_for_the_next(path: Path) -> None:
    """It may be the last for an hour."""
    command = [sys.executable, "-m", "mmaplog", "append", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.write(b"first\nand a hal")
        child.stdin.flush()
        while not (path / "CONTROL").exists():
            assert child.poll() is None
        with Log.open(path, "r") as log:
            assert bytes(next(log.follow(0, timeout=60)).payload) == b"first"
            child.stdin.write(b"f\nno end")
            child.stdin.close()
            assert child.wait() == 0
            assert [bytes(entry.payload) for entry in log.replay()] == [b"first", b"and a half", b"no end"]


def test_json_holds_every_byte(path: Path, capfdbinary: Any) -> None:
    """In base64, since payloads need not be text."""
    with Log.open(path, timestamps=True) as log:
        log.append(b"\xff\n")
        timestamp = log[0].timestamp
    (line,) = said(capfdbinary, "replay", path, "--json").splitlines()
    expected = {"seq": 0, "timestamp": timestamp, "payload": base64.b64encode(b"\xff\n").decode()}
    assert json.loads(line) == expected


def test_the_tail(path: Path, capfdbinary: Any) -> None:
    """The last ten, or as many as are asked for, or as there are."""
    filled(path)
    lines = [b"record %d" % number for number in range(20)]
    assert said(capfdbinary, "tail", path).splitlines() == lines[10:]
    assert said(capfdbinary, "tail", path, "-n", 3).splitlines() == lines[17:]
    assert said(capfdbinary, "tail", path, "-n", 100).splitlines() == lines
    assert said(capfdbinary, "tail", path, "-n", 0) == b""


def test_following_until_interrupted(path: Path) -> None:
    """Each record is there as soon as it is appended."""
    with Log.open(path) as log:
        log.append(b"before")
        command = [sys.executable, "-m", "mmaplog", "tail", "-f", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            assert child.stdout.readline() == b"before\n"
            for number in range(3):
                log.append(b"%d" % number)
                assert child.stdout.readline() == b"%d\n" % number
            child.send_signal(signal.SIGINT)
            assert child.stderr.read() == b"mmaplog tail: interrupted\n"
        assert child.returncode == 130


def test_stat(path: Path, capfdbinary: Any) -> None:
    """The same numbers for people and for programs."""
    filled(path)
    told = json.loads(said(capfdbinary, "stat", path, "--json"))
    assert told["records"] == told["committed"] == told["durable"] == 20
    assert told["segments"] == 1
    assert told["bytes_on_disk"] > 0
    assert b"records          20\n" in said(capfdbinary, "stat", path)


def test_a_whole_log_verifies(path: Path, capfdbinary: Any) -> None:
    """And the command ends with 0."""
    filled(path)
    assert said(capfdbinary, "verify", path).endswith(b"all is well\n")
    told = json.loads(said(capfdbinary, "verify", path, "--json"))
    assert (told["records"], told["damages"]) == (20, [])


def test_a_flipped_bit_is_found(path: Path, capfdbinary: Any) -> None:
    """With the record, the place and the file; and the command ends with 1."""
    segment = SegmentFile(segment_paths(filled(path))[0])
    record = list(segment.records())[7]
    segment.data[record.offset + 16] ^= 1
    segment.save()
    out = said(capfdbinary, "verify", path, code=1)
    assert b"record 7 at offset %d: the record does not verify" % record.offset in out
    assert out.endswith(b"damaged\n")
    (damage,) = json.loads(said(capfdbinary, "verify", path, "--json", code=1))["damages"]
    assert (damage["seq"], damage["offset"]) == (7, record.offset)


@pytest.mark.parametrize("program", ["mmaplog", "mmapkv"])
@pytest.mark.parametrize("name", ["MANIFEST", "CONTROL", "*.seg"])
def test_what_cannot_be_opened_is_damaged(path: Path, capfdbinary: Any, name: str, program: str) -> None:
    """When repair mends it, which is said: it ended as of a wrong request."""
    filled(path)
    if program == "mmapkv":
        (path / "INDEX").touch()
    (file,) = path.glob(name)
    if name == "CONTROL":
        replace_by_directory(file)
    else:
        overwrite_whole(file, b"garbage!" + file.read_bytes()[8:])
    out = said(capfdbinary, "verify", path, code=1).decode()
    [line] = [each for each in out.splitlines() if "DAMAGE" in each]
    assert line.startswith(f"DAMAGE: '{file}': ")
    assert f"run {program} repair" in line
    assert out.endswith("damaged\n")
    (damage,) = json.loads(said(capfdbinary, "verify", path, "--json", code=1))["damages"]
    assert damage["path"] == str(file)
    said(capfdbinary, "repair", path)
    assert said(capfdbinary, "verify", path).endswith(b"all is well\n")


def test_what_a_newer_version_wrote_is_no_damage(path: Path, capfdbinary: Any) -> None:
    """Which repair would leave alone."""
    rewrite_manifest(filled(path), bytes, version=b"2")
    assert main(["verify", str(path)]) == 2
    assert b"upgrade mmapkv" in capfdbinary.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["replay", "{path}/missing"], 2, "does not exist"),
        (["replay", "{path}", "--start", "21"], 2, "there is no record 21 yet"),
        (["replay", "{path}", "--start", "3", "--stop", "2"], 2, "are not all in the log"),
        (["stat", "{path}/MANIFEST"], 2, "is a file"),
    ],
)
def test_what_goes_wrong_is_one_line(
    path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, told: str
) -> None:
    """On the standard error, with the command's name in front."""
    filled(path)
    assert main([each.format(path=path) for each in arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith(f"mmaplog {arguments[0]}: error: ")
    assert told in error
    assert error.count("\n") == 1


def test_beside_others_that_append(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who shares the log shares it with the command; who does not is named, and nothing was tried."""
    monkeypatch.setattr(sys, "stdin", Input(b"line\n"))
    with Log.open(path, shared=True) as log:
        log.append(b"first")
        assert main(["append", str(path)]) == 0
        assert [bytes(entry.payload) for entry in log] == [b"first", b"line"]
        assert capsys.readouterr().out == "1 records appended: [1, 2)\n"

        class Slow(io.BytesIO):
            """Another process appends before each line."""

            def read1(self, size: int | None = -1, /) -> bytes:
                log.append(b"other")
                return self.readline()

        slow = Input(b"")
        slow.buffer = Slow(b"one\ntwo\n")
        monkeypatch.setattr(sys, "stdin", slow)
        assert main(["append", str(path), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told == {"start": 3, "stop": 6, "records": 2, "durable": False}
    monkeypatch.setattr(sys, "stdin", Input(b"line\n"))
    with Log.open(path):
        assert main(["append", str(path)]) == 2
    assert "open for writing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["frobnicate"], ["tail"], ["tail", "x", "-n", "-1"], ["stat", "--x"]]
)
def test_a_mistaken_command_line(arguments: list[str]) -> None:
    """Ends with 2, before anything is opened."""
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "closed", "code", "told"),
    [
        ("append", "<&-", 0, b""),
        ("stat", "2>&-", 0, b""),
        ("replay", ">&-", 2, b"the standard output is closed"),
        ("stat", ">&- <&-", 2, b"the standard output is closed"),
        ("tail", ">&- 2>&-", 2, b""),
    ],
)
def test_standard_streams_that_are_closed(
    path: Path, arguments: str, closed: str, code: int, told: bytes
) -> None:
    """As some daemons do. It ended in a traceback."""
    filled(path)
    answer = subprocess.run(
        ["/bin/sh", "-c", f'"$0" -m mmaplog {arguments} "$1" {closed}', sys.executable, str(path)],
        capture_output=True,
        check=False,
    )
    assert answer.returncode == code
    assert told in answer.stderr
    assert answer.stderr.count(b"\n") == (told != b"")
    with Log.open(path, "r") as log:
        assert log.verify().damages == ()
