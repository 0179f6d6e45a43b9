"""Fixtures of the store's tests."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmapkv import KVStore, attach, compactor, remover, worker
from tests.support.plain_reader import check_store
from tests.support.waiting import PATIENCE_SECONDS
from tests.unit.mmapio import interposer as interposing
from tests.unit.mmapkv.stores import agreeing, opened


@pytest.fixture(scope="session")
def interposer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled interposer library."""
    return interposing.build(tmp_path_factory.mktemp("interposer"))


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of waits for a thread or process are for a machine whose cores are not taken."""
    for module in (attach, compactor, remover):
        monkeypatch.setattr(module, "WAIT_SECONDS_MAX", float(PATIENCE_SECONDS))
    monkeypatch.setattr(worker, "JOIN_SECONDS_MAX", float(PATIENCE_SECONDS))


@pytest.fixture
def huge_buffer() -> Iterator[memoryview]:
    """A buffer of 4 GiB that has no memory behind it as long as nobody reads it."""
    no_reserve = 0x4000  # newer Pythons have a name for it
    with mmap.mmap(-1, 4 << 30, flags=mmap.MAP_PRIVATE | no_reserve) as memory, memoryview(memory) as view:
        yield view


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[KVStore]:
    """A store of a few keys, checked at the end, for who has none of his own."""
    path = tmp_path / "kv"
    with opened(path) as store:
        store.put_many({"a": "1", "b": "2", "c": "3"})
        yield store
        assert store.stats()["snapshots"] == 0
        assert check_store(path) == agreeing(store)
