"""The views of a store, and of whatever else is a mapping here, are what a dict's are."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Set, ValuesView
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore
from mmapkv.codecs import Text
from tests.unit.mmapkv.stores import opened

MODEL = {b"a": b"1", b"b": b"2", b"c": b"3"}
TEXTS = {key.decode(): value.decode() for key, value in MODEL.items()}


@contextmanager
def store_of(kv: KVStore) -> Iterator[Mapping[Any, Any]]:
    """The store itself."""
    yield kv


@contextmanager
def snapshot_of(kv: KVStore) -> Iterator[Mapping[Any, Any]]:
    """As it is now, with other changes since."""
    with kv.snapshot() as snapshot:
        kv.update({b"a": b"changed", b"d": b"new"})
        del kv[b"b"]
        yield snapshot


@contextmanager
def transaction_of(kv: KVStore) -> Iterator[Mapping[Any, Any]]:
    """With a part of it put, and another deleted, by itself."""
    kv.update({b"a": b"changed", b"d": b"new"})
    with kv.transaction() as tx:
        tx[b"a"] = b"1"
        del tx[b"d"]
        yield tx


@contextmanager
def namespace_of(kv: KVStore) -> Iterator[Mapping[Any, Any]]:
    """A part of the store."""
    part = kv.namespace("part/")
    part.update(MODEL)
    yield part


@contextmanager
def typed_of(kv: KVStore) -> Iterator[Mapping[Any, Any]]:
    """The same as text."""
    yield kv.typed(Text(), keys=str)


MAPPINGS = [
    (store_of, MODEL),
    (snapshot_of, MODEL),
    (transaction_of, MODEL),
    (namespace_of, MODEL),
    (typed_of, TEXTS),
]
COMPARISONS = [operator.eq, operator.ne, operator.le, operator.lt, operator.ge, operator.gt]
COMBINATIONS = [operator.and_, operator.or_, operator.sub, operator.xor]


@pytest.mark.parametrize(("make", "model"), MAPPINGS)
def test_they_are_sets_like_a_dicts(
    tmp_path: Path, make: Callable[[KVStore], Any], model: dict[Any, Any]
) -> None:
    """One key has expired, and counts in no comparison, though it does in `len`."""
    with opened(tmp_path / "kv") as kv:
        kv.update(MODEL)
        kv.put(b"over", b"x", ttl=1e-9)
        kv.namespace("part/").put(b"over", b"x", ttl=1e-9)
        time.sleep(0.001)
        with make(kv) as mapping:
            for name in ("keys", "items"):
                view, right = getattr(mapping, name)(), getattr(model, name)()
                assert set(view) == set(right)
                first, *rest = right
                more = {*right, ("z", "z") if name == "items" else first + first}
                for other in (set(right), set(rest), {first}, set(), more, set(rest) | (more - set(right))):
                    for each in COMPARISONS:
                        assert each(view, other) is each(right, other), (name, each, other)
                        assert each(other, view) is each(other, right), (name, each, other)
                    for each in COMBINATIONS:
                        assert each(view, other) == each(right, other)
                        assert each(other, view) == each(other, right)
                    assert view.isdisjoint(other) is right.isdisjoint(other)
                assert view == getattr(mapping, name)()
                assert view <= getattr(mapping, name)()
                assert not view < getattr(mapping, name)()
                assert not view > getattr(mapping, name)()
                assert view != list(right)
                with pytest.raises(TypeError):
                    view < list(right)  # noqa: B015
            assert isinstance(mapping.keys(), KeysView)
            assert isinstance(mapping.items(), ItemsView)
            assert isinstance(mapping.values(), ValuesView)
            assert isinstance(mapping.items(), Set)
            key, value = next(iter(model.items()))
            assert key in mapping.keys()  # noqa: SIM118
            assert (key, value) in mapping.items()
            for wrong in ((key, key), [key, value], (key,), (key, value, value), 5, None):
                assert wrong not in mapping.items()
            assert value in mapping.values()
            assert key not in mapping.values()


def test_a_walk_of_the_keys_begins_when_it_is_asked_for(tmp_path: Path) -> None:
    """As the others do; it began with its first key."""
    with opened(tmp_path / "kv") as kv:
        kv.update(MODEL)
        keys = iter(kv.keys())
        del kv[b"a"]
        assert list(keys) == [b"a", b"b", b"c"]


def test_membership_in_a_transaction_is_a_read(tmp_path: Path) -> None:
    """Of one key: what others change does not conflict with it."""
    with opened(tmp_path / "kv") as kv:
        kv.update(MODEL)
        with kv.transaction() as tx:
            assert b"a" in tx.keys()  # noqa: SIM118
            assert (b"b", b"2") in tx.items()
            tx[b"new"] = b"1"
            kv[b"c"] = b"changed"
        assert kv[b"new"] == b"1"
