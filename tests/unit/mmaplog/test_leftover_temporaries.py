"""What a killed process left of a file that it wrote anew, where who opens the log next writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmapkv import KVStore
from mmaplog import Log

PARTS = (b"", b"torn")


@pytest.mark.parametrize("torn", PARTS)
@pytest.mark.parametrize("lost", ["CONTROL", None])
@pytest.mark.parametrize("name", ["CONTROL.tmp", "MANIFEST.tmp"])
def test_a_log_opens_and_nothing_of_it_stays(
    tmp_path: Path, name: str, lost: str | None, torn: bytes
) -> None:
    path = tmp_path / "log"
    with Log.open(path) as log:
        log.append(b"one")
    if lost is not None:
        (path / lost).unlink()
    (path / name).write_bytes(torn)
    with Log.open(path, "w") as log:
        assert [bytes(entry.payload) for entry in log.replay()] == [b"one"]
    assert not list(path.glob("*.tmp"))


@pytest.mark.parametrize("torn", PARTS)
@pytest.mark.parametrize("lost", ["CONTROL", "INDEX", None])
@pytest.mark.parametrize("name", ["CONTROL.tmp", "MANIFEST.tmp", "INDEX.tmp"])
def test_a_store_opens_and_nothing_of_it_stays(
    tmp_path: Path, name: str, lost: str | None, torn: bytes
) -> None:
    path = tmp_path / "store"
    with KVStore.open(path) as store:
        store["a"] = "one"
    if lost is not None:
        (path / lost).unlink()
    (path / name).write_bytes(torn)
    with KVStore.open(path, "w") as store:
        assert dict(store) == {b"a": b"one"}
    assert not list(path.glob("*.tmp"))
