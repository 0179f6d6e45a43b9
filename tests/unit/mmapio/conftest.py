"""Fixtures of the mapping layer's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.mmapio import interposer as interposing


@pytest.fixture(scope="session")
def interposer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled interposer library."""
    return interposing.build(tmp_path_factory.mktemp("interposer"))
