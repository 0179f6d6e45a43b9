"""What `keys`, `items` and `values` return: of a store, of a part, a snapshot and a transaction."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Set, ValuesView
from typing import Any, Protocol, TypeVar

from mmapkv.walk import ITEMS, VALUES

__all__ = ["Compared", "Items", "Keys", "Pairs", "Values"]

K = TypeVar("K")
V = TypeVar("V")


class _Walked(Protocol):
    def _walk(self, what: int) -> Iterator[Any]: ...


class Compared(Set[Any]):
    """A set that is compared by what it gives: its length may count keys whose time to live is over."""

    __slots__ = ()

    # Each costs a walk at most, and a look-up for each element of the other one.

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Set):
            return NotImplemented
        return _count_in(self, other) == _size(other)

    def __le__(self, other: Set[Any]) -> bool:
        if not isinstance(other, Set):
            return NotImplemented
        return _count_in(self, other) is not None

    def __lt__(self, other: Set[Any]) -> bool:
        if not isinstance(other, Set):
            return NotImplemented
        count = _count_in(self, other)
        return count is not None and count < _size(other)

    def __ge__(self, other: Set[Any]) -> bool:
        if not isinstance(other, Set):
            return NotImplemented
        return _count_in(other, self) is not None

    def __gt__(self, other: Set[Any]) -> bool:
        if not isinstance(other, Set):
            return NotImplemented
        count = _count_in(other, self)
        return count is not None and count < _size(self)


def _count_in(these: Iterable[Any], others: Set[Any]) -> int | None:
    # How many these are, or None when one of them is not among the others.
    count = 0
    for each in these:
        if each not in others:
            return None
        count += 1
    return count


def _size(found: Set[Any]) -> int:
    return sum(1 for _ in found) if isinstance(found, Compared) else len(found)


class Keys(Compared, KeysView[K]):
    """A view of the keys, with what sets can do; one iteration is over one moment."""

    __slots__ = ()

    _mapping: Mapping[K, Any]

    def __iter__(self) -> Iterator[K]:
        return iter(self._mapping)


class Pairs(Compared, ItemsView[K, V]):
    """A view of the (key, value) pairs, with what sets can do."""

    __slots__ = ()

    def __contains__(self, item: object) -> bool:
        return isinstance(item, tuple) and len(item) == 2 and super().__contains__(item)


class Items(Pairs[bytes, bytes]):
    """A view of the (key, value) pairs; iterating it reads each record once."""

    __slots__ = ()

    _mapping: _Walked

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping._walk(ITEMS)


class Values(ValuesView[bytes]):
    """A view of the values; iterating it reads each record once."""

    __slots__ = ()

    _mapping: _Walked

    def __iter__(self) -> Iterator[bytes]:
        return self._mapping._walk(VALUES)
