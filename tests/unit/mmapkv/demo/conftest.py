"""Fixtures of the demo's tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.mmapkv.demo.runs import FILES


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory that holds :data:`FILES`."""
    directory = tmp_path / "files"
    for name, content in FILES.items():
        path = directory / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary stores are made. None of them is there when a test is over."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield place
    assert list(place.iterdir()) == []
