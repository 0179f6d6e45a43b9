"""What is returned for a key that is absent may be given by position, as to a dict, and by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapkv import AsyncKVStore, KVStore, dbm
from mmapkv.codecs import Text
from tests.unit.mmapkv.stores import opened


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[KVStore]:
    """A store of one key."""
    with opened(tmp_path / "kv") as made:
        made["a"] = "1"
        yield made


_VIEWS: dict[str, Callable[[KVStore], Any]] = {
    "store": lambda kv: kv.get,
    "get_view": lambda kv: kv.get_view,
    "get_versioned": lambda kv: kv.get_versioned,
    "snapshot": lambda kv: kv.snapshot().get,
    "transaction": lambda kv: kv.transaction().get,
    "namespace": lambda kv: kv.namespace("").get,
    "typed": lambda kv: kv.typed(Text()).get,
    "dbm": lambda kv: dbm.Database(kv).get,
}


@pytest.mark.parametrize("of", _VIEWS.values(), ids=_VIEWS)
def test_a_default_by_name(kv: KVStore, of: Callable[[KVStore], Any]) -> None:
    """Who comes from LMDB or diskcache writes `default=`, which was a TypeError."""
    get = of(kv)
    assert get("absent", default=5) == get("absent", 5) == 5
    assert get("absent") is get("absent", default=None) is None
    assert get("a", default=5) == get("a", 5) == get("a")
    with pytest.raises(TypeError):
        get("absent", 5, default=6)
    with pytest.raises(TypeError):
        get("absent", other=5)


@pytest.mark.parametrize("name", ["get", "get_view", "get_versioned"])
def test_a_default_by_name_beside_an_event_loop(kv: KVStore, name: str) -> None:
    """As of the store itself."""

    async def ask() -> list[Any]:
        get = getattr(AsyncKVStore(kv), name)
        return [await get("absent", default=5), await get("absent", 5), await get("absent")]

    assert asyncio.run(ask()) == [5, 5, None]
