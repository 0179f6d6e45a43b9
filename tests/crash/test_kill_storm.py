"""A short storm, and that a storm catches every planted defect."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.crash.commands import count, count_of_kind, run
from tests.crash.defects import DEFECTS

KILLS = 100
KEYS = 2000
# Most defects show in the first rounds, those of a compaction in the first dozens; the storm ends there.
DEFECT_KILLS = 1000


def storm(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command from the root of the repository: it forks, so it gets a process of its own."""
    return run("kill_storm", directory, *arguments)


def test_no_acknowledged_write_is_lost_and_none_invented(disk_path: Path) -> None:
    # A kill between any two stores to CONTROL, the segment or the index could lose or invent a write.
    ran = storm(disk_path, "--kills", str(KILLS), "--keys", str(KEYS), "--seed", "1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert count(ran.stdout, "kills") == KILLS
    assert count(ran.stdout, "rounds with a violation") == 0
    assert count(ran.stdout, "acknowledged writes, in all") > KILLS
    # Kills that only ever met an idle writer would have shown nothing.
    assert count_of_kind(ran.stdout, "write in flight: there was none") < KILLS
    assert count(ran.stdout, "killed inside a compaction") > 0
    assert count(ran.stdout, "killed inside a step of one in the background") > 0
    assert list(disk_path.iterdir()) == []


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught(tmp_path: Path, defect: str) -> None:
    # A storm that finds nothing wrong with a faulty store says nothing about a good one.
    # In memory, where a compaction does not wait for the disk, and is over before the kill.
    ran = storm(tmp_path, "--kills", str(DEFECT_KILLS), "--keys", "300", "--defect", defect)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "VIOLATION in round" in ran.stdout


def test_a_violation_keeps_the_store_and_says_how_to_see_it_again(tmp_path: Path) -> None:
    # Without both, a violation that shows once in ten thousand kills could never be understood.
    ran = storm(tmp_path, "--kills", "5", "--keys", "300", "--seed", "7", "--defect", "invented-write")
    found = re.search(r"the store is kept in (\S+); python -m tests\.crash\.kill_storm (.*)", ran.stdout)
    assert found, ran.stdout + ran.stderr
    kept = Path(found[1])
    assert (kept / "MANIFEST").exists()
    assert (kept.with_name(f"{kept.name}-before-reopening") / "CONTROL").exists()
    again = storm(tmp_path, *found[2].split())
    assert again.returncode == 1, again.stdout + again.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--kills", "0"), ("--keys", "-1"), ("--dir", "nowhere"), ("--defect", "none"), ("--round", "x")],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    # Zero kills would be a storm that passes without having killed anything.
    ran = storm(tmp_path, *arguments)
    assert ran.returncode == 2
    assert arguments[0] in ran.stderr
