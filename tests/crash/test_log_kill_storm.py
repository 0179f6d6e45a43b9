"""A short storm of the log, and that it catches every planted defect."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.crash.commands import count, count_of_kind, run
from tests.crash.log_storm.defects import DEFECTS

KILLS = 60
# A defect shows in most rounds, or in most of those that compact; this many without it would be a storm that
# does not look. It ends with the first one that is caught.
DEFECT_KILLS = 1000


def storm(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command from the root of the repository: it forks, so it gets a process of its own."""
    return run("log_kill_storm", directory, *arguments)


@pytest.mark.parametrize("mode", [(), ("--shared",)])
def test_no_acknowledged_record_is_lost_and_none_invented(disk_path: Path, mode: tuple[str, ...]) -> None:
    # A kill between any two stores to CONTROL or a segment could lose, double or invent a record.
    ran = storm(disk_path, "--kills", str(KILLS), "--seed", "1", *mode)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert count(ran.stdout, "kills") >= KILLS
    assert count(ran.stdout, "rounds with a violation") == 0
    assert count(ran.stdout, "acknowledged calls, in all") > KILLS
    # Kills that only ever met an idle writer would have shown nothing.
    assert count_of_kind(ran.stdout, "killed between two calls") < KILLS
    assert count(ran.stdout, "left records that were not durable") > 0
    assert list(disk_path.iterdir()) == []


@pytest.mark.parametrize("mode", [(), ("--shared",)])
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught(tmp_path: Path, defect: str, mode: tuple[str, ...]) -> None:
    # A storm that finds nothing wrong with a faulty log says nothing about a good one.
    ran = storm(tmp_path, "--kills", str(DEFECT_KILLS), "--seed", "1", "--defect", defect, *mode)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "VIOLATION in round" in ran.stdout


def test_a_violation_keeps_the_log_and_says_how_to_see_it_again(tmp_path: Path) -> None:
    # Without both, a violation that shows once in ten thousand kills could never be understood.
    ran = storm(tmp_path, "--kills", "5", "--seed", "7", "--defect", "invented-record")
    found = re.search(r"the log is kept in (\S+); python -m tests\.crash\.log_kill_storm (.*)", ran.stdout)
    assert found, ran.stdout + ran.stderr
    kept = Path(found[1])
    assert (kept / "MANIFEST").exists()
    assert (kept.with_name(f"{kept.name}-before-reopening") / "CONTROL").exists()
    again = storm(tmp_path, *found[2].split())
    assert again.returncode == 1, again.stdout + again.stderr


@pytest.mark.parametrize(
    "arguments", [("--kills", "0"), ("--first-round", "0"), ("--dir", "nowhere"), ("--defect", "none")]
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    # Zero kills would be a storm that passes without having killed anything.
    ran = storm(tmp_path, *arguments)
    assert ran.returncode == 2
    assert arguments[0] in ran.stderr
