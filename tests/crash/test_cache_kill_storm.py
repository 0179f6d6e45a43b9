"""A short storm of kills at a cache, and that it catches planted defects."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.cache_kill_storm import DEFECTS
from tests.crash.commands import count, count_of_kind, run

MEMORY = Path("/dev/shm")
KILLS = 60
# The storm ends when it is caught.
DEFECT_KILLS = 600


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """In memory, where much is written before the kill."""
    made = Path(tempfile.mkdtemp(dir=MEMORY if os.access(MEMORY, os.W_OK) else tmp_path))
    yield made
    shutil.rmtree(made)


def test_a_cache_loses_nothing_that_is_new(directory: Path) -> None:
    """And has nothing that is old."""
    ran = run("cache_kill_storm", directory, "--kills", str(KILLS))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert count(ran.stdout, "kills") == KILLS
    # Where nothing is evicted, it is a storm at a store.
    assert count(ran.stdout, "keys evicted, at looks") > 0
    assert count(ran.stdout, "rounds after which what was written last must be there") > 0
    assert count_of_kind(ran.stdout, "rounds with a violation") == 0


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught(directory: Path, defect: str) -> None:
    """A storm that finds nothing wrong with a faulty cache says nothing about a good one."""
    ran = run("cache_kill_storm", directory, "--kills", str(DEFECT_KILLS), "--defect", defect)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "VIOLATION in round" in ran.stdout
