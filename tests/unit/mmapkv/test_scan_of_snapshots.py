"""Scans of a moment that is over: of snapshots and transactions, after others brought the keys up."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmapkv import KVStore, Snapshot
from tests.unit.mmapkv.stores import opened


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[KVStore]:
    """A store of one key, whose keys are sorted already."""
    with opened(tmp_path / "kv") as made:
        made[b"x"] = b"0"
        assert list(made.scan(values=False)) == [b"x"]
        yield made


def test_what_was_put_and_deleted_between_two_scans_is_in_a_snapshot_from_between(kv: KVStore) -> None:
    """The later scan reads of both at once, and has no use for the key itself."""
    kv[b"a"] = b"1"
    with kv.snapshot() as before:
        del kv[b"a"]
        assert list(kv.scan()) == [(b"x", b"0")]
        assert list(before.scan()) == [(b"a", b"1"), (b"x", b"0")]
        assert list(before.scan(values=False, reverse=True)) == [b"x", b"a"]
    assert list(kv.scan(values=False)) == [b"x"]


def test_it_is_in_a_transaction_from_between(kv: KVStore) -> None:
    """Which would decide wrongly without it."""
    kv[b"lock/1"] = b"held"
    with kv.transaction() as tx:
        del kv[b"lock/1"]
        assert list(kv.scan("lock/")) == []
        assert list(tx.scan("lock/")) == [(b"lock/1", b"held")]
        assert list(tx.scan("lock/", values=False)) == [b"lock/1"]


def test_a_key_may_come_back_afterwards(kv: KVStore) -> None:
    """It is then no longer to be let go of."""
    kv[b"a"] = b"1"
    with kv.snapshot() as before:
        del kv[b"a"]
        assert list(kv.scan(values=False)) == [b"x"]
        kv[b"a"] = b"2"
        assert list(kv.scan()) == [(b"a", b"2"), (b"x", b"0")]
        assert list(before.scan()) == [(b"a", b"1"), (b"x", b"0")]
    assert list(kv.scan()) == [(b"a", b"2"), (b"x", b"0")]


@pytest.mark.parametrize("seed", range(4))
def test_scans_of_any_moments_agree_with_walks(kv: KVStore, seed: int) -> None:
    """Whatever was done and scanned, in whatever order, and with whichever snapshots alive."""
    rng = random.Random(seed)
    views: list[Snapshot] = []
    for step in range(600):
        key = b"%d" % rng.randrange(300)
        if rng.random() < 0.5:
            key = next(iter(kv), key)
        action = rng.randrange(8)
        if action < 3:
            kv[key] = b"%d" % step
        elif action < 6:
            kv.pop(key, None)
        elif action == 6 and len(views) < 4:
            views.append(kv.snapshot())
        elif views and rng.random() < 0.5:
            views.pop(rng.randrange(len(views))).close()
        if rng.random() < 0.1:
            kv.compact()
        view = rng.choice([kv, *views]) if rng.random() < 0.3 else None
        if view is not None:
            assert list(view.scan()) == sorted(view.items())
            assert list(view.scan(values=False)) == sorted(view)
