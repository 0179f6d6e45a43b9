"""Set-up of every test run: the import path, Ctrl-C, Hypothesis without a clock, and a place in memory."""

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# `tests` and `benchmarks` are not installed. The checkout goes last on the path, so that an installed
# mmapio, mmaplog or mmapkv is what the tests see, never its sources by accident.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# A shell that starts a run in the background has it ignore Ctrl-C, and so would what the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Hypothesis fails an example that takes longer than 200 ms. On a busy machine that says nothing about us.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

MEMORY = Path("/dev/shm")
# What a test has at one time takes a small part of it.
ROOM_BYTES_MIN = 256 << 20


def pytest_collection_finish() -> None:
    """Keep the collector out of the thousands of tests that were collected, whenever one of them calls it."""
    gc.collect()
    gc.freeze()


_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember whether a test failed."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report  # type: ignore[return-value]


@pytest.fixture
def memory_path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory in memory where there is room: what is killed or fails leaves the same there as on a disk.

    For tests that do so at every moment, one by one, and would wait for thousands of syncs. What one that
    failed leaves is moved to the disk.
    """
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM_BYTES_MIN:
        yield tmp_path_factory.mktemp("disk")
        return
    made = Path(tempfile.mkdtemp(prefix="mmapkv-", dir=MEMORY))
    try:
        yield made
        if request.node.stash.get(_failed, False):
            shutil.copytree(made, tmp_path_factory.mktemp("failed") / "left", symlinks=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)
