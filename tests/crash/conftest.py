"""Where crash tests put what they kill: in memory, unless a kill is to meet a sync that takes time."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def disk_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory on the disk, for whose syncs a compaction waits, and can be killed meanwhile."""
    return tmp_path_factory.mktemp("crash")


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    """A directory in memory."""
    return memory_path
