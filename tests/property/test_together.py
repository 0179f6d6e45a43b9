"""The command that lets threads and processes loose on one store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.crash.commands import count
from tests.support.tree import PROJECT


def together(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as its users do."""
    command = [sys.executable, "-m", "tests.property.together", "--dir", str(path), *arguments]
    return subprocess.run(command, cwd=PROJECT.root, capture_output=True, text=True, timeout=600, check=False)


def test_nobody_is_in_anybody_elses_way(tmp_path: Path) -> None:
    # What readers do is tested elsewhere; here it is done while segments come and go under them.
    ran = together(tmp_path / "kv", "--seconds", "4")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert count(ran.stdout, "failures") == 0
    assert count(ran.stdout, "compactions") > 0


def test_it_notices_that_nothing_is_kept_for_who_looks(tmp_path: Path) -> None:
    # A suite that finds nothing must be one that could.
    ran = together(tmp_path / "kv", "--seconds", "60", "--defect", "unpinned")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert count(ran.stdout, "failures") > 0
