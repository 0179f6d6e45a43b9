"""What `items` and `values` of a store return, of a snapshot and of a transaction."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, ValuesView
from typing import Any, Protocol

from mmapkv.walk import ITEMS, VALUES

__all__ = ["Items", "Values"]


class _Walked(Protocol):
    def _walk(self, what: int) -> Iterator[Any]: ...


class Items(ItemsView[bytes, bytes]):
    """A view of the (key, value) pairs; iterating it reads each record once."""

    _mapping: _Walked

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping._walk(ITEMS)


class Values(ValuesView[bytes]):
    """A view of the values; iterating it reads each record once."""

    _mapping: _Walked

    def __iter__(self) -> Iterator[bytes]:
        return self._mapping._walk(VALUES)
