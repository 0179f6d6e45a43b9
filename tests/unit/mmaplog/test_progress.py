"""The progress bar: on a terminal, in a file, with rich and without."""

from __future__ import annotations

import io
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mmaplog import _progress
from mmaplog._progress import Meter, progress


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 60 columns, and no rich."""
    stream = Terminal()
    monkeypatch.setattr(_progress, "sys", SimpleNamespace(stderr=stream))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((60, 24)))
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    monkeypatch.setattr(_progress, "REDRAWS_PER_SECOND_MAX", float("inf"))
    return stream


def test_in_a_file_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("load", 3, "files") as bar:
        for _ in range(3):
            bar.advance()
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("load: 3 files in ")
    assert output.err.count("\n") == 1


def test_in_a_file_a_long_piece_of_work_shows_signs_of_life(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_progress, "PLAIN_LINE_INTERVAL_S", 0)
    with progress("load", 2_000, "files") as bar:
        bar.advance(1_000)
        bar.advance(1_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["load: 1,000 of 2,000 files", "load: 2,000 files"]
    assert len(lines) == 3


def test_work_that_ends_early_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), progress("load", 3, "files") as bar:
        bar.advance()
        raise KeyError
    assert capsys.readouterr().err.startswith("load: 1 of 3 files in ")


def test_on_a_terminal_one_line_is_redrawn(terminal: Terminal) -> None:
    with progress("load", 4, "files") as bar:
        bar.advance(2)
        bar.advance(2)
    empty, half, full, summary = terminal.getvalue().split("\r\x1b[K")[1:]
    assert empty.count("#") == 0
    assert "2 of 4 files" in half
    assert full.endswith("] 4 files")
    assert full.count("#") > half.count("#") > 0
    assert summary.startswith("load: 4 files in ")
    assert summary.endswith("\n")


@pytest.mark.parametrize("columns", [1, 10, 20, 40, 200])
def test_a_drawn_line_is_narrower_than_the_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: Terminal, columns: int
) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((columns, 24)))
    with progress("load", 1_000_000, "files") as bar:
        bar.advance(999_999)
    drawn = terminal.getvalue().split("\r\x1b[K")[1:-1]
    assert len(drawn) == 2
    assert all(len(line) < columns for line in drawn)


@pytest.mark.parametrize(("total", "done"), [(0, 0), (2, 5)])
def test_a_total_that_is_nothing_or_too_small_does_no_harm(terminal: Terminal, total: int, done: int) -> None:
    with progress("load", total, "files") as bar:
        bar.advance(done)
    assert terminal.getvalue().endswith("\n")


def test_a_total_that_is_not_known_is_not_said(terminal: Terminal) -> None:
    # `mmapkv load` of a dump ended with "3 of 0 pairs".
    with Meter("load", "pairs") as meter:
        meter(3, 0)
    _, drawn, summary = terminal.getvalue().split("\r\x1b[K")[1:]
    assert drawn == "load: 3 pairs"
    assert summary.startswith("load: 3 pairs in ")


def test_a_terminal_that_cannot_move_its_cursor_gets_whole_lines(
    monkeypatch: pytest.MonkeyPatch, terminal: Terminal
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with progress("load", 1, "files") as bar:
        bar.advance()
    assert "\r" not in terminal.getvalue()


def test_with_the_extra_the_bar_is_that_of_rich(monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    calls: list[tuple[object, ...]] = []

    class Progress:
        def __init__(self, *columns: object, **options: object) -> None: ...

        def add_task(self, label: str, total: int) -> int:
            calls.append(("add", label, total))
            return 7

        def start(self) -> None:
            calls.append(("start",))

        def advance(self, task: int, count: int) -> None:
            calls.append(("advance", task, count))

        def stop(self) -> None:
            calls.append(("stop",))

    def anything(*arguments: object, **options: object) -> None: ...

    rich: Any = ModuleType("rich.progress")
    rich.Progress = Progress
    rich.TextColumn = rich.BarColumn = rich.MofNCompleteColumn = rich.TimeElapsedColumn = anything
    console: Any = ModuleType("rich.console")
    console.Console = anything
    for module in (ModuleType("rich"), rich, console):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    with progress("load", 3, "files") as bar:
        bar.advance(2)
    assert calls == [("add", "load", 3), ("start",), ("advance", 7, 2), ("stop",)]
    assert terminal.getvalue() == ""
