"""Transactions: reading and writing as if alone."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import ItemsView, Iterable, Iterator, KeysView, MutableMapping, ValuesView
from datetime import timedelta
from heapq import merge
from operator import itemgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, TypeVar, overload

from mmapkv.batch import end_of
from mmapkv.bulk_reader import keys_of
from mmapkv.errors import StoreError
from mmapkv.frozen import encoded
from mmapkv.scan import Scanned, scan_snapshot
from mmapkv.updater import increased
from mmapkv.views import Items, Keys, Values
from mmapkv.walk import ITEMS, KEYS, VALUES

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from mmapkv.snapshot import Snapshot
    from mmapkv.store import KVStore, _Keyed

__all__ = ["Transaction"]

_T = TypeVar("_T")


class Transaction(Scanned, MutableMapping[bytes, bytes]):
    """A mapping whose changes are committed together when its ``with`` block ends; none, when that raises.

    Made by ``KVStore.transaction``. It reads the store as that was when it began, and its own changes. No
    lock is held meanwhile: the commit raises Conflict, and writes nothing, when a key that it read or
    changes was changed by others since; after an iteration, a scan or `len`, when anything was. So
    transactions are serializable. One that changes nothing never conflicts.

    >>> import tempfile; from mmapkv import KVStore
    >>> with KVStore.open(tempfile.mkdtemp()) as kv:
    ...     kv.put_many({"from": "100", "to": "0"})
    ...     with kv.transaction() as tx:
    ...         tx["to"] = str(int(tx["to"]) + 30)
    ...         tx["from"] = str(int(tx["from"]) - 30)
    ...     kv["from"], kv["to"]
    (b'70', b'30')
    """

    if TYPE_CHECKING:
        # MutableMapping's own, which takes what this class's operators take.

        def update(
            self,
            other: _Keyed | Iterable[tuple[str | Buffer, str | Buffer]] = (),
            /,
            **named: str | Buffer,
        ) -> None: ...

    def __init__(self, store: KVStore, durable: bool) -> None:
        self._store = store
        self._before = store.snapshot()
        self._durable = durable
        self._batch = store.batch(durable=durable)
        # Whether all that was there before is deleted.
        self._clears = False
        # None for what is deleted.
        self._changes: dict[bytes, bytes | None] = {}
        # When the time to live of what was put ends, where it has one, in nanoseconds since 1970.
        self._ends: dict[bytes, int] = {}
        self._reads: set[bytes] = set()
        # Where popitem is: in what was there before; once it is through, in the keys that were changed.
        self._oldest: Iterator[tuple[bytes, bytes]] | None = None
        self._later: deque[bytes] | None = None
        self._read_all = False
        self._over = False

    def __getitem__(self, key: str | bytes | Buffer, /) -> bytes:
        key = encoded(key, "key")
        value = self._get(key)
        if value is None:
            raise KeyError(key)
        return value

    @overload
    def get(self, key: str | bytes | Buffer, /, default: None = None) -> bytes | None: ...
    @overload
    def get(self, key: str | bytes | Buffer, /, default: bytes) -> bytes: ...
    @overload
    def get(self, key: str | bytes | Buffer, /, default: _T) -> bytes | _T: ...
    def get(self, key: str | bytes | Buffer, /, default: object = None) -> object:
        """The value of `key`, or `default`; from memory if it was changed here, else as ``Snapshot.get``.

        The commit is a Conflict if others change it meanwhile. Raises StoreError after the end.
        """
        value = self._get(encoded(key, "key"))
        return default if value is None else value

    @overload
    def get_many(self, keys: Iterable[str | Buffer], default: None = None) -> list[bytes | None]: ...
    @overload
    def get_many(self, keys: Iterable[str | Buffer], default: bytes) -> list[bytes]: ...
    @overload
    def get_many(self, keys: Iterable[str | Buffer], default: _T) -> list[bytes | _T]: ...
    def get_many(self, keys: Iterable[str | Buffer], default: object = None) -> list[Any]:
        """The values of `keys`, as a list in their order, with `default` for each that is absent.

        Costs as many calls of :meth:`get`, each of them is read as there, and raises what that does;
        TypeError for one key in place of many.
        """
        found = [self._get(key) for key in keys_of(keys)]
        return [default if value is None else value for value in found]

    def __contains__(self, key: object, /) -> bool:
        return self._get(encoded(key, "key")) is not None  # type: ignore[arg-type]

    def put(
        self,
        key: str | bytes | Buffer,
        value: str | bytes | Buffer,
        /,
        *,
        ttl: float | timedelta | None = None,
    ) -> None:
        """Set the value of `key`, and how long it lives from now.

        Raises what ``KVStore.put`` says of its arguments, StoreError after the end.
        """
        self._refuse_late()
        self._put(encoded(key, "key"), encoded(value, "value"), end_of(ttl))

    def put_many(
        self,
        pairs: _Keyed | Iterable[tuple[str | Buffer, str | Buffer]],
        /,
        *,
        ttl: float | timedelta | None = None,
    ) -> None:
        """Set the values of many keys, all of them or none: a mapping, or an iterable of (key, value).

        `ttl` is for all of them. Nothing is changed when iterating raises. Raises what :meth:`put` does.
        """
        self._refuse_late()
        ends = end_of(ttl)
        given: Any = pairs
        if hasattr(given, "keys"):
            given = [(key, given[key]) for key in given.keys()]  # noqa: SIM118
        for key, value in [self._batch._checked(key, value) for key, value in given]:
            self._put(key, value, ends)

    def __setitem__(self, key: str | bytes | Buffer, value: str | bytes | Buffer, /) -> None:
        self.put(key, value)

    def __delitem__(self, key: str | bytes | Buffer, /) -> None:
        key = encoded(key, "key")
        if self._get(key) is None:
            raise KeyError(key)
        self._delete(key)

    def delete_many(self, keys: Iterable[str | Buffer], /) -> int:
        """Remove many keys, and return how many were there. Each is read, as :meth:`get` does.

        Raises TypeError for one key in place of many, StoreError after the end.
        """
        found = [key for key in dict.fromkeys(keys_of(keys)) if self._get(key) is not None]
        for key in found:
            self._delete(key)
        return len(found)

    def incr(self, key: str | Buffer, by: SupportsIndex = 1, /, *, initial: SupportsIndex = 0) -> int:
        """Add `by` to the number that is the value of `key`, and return the sum, as ``KVStore.incr`` does.

        One that is absent counts as `initial`; a time to live stays as it was. The number is read, so
        others who count there are a Conflict. Raises ValueError when the value is no number, OverflowError.
        """
        key = encoded(key, "key")
        value = self._get(key)
        number = increased(key, value, by, initial)
        self._put(key, b"%d" % number, self._end(key))
        return number

    def append(self, key: str | Buffer, data: str | Buffer, /) -> int:
        """Add `data` to the end of the value of `key`, or to nothing when it is absent: the length of all.

        A time to live stays as it was, and the value is read. Raises what :meth:`put` does.
        """
        key, data = encoded(key, "key"), encoded(data, "value")
        whole = (self._get(key) or b"") + data
        self._put(key, whole, self._end(key))
        return len(whole)

    def setdefault(self, key: str | bytes | Buffer, default: str | bytes | Buffer | None = None, /) -> bytes:
        """The value of `key`, which is set to `default` first when it is absent.

        TypeError when that is None then.
        """
        key = encoded(key, "key")
        value = self._get(key)
        if value is None:
            if default is None:
                raise TypeError("a store cannot hold None; give setdefault a value")
            value = encoded(default, "value")
            self.put(key, value)
        return value

    def __iter__(self) -> Iterator[bytes]:
        return self._walk(KEYS)

    def __len__(self) -> int:
        self._read_everything()
        if self._clears:
            return sum(value is not None for value in self._changes.values())
        count = len(self._before)
        for key, value in self._changes.items():
            # As in the commit: what has expired is replaced by a put, while there is nothing to delete.
            count += 1 - self._before._counts(key) if value is not None else -(key in self._before)
        return count

    def keys(self) -> KeysView[bytes]:
        """A view of the keys; iterating it goes through the log once, and copies no value."""
        return Keys(self)

    def items(self) -> ItemsView[bytes, bytes]:
        """A view of the (key, value) pairs; iterating it reads each record once."""
        return Items(self)

    def values(self) -> ValuesView[bytes]:
        """A view of the values; iterating it reads each record once."""
        return Values(self)

    def popitem(self) -> tuple[bytes, bytes]:
        """Remove and return a pair, roughly the one that was changed longest ago. KeyError when empty.

        Counts as having read all of the store. However many are taken, it is read once.
        """
        self._read_everything()
        if self._oldest is None:
            self._oldest = self._before._walk(ITEMS)
        for key, value in () if self._clears else self._oldest:
            if key not in self._changes:
                self._delete(key)
                return key, value
        if self._later is None:
            self._later = deque(self._changes)
        while self._later:
            key = self._later.popleft()
            changed = self._changes.get(key)
            if changed is not None:
                self._delete(key)
                return key, changed
        raise KeyError("popitem: the transaction sees no key")

    def clear(self) -> None:
        """Delete every key, by one record when it is committed. Counts as having read all of the store."""
        self._read_everything()
        self._batch = self._store.batch(durable=self._durable)
        self._changes = {}
        self._clears = len(self._before) > 0

    def __enter__(self) -> Self:
        self._refuse_late()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._refuse_late()
        self._over = True
        try:
            if kind is None and (self._changes or self._clears):
                self._store._commit(
                    self._batch,
                    list(self._reads),
                    self._before.stop,
                    self._read_all,
                    self._before.cleared,
                    self._clears,
                )
                if self._clears:
                    self._store._was_cleared()
        finally:
            self._before.close()
        if kind is None:
            self._store._tell_rolled()

    def __repr__(self) -> str:
        return f"<Transaction on {self._store.path!r}, {len(self._changes)} keys changed>"

    def _get(self, key: bytes) -> bytes | None:
        self._refuse_late()
        if key in self._changes:
            return self._changes[key]
        if self._clears:
            return None
        self._reads.add(key)
        return self._before.get(key)

    def _end(self, key: bytes) -> int:
        # Of what was read.
        if key in self._changes:
            return self._ends.get(key, 0) if self._changes[key] is not None else 0
        return 0 if self._clears else self._before._expiry(key)

    def _put(self, key: bytes, value: bytes, end: int) -> None:
        self._batch._put_until(key, value, end)
        self._note(key, value)
        if end:
            self._ends[key] = end
        else:
            self._ends.pop(key, None)

    def _delete(self, key: bytes) -> None:
        self._batch.delete(key)
        self._note(key, None)

    def _note(self, key: bytes, value: bytes | None) -> None:
        # At the end, as in the store: the order is that of the last change.
        self._changes.pop(key, None)
        self._changes[key] = value
        if self._later is not None and value is not None:
            self._later.append(key)

    def _walk(self, what: int) -> Iterator[Any]:
        self._read_everything()
        # As it is now: it may be changed while somebody iterates.
        changes = dict(self._changes)
        return self._walk_over(() if self._clears else self._before._walk(ITEMS), changes, what)

    def _walk_over(
        self, before: Iterable[tuple[bytes, bytes]], changes: dict[bytes, bytes | None], what: int
    ) -> Iterator[Any]:
        for key, value in before:
            if key not in changes:
                yield (key, value)[what] if what in (KEYS, VALUES) else (key, value)
        for key, changed in changes.items():
            if changed is not None:
                yield (key, changed)[what] if what in (KEYS, VALUES) else (key, changed)

    def _snapshot_for_scan(self) -> Snapshot:
        self._read_everything()
        return self._before

    def _scan_within(
        self, low: bytes | None, high: bytes | None, reverse: bool, values: bool
    ) -> Iterator[Any]:
        before: Iterator[Any] = iter(())
        if not self._clears:
            before = scan_snapshot(self._snapshot_for_scan(), low, high, reverse, values)
        # As it is now, like the rest.
        changes = dict(self._changes)
        ours = sorted(
            (
                key
                for key, value in changes.items()
                if value is not None and (low is None or low <= key) and (high is None or key < high)
            ),
            reverse=reverse,
        )
        if values:
            pairs = (pair for pair in before if pair[0] not in changes)
            return merge(pairs, ((key, changes[key]) for key in ours), key=itemgetter(0), reverse=reverse)
        return merge((key for key in before if key not in changes), ours, reverse=reverse)

    def _read_everything(self) -> None:
        self._refuse_late()
        self._read_all = True

    def _refuse_late(self) -> None:
        if self._over:
            raise StoreError(errno.EINVAL, "the transaction has ended; begin another one", self._store.path)
