"""Running a suite's command as its users do, and reading its summary."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.tree import PROJECT

WAIT_SECONDS_MAX = 600


def run(module: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m tests.crash.<module>`` from the root of the repository, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", f"tests.crash.{module}", "--dir", str(directory), *arguments],
        cwd=PROJECT.root,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )


def count(table: str, row: str) -> int:
    """The number in a row of the summary."""
    found = _row(table, row)
    assert found, f"no row {row!r} in\n{table}"
    return int(found[1].replace(",", ""))


def count_of_kind(table: str, row: str) -> int:
    """The number in a row that is there only for what happened: 0 without it."""
    return count(table, row) if _row(table, row) else 0


def _row(table: str, row: str) -> re.Match[str] | None:
    return re.search(rf"^{re.escape(row)} +([\d,]+)", table, re.MULTILINE)
