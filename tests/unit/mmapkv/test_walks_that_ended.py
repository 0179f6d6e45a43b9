"""An iterator that has ended stays so, whatever is written and compacted afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore
from tests.unit.mmapkv.stores import opened

ITEMS = {b"%d" % number: b"v" for number in range(300)}

WALKS: dict[str, Callable[[Any], Iterator[object]]] = {
    "keys": lambda view: iter(view.keys()),
    "values": lambda view: iter(view.values()),
    "items": lambda view: iter(view.items()),
    "scan": lambda view: view.scan(),
    "keys scanned": lambda view: view.scan(values=False, reverse=True),
}


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[KVStore]:
    """A store that compacts when it is told to."""
    with opened(tmp_path / "kv") as made:
        made.put_many(ITEMS)
        yield made


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS.keys())
@pytest.mark.parametrize("view", ["store", "snapshot", "transaction"])
def test_what_ended_stays_ended_when_what_it_read_is_compacted_away(
    kv: KVStore, walk: Callable[[Any], Iterator[object]], view: str
) -> None:
    """It needs nothing any more, so nothing can be too old for it."""
    moment: Mapping[bytes, bytes] = kv
    if view == "snapshot":
        moment = kv.snapshot()
    elif view == "transaction":
        moment = kv.transaction()
    walking = walk(moment)
    assert len(list(walking)) == len(ITEMS)
    kv.put_many(dict.fromkeys(ITEMS, b"w"))
    kv.compact()
    for _ in range(2):
        assert next(walking, None) is None


def test_working_in_blocks_and_compacting_between_them(kv: KVStore) -> None:
    """The last block is a short one; it is asked for another, which there is not."""
    walking = iter(kv.items())
    done = 0
    while block := list(islice(walking, 200)):
        done += len(block)
        kv.put_many([(key, b"w") for key, _ in block])
        kv.compact()
    assert done == len(ITEMS)
    assert dict(kv) == dict.fromkeys(ITEMS, b"w")


def test_what_ended_stays_ended_when_the_store_is_closed(kv: KVStore) -> None:
    """Nothing is read for it."""
    walking = iter(kv)
    assert len(list(walking)) == len(ITEMS)
    kv.close()
    assert next(walking, None) is None


def test_changes_that_ended_stay_so(kv: KVStore) -> None:
    """They were those of before the call."""
    changes = kv.changes()
    assert len(list(changes)) == len(ITEMS)
    kv.put_many(dict.fromkeys(ITEMS, b"w"))
    kv.compact()
    assert next(changes, None) is None
