"""A snapshot: a store that stays as it was."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from mmapkv.bulk_reader import keys_of
from mmapkv.frozen import Frozen
from mmapkv.ordered import Era
from mmapkv.scan import Scanned
from mmapkv.views import Items, Keys, Values
from mmapkv.walk import KEYS, Walk

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from mmapkv.pins import Pin
    from mmapkv.store import KVStore

__all__ = ["Snapshot"]

_T = TypeVar("_T")


class Snapshot(Frozen, Scanned, Mapping[bytes, bytes]):
    """A read-only mapping: the store as it was when this was taken, whatever is written since.

    Made by ``KVStore.snapshot``. Taking one copies nothing and holds up nobody. It can be read as long as
    its store is open; close it when it is no more needed. What has a time to live, lives on in here as it
    did then. Numbered `stop` is the first change that it does not show: ``kv.changes(snapshot.stop)``.

    >>> import tempfile; from mmapkv import KVStore
    >>> with KVStore.open(tempfile.mkdtemp()) as kv:
    ...     kv["price"] = "10"
    ...     with kv.snapshot() as before:
    ...         kv["price"] = "12"
    ...         before["price"], kv["price"]
    (b'10', b'12')
    """

    def __init__(
        self, store: KVStore, stop: int, count: int, cleared: int, pin: Pin | None, era: Era
    ) -> None:
        self._store = store
        # Keeps compaction from removing what was current then; walks share it.
        self._pin = pin
        self._era: Era | None = era

    @overload
    def get_many(self, keys: Iterable[str | Buffer], default: None = None) -> list[bytes | None]: ...
    @overload
    def get_many(self, keys: Iterable[str | Buffer], default: bytes) -> list[bytes]: ...
    @overload
    def get_many(self, keys: Iterable[str | Buffer], default: _T) -> list[bytes | _T]: ...
    def get_many(self, keys: Iterable[str | Buffer], default: Any = None) -> list[Any]:
        """The values that `keys` had, as a list in their order, with `default` for each that was absent.

        Costs as many calls of :meth:`get`, and raises what that does; TypeError for one key in place of many.
        """
        return [self.get(key, default) for key in keys_of(keys)]

    def __iter__(self) -> Iterator[bytes]:
        return self._walk(KEYS)

    def keys(self) -> KeysView[bytes]:
        """A view of the keys; iterating it goes through the log once, and copies no value."""
        return Keys(self)

    def items(self) -> ItemsView[bytes, bytes]:
        """A view of the (key, value) pairs; iterating it reads each record once."""
        return Items(self)

    def values(self) -> ValuesView[bytes]:
        """A view of the values; iterating it reads each record once."""
        return Values(self)

    def close(self) -> None:
        """Let go of what it holds on to; the second time does nothing."""
        if self._finish():
            self._era = None
            self._pin = None
            self._store._end_view(self)

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Snapshot of {self._store.path!r} before record {self.stop}>"

    def _snapshot_for_scan(self) -> Snapshot:
        self._check()
        return self

    def _walk(self, what: int) -> Walk[Any]:
        self._check()
        return self._store._walk_until(self.stop, self.cleared, what, self.now, self._pin)
