"""Verifying a store that is cleared or compacted meanwhile: what is gone by then is no damage."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore, relocation, verify
from mmapkv.verify import StoreVerified
from tests.unit.mmapkv.stores import opened

COUNT = 2000


def fill(kv: KVStore, ttl: float | None = None) -> None:
    """Several segments of records."""
    for number in range(COUNT):
        kv.put(b"key %d" % number, b"v" * 100, ttl=ttl if number % 3 == 0 else None)


@pytest.mark.parametrize("at", range(0, 12, 3))
@pytest.mark.parametrize("mode", ["r", "w", "path"])
def test_a_store_that_is_cleared_meanwhile(tmp_path: Path, mode: str, at: int) -> None:
    """And compacted: the clear itself may be gone before what it tells of later records was looked at."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        fill(kv)
        kv.clear()
        fill(kv)
        told = 0

        def progress(*_: int) -> None:
            nonlocal told
            if told == at:
                kv.clear()
                fill(kv)
                kv.clear()
                fill(kv)
                kv.compact()
            told += 1

        with opened(path, "r") as reader:
            assert dict(reader.items()) == dict(kv.items())
            check = {"r": reader.verify, "w": kv.verify, "path": partial(verify, path)}[mode]
            assert check(progress=progress).damages == ()
            assert told > at
            assert check().keys == COUNT


@pytest.mark.parametrize("mode", ["r", "w", "path"])
def test_in_the_middle_of_a_compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """The log is without values that had expired, and the index counts them still."""
    path = tmp_path / "kv"
    found: list[StoreVerified] = []
    real = relocation.carry_out
    with opened(path) as kv, opened(path, "r") as reader:
        fill(kv, 0.001)
        time.sleep(0.01)

        def carry_out(*arguments: Any) -> bool:
            check = {"r": reader.verify, "w": kv.verify, "path": partial(verify, path)}[mode]
            found.append(check())
            return real(*arguments)

        monkeypatch.setattr(relocation, "carry_out", carry_out)
        kv.compact()
        assert found
        assert [each.damages for each in found] == [()] * len(found)
        assert len(kv) < COUNT
        assert kv.verify().keys == len(kv)


def test_a_cache_that_evicts_meanwhile(tmp_path: Path) -> None:
    """The beginning of its log goes."""
    with KVStore.open(tmp_path / "kv", max_bytes=1 << 20) as kv:
        written = 0

        def put(*_: int) -> None:
            nonlocal written
            for number in range(written, written + 2000):
                kv[b"%d" % number] = b"v" * 300
            written += 2000

        put()
        for _ in range(3):
            assert kv.verify(progress=put).damages == ()
        assert written > 10_000
