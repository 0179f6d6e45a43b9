"""A store whose values are objects, made of bytes and into bytes by a codec."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from mmapkv.codecs import Codec
from mmapkv.namespace import Namespace

if TYPE_CHECKING:
    from mmapkv.store import KVStore

K = TypeVar("K", bound=bytes | str)
T = TypeVar("T")


class TypedStore(Namespace[K, T]):
    """All of a store, with values through a codec, and keys that come back as bytes or str.

    Made by :meth:`mmapkv.KVStore.typed`, or opened with ``KVStore.open(path, codec=...)``. It is the
    store's handle too: closing either closes both. The store is still there as bytes, as :attr:`store`.

    >>> import tempfile, mmapkv
    >>> from mmapkv.codecs import Json
    >>> with mmapkv.KVStore.open(tempfile.mkdtemp(), codec=Json()) as kv:
    ...     kv["colours"] = ["red", "green"]
    ...     kv["colours"], kv.store["colours"]
    (['red', 'green'], b'["red","green"]')
    """

    def __init__(self, store: KVStore, codec: Codec[T], keys: type[K]) -> None:
        super().__init__(store, b"", codec, keys)

    @property
    def path(self) -> str:
        """The store's directory, as it was given."""
        return self._store.path

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._store.closed

    def close(self) -> None:
        """Close the store, as :meth:`mmapkv.KVStore.close` does."""
        self._store.close()

    def stats(self) -> dict[str, int]:
        """Counts and sizes of the store."""
        return self._store.stats()

    def clear(self) -> None:
        """Delete every key, as :meth:`mmapkv.KVStore.clear` does."""
        self._store.clear()

    def __len__(self) -> int:
        return len(self._store)

    def __bool__(self) -> bool:
        return len(self._store) > 0

    def __enter__(self) -> Self:
        self._store.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return TypedStore, (self._store, self._codec, self._keys)

    def __repr__(self) -> str:
        return f"<TypedStore of {self._store!r}, {self._codec!r}>"
