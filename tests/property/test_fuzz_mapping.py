"""A short run of the fuzzer, and that it catches what is planted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tree import PROJECT

WAIT_SECONDS_MAX = 300
OPERATIONS = 8000


def fuzz(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command from the root of the repository, in a process that may die."""
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz_mapping", "--dir", str(directory), *arguments],
        cwd=PROJECT.root,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS_MAX,
        check=False,
    )


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_that_use_one_file_at_once_see_what_they_wrote(tmp_path: Path, threads: int) -> None:
    """While others close the handles under them, cut what lies behind, and collect what was dropped."""
    ran = fuzz(tmp_path, "--operations", str(OPERATIONS), "--threads", str(threads), "--seed", "1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = re.match(r"([\d,]+) operations .* ([\d,]+) met a fault and ([\d,]+) a handle", ran.stdout)
    assert found, ran.stdout
    done, faults, closed = (int(number.replace(",", "")) for number in found.groups())
    assert done >= threads * OPERATIONS
    # A run that never met either would have shown nothing of them.
    assert faults
    assert closed
    assert list(tmp_path.iterdir()) == []


def test_a_planted_defect_is_caught_and_can_be_had_again(tmp_path: Path) -> None:
    """The control: bytes that change behind the models' back, and a line to run for whoever looks for it."""
    ran = fuzz(tmp_path, "--operations", str(25 * OPERATIONS), "--threads", "2", "--seed", "1", "--plant")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert re.search(r"^FAILED: .*thread \d+, operation \d+: ", ran.stdout, re.MULTILINE), ran.stdout
    again = r"^again: python -m tests\.fuzz_mapping --seed 1 --threads 2 --operations \d+ --plant$"
    assert re.search(again, ran.stdout, re.MULTILINE), ran.stdout


@pytest.mark.parametrize("arguments", [("--threads", "0"), ("--seconds", "0"), ("--operations", "-1")])
def test_bad_arguments_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """No operations at all would be a run that passes without having done any."""
    ran = fuzz(tmp_path, *arguments)
    assert ran.returncode == 2
    assert arguments[0] in ran.stderr
