"""Where crash tests put what they kill."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")
# What a test has at one time takes a small part of it.
ROOM_BYTES_MIN = 256 << 20

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember whether a test failed."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report  # type: ignore[return-value]


@pytest.fixture
def disk_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory on the disk, for whose syncs a compaction waits, and can be killed meanwhile."""
    return tmp_path_factory.mktemp("crash")


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory in memory where there is room: a kill leaves the same there, and no sync takes time.

    What a test that failed leaves in it is moved to the disk.
    """
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM_BYTES_MIN:
        yield tmp_path_factory.mktemp("crash")
        return
    made = Path(tempfile.mkdtemp(prefix="crash-", dir=MEMORY))
    yield made
    if request.node.stash.get(_failed, False):
        shutil.copytree(made, tmp_path_factory.mktemp("crash") / "kept", symlinks=True)
    shutil.rmtree(made)
