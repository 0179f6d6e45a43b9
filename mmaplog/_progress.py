"""A progress bar that needs nothing but a terminal.

On a terminal one line is redrawn in place. Where stderr is a file or a pipe there is one plain line
when the work ends, and one every few seconds while it lasts. When ``rich`` is there (the ``cli``
extra) and stderr is a terminal, the bar is rich's.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

__all__ = ["Bar", "Meter", "progress"]

REDRAWS_PER_SECOND_MAX = 10
PLAIN_LINE_INTERVAL_S = 5.0
BAR_CELLS_MAX = 40


class Bar(Protocol):
    """How far a piece of work has come."""

    def advance(self, count: int = 1) -> None:
        """`count` more are done. Cheap enough for every file; draws at most ten times a second."""

    def finish(self) -> None:
        """Say how much was done; the bar is not used any more."""


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Bar]:
    """Show on stderr how much of `total` is done while the block runs.

    `label` says what is being done and `unit` what is counted; a `total` of 0 is one that is not known. The
    bar is also finished when the block raises, so that the error starts on a line of its own.
    """
    bar = _bar(label, total, unit)
    try:
        yield bar
    finally:
        bar.finish()


class Meter:
    """A bar for work that tells how far it is by calling ``meter(done, total)``.

    It is drawn on a terminal only: where nobody watches, nothing is said.
    """

    def __init__(self, label: str, unit: str) -> None:
        self._label = label
        self._unit = unit
        self._bar: Bar | None = None
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` are done; of 0, when nobody knows how many there are."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            self._bar = _bar(self._label, total, self._unit)
        self._bar.advance(done - self._done)
        self._done = done

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.finish()


def _bar(label: str, total: int, unit: str) -> Bar:
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return _PlainBar(label, total, unit)
    try:
        return _RichBar(label, total, unit)
    except ImportError:
        return _TerminalBar(label, total, unit)


class _OwnBar(ABC):
    """Counts, and draws when the last drawing is `interval_s` old."""

    def __init__(self, label: str, total: int, unit: str, interval_s: float) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0
        self._interval_s = interval_s
        self._started_s = time.monotonic()
        self._drawn_s = self._started_s

    def advance(self, count: int = 1) -> None:
        self.done += count
        now_s = time.monotonic()
        if now_s - self._drawn_s >= self._interval_s:
            self._drawn_s = now_s
            self._draw()

    def _counted(self) -> str:
        if self.done == self.total or not self.total:
            return f"{self.done:,} {self.unit}"
        return f"{self.done:,} of {self.total:,} {self.unit}"

    def _summary(self) -> str:
        return f"{self.label}: {self._counted()} in {time.monotonic() - self._started_s:.1f} s"

    @abstractmethod
    def _draw(self) -> None: ...

    @abstractmethod
    def finish(self) -> None: ...


class _PlainBar(_OwnBar):
    """Whole lines, few of them: for a log file."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        super().__init__(label, total, unit, PLAIN_LINE_INTERVAL_S)

    def _draw(self) -> None:
        print(f"{self.label}: {self._counted()}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        print(self._summary(), file=sys.stderr, flush=True)


class _TerminalBar(_OwnBar):
    """One line, redrawn in place."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        super().__init__(label, total, unit, 1 / REDRAWS_PER_SECOND_MAX)
        self._draw()

    def _draw(self) -> None:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
        counted = self._counted()
        # A line as wide as the terminal wraps on some, and a wrapped line cannot be redrawn.
        cells = min(BAR_CELLS_MAX, columns - len(self.label) - len(counted) - 6) if self.total else 0
        done_cells = cells * min(self.done, self.total) // max(self.total, 1)
        drawn = f"[{'#' * done_cells:<{cells}}] " if cells > 0 else ""
        line = f"{self.label}: {drawn}{counted}"[: columns - 1]
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        print(f"\r\x1b[K{self._summary()}", file=sys.stderr, flush=True)


class _RichBar:
    """Rich's bar, with the same words."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        # Imported here, and by name, because the package works without it and is typed without it.
        rich: Any = importlib.import_module("rich.progress")
        console: Any = importlib.import_module("rich.console").Console(stderr=True)
        self._progress = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn(unit),
            rich.TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task(label, total=total or None)
        self._progress.start()

    def advance(self, count: int = 1) -> None:
        self._progress.advance(self._task, count)

    def finish(self) -> None:
        self._progress.stop()
