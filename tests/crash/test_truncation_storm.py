"""A short storm of cuts, and that a storm catches what it is there to catch."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.crash.commands import count, run
from tests.crash.truncation_storm import DEFECTS, STDLIB, SWALLOWED, ZEROS

ROUNDS = 150
# A defect shows in the first rounds; this many without it would be a storm that does not look.
DEFECT_ROUNDS = 400

CAUGHT_BY = {
    STDLIB: "the process ended with SIGBUS",
    ZEROS: "though no cut was near",
    SWALLOWED: "was acknowledged and is not in the file",
}


def storm(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command from the root of the repository: it forks, so it gets a process of its own."""
    return run("truncation_storm", directory, *arguments)


def test_no_cut_ends_the_process_or_gives_wrong_bytes(disk_path: Path) -> None:
    """Between any two instructions of an access the file may become shorter, or whole again."""
    ran = storm(disk_path, "--rounds", str(ROUNDS), "--seed", "1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert count(ran.stdout, "rounds") == ROUNDS
    assert count(ran.stdout, "violations") == 0
    assert list(disk_path.iterdir()) == []
    # Cuts that nobody met, or that met everything, would have shown nothing.
    for row in (
        "reads that were exact",
        "reads by foreign code",
        "reads that raised",
        "stores found in the file",
        "stores that raised",
    ):
        assert count(ran.stdout, row) > ROUNDS, ran.stdout
    assert count(ran.stdout, "cuts") >= ROUNDS


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught(tmp_path: Path, defect: str) -> None:
    """A storm that finds nothing wrong with a faulty mapping says nothing about a good one."""
    ran = storm(tmp_path, "--rounds", str(DEFECT_ROUNDS), "--seed", "1", "--defect", defect)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert re.search(f"VIOLATION in round .*{CAUGHT_BY[defect]}", ran.stdout), ran.stdout + ran.stderr


@pytest.mark.parametrize(
    "arguments", [("--rounds", "0"), ("--rounds", "x"), ("--dir", "nowhere"), ("--defect", "none")]
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """No rounds at all would be a storm that passes without having cut anything."""
    ran = storm(tmp_path, *arguments)
    assert ran.returncode == 2
    assert arguments[0] in ran.stderr
