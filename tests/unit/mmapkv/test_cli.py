"""The command line around its commands: exit codes, messages, and a reader that goes away."""

from __future__ import annotations

import argparse
import errno
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from mmapkv import demo
from mmapkv.cli import main
from mmaplog._command import UsageError, named


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmapkv", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_no_command_is_a_usage_error() -> None:
    finished = run_module()
    assert finished.returncode == 2
    assert "COMMAND" in finished.stderr
    assert finished.stdout == ""


def test_an_unknown_command_is_a_usage_error_that_names_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["frobnicate"])
    assert exit_info.value.code == 2
    assert "demo" in capsys.readouterr().err


def test_an_unknown_option_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", "--frobnicate"])
    assert exit_info.value.code == 2


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    assert "demo" in capsys.readouterr().out


def test_no_command_waits_for_what_only_the_version_needs() -> None:
    # It was a tenth of what a command took to begin.
    code = "import sys; known = set(sys.modules); import mmapkv.cli; print(set(sys.modules) - known)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'mmapkv.cli'" in finished.stdout
    assert "'importlib.metadata'" not in finished.stdout


def test_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"mmapkv {version('mmapkv')}\n"


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (UsageError("no such thing"), 2, "mmapkv demo: error: no such thing\n"),
        (OSError(errno.ENOSPC, "disk full", "x"), 1, "mmapkv demo: error: [Errno 28] disk full: 'x'\n"),
        (KeyboardInterrupt(), 130, "mmapkv demo: interrupted\n"),
    ],
)
def test_what_a_command_raises_becomes_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    message: str,
) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise raised

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo"]) == code
    assert capsys.readouterr().err == message


def test_a_defect_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: argparse.Namespace) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(demo, "run", run)
    with pytest.raises(ZeroDivisionError):
        main(["demo"])


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    command = [sys.executable, "-m", "mmapkv", "demo", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        messages = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in messages
    assert "BrokenPipeError" not in messages


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("plain name", "'plain name'"),
        (Path("a") / "b", "'a/b'"),
        (b"not text \xff", r"'not text \udcff'"),
        ("line\nend \x1b[31m", r"'line\nend \x1b[31m'"),
        ("caf\xe9", r"'caf\xe9'"),
    ],
)
def test_a_name_is_shown_as_one_line_of_ascii(path: str | bytes | Path, shown: str) -> None:
    assert named(path) == shown
