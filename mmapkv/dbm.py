"""The interface of the standard library's :mod:`dbm` modules, over a store.

In place of ``dbm.gnu``, ``dbm.ndbm`` or ``dbm.dumb``::

    from mmapkv import dbm

    with dbm.open("fruit", "c") as db:
        db["apple"] = "red"
        db[b"apple"]  # b'red'

What differs: a database is a directory; an empty key is refused; a second writer is refused, unless both say
``shared=True``, while any number may read; whatever was written when a process was killed is kept.
:class:`mmapkv.KVStore` is the same without the conventions of dbm, and :func:`shelve.Shelf` takes either.
"""

from __future__ import annotations

import os
from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from dbm import whichdb as standard_whichdb
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar, overload

from mmapio import _os
from mmapkv.attach import NAME as INDEX_NAME
from mmapkv.store import KVStore
from mmaplog.lock import NAME as LOCK_NAME

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Database", "error", "open", "whichdb"]

_Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
T = TypeVar("T")

#: What the functions and methods here raise, apart from KeyError, TypeError and ValueError, is one of these.
error = OSError


# The name is that of every module of dbm.
def open(  # noqa: A001
    file: _Path, flag: Literal["r", "w", "c", "n"] = "r", mode: int = 0o666, *, shared: bool = False
) -> Database:
    """Open the database in the directory `file`: to read, to write, created if it is missing, or always new.

    `mode` is not used, since the files of a store may be read and written by their owner alone. An empty
    file where a new database is to be, as :func:`tempfile.mkstemp` leaves it, is replaced by the directory.
    With `shared`, which other modules of dbm lack, others that say so too may write at the same time.
    Raises `error`, and ValueError for another flag.
    """
    if flag == "n":
        _replace_empty_file(os.fsdecode(file))
    return Database(KVStore.open(file, flag, shared=shared))


def whichdb(filename: _Path) -> str | None:
    """The module that opens this database: "mmapkv.dbm", or what :func:`dbm.whichdb` says."""
    try:
        names = _os.list_directory(_os.open_directory(os.fsdecode(filename)))
    except OSError:
        names = []
    return __name__ if {INDEX_NAME, LOCK_NAME} <= set(names) else standard_whichdb(filename)


class Database(MutableMapping[bytes, bytes]):
    """An open database, as :func:`open` returns it: a mapping of bytes to bytes whose `keys` are a list.

    Keys and values may be given as str, encoded as UTF-8. Changes are there for every process when the call
    returns, and on the device after `sync`, `close`, or a second.
    """

    _store: KVStore
    _keys: Iterator[bytes] | None
    _key: bytes | None

    def __init__(self, store: KVStore) -> None:
        self._store = store
        self._keys = None
        self._key = None

    def __getitem__(self, key: str | Buffer, /) -> bytes:
        return self._store[key]

    def __setitem__(self, key: str | Buffer, value: str | Buffer, /) -> None:
        self._store[key] = value

    def __delitem__(self, key: str | Buffer, /) -> None:
        del self._store[key]

    def __contains__(self, key: object, /) -> bool:
        return key in self._store

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._store)

    def __len__(self) -> int:
        return len(self._store)

    def keys(self) -> list[bytes]:  # type: ignore[override]
        """All the keys, as a list: that is what other modules of dbm return."""
        return list(self._store)

    def items(self) -> ItemsView[bytes, bytes]:
        """A view of the (key, value) pairs."""
        return self._store.items()

    def values(self) -> ValuesView[bytes]:
        """A view of the values."""
        return self._store.values()

    @overload
    def get(self, key: str | Buffer, /, default: None = None) -> bytes | None: ...
    @overload
    def get(self, key: str | Buffer, /, default: bytes) -> bytes: ...
    @overload
    def get(self, key: str | Buffer, /, default: T) -> bytes | T: ...
    def get(self, key: str | Buffer, /, default: Any = None) -> Any:
        """The value of `key`, or `default`."""
        return self._store.get(key, default)

    def setdefault(self, key: str | Buffer, default: str | Buffer | None = b"", /) -> bytes:
        """The value of `key`, which is set to `default` first when it is absent."""
        return self._store.setdefault(key, default)

    def popitem(self) -> tuple[bytes, bytes]:
        """Remove and return a pair. KeyError when empty."""
        return self._store.popitem()

    def clear(self) -> None:
        """Delete every key: :meth:`mmapkv.KVStore.clear`."""
        self._store.clear()

    def firstkey(self) -> bytes | None:
        """The key with which a walk over the keys as they are now begins; None when there are none."""
        self._keys = iter(self._store)
        return self._next()

    def nextkey(self, key: str | Buffer, /) -> bytes | None:
        """The key that follows `key`; None after the last, and when there is no such key.

        Costs little for the key that this or `firstkey` returned last, even if it was deleted since: such a
        walk meets every key that was there when it began, once. For any other key it walks the database.
        """
        raw = key.encode() if isinstance(key, str) else bytes(memoryview(key))
        if self._keys is None or raw != self._key:
            self._keys = iter(self._store)
            while self._next() not in (raw, None):
                pass
        return self._next()

    def sync(self) -> None:
        """Make everything that was written durable: on the device when it returns."""
        self._store.sync()

    def reorganize(self) -> None:
        """Give back the room that deleted and replaced values take: :meth:`mmapkv.KVStore.compact`."""
        self._store.compact()

    def close(self) -> None:
        """Close the database, syncing first; the second time does nothing."""
        self._store.close()

    def __enter__(self) -> Self:
        self._store.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # As its store: opened again for reading.
        return Database, (self._store,)

    def __repr__(self) -> str:
        return f"<mmapkv.dbm.Database of {self._store!r}>"

    def _next(self) -> bytes | None:
        self._key = None if self._keys is None else next(self._keys, None)
        if self._key is None:
            self._keys = None
        return self._key


def _replace_empty_file(path: str) -> None:
    # Whoever looks for a free name makes a file of it; `open` would refuse to put a directory in its place.
    place = Path(path)
    if place.is_file() and not place.is_symlink() and place.stat().st_size == 0:
        _os.remove_file(None, path)
