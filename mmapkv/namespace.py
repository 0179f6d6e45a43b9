"""A part of a store as a mapping of its own: keys that begin with a prefix, values through a codec."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast, overload

from mmapkv.bulk_reader import refuse_one_key
from mmapkv.codecs import Codec, checked
from mmapkv.oldest import Oldest
from mmapkv.views import Keys, Pairs
from mmapkv.walk import ITEMS, KEYS

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from mmapkv.store import KVStore

K = TypeVar("K", bound=bytes | str)
T = TypeVar("T")
U = TypeVar("U")
_Ttl: TypeAlias = float | timedelta | None

# The default of `pop`, which may be given as None; and what no codec decodes to.
_MISSING: Any = object()


class Namespace(MutableMapping[K, T], Generic[K, T]):
    """The keys of a store that begin with a prefix, without it, as a mapping of its own.

    Made by :meth:`mmapkv.KVStore.namespace`, and like a store in all that it can do. It keeps nothing but
    the prefix, so it sees what the store holds, and any number of them may be of the same prefix. One
    operation on a key costs what it costs in the store. Iteration, `len` and `clear` read the log of the
    whole store once; of a store that was opened with ``ordered=True`` only what there is of this part, in the
    order of its keys. The prefix itself is a key of the store, and the empty one here. Prefixes of which one
    begins another overlap: let each end in a byte that they otherwise do not contain.

    Batches, transactions and snapshots, and what works on the bytes of a value, `append`, `incr` and
    `compare_and_set`, are those of :attr:`store`, with whole keys.

    Keys are given as bytes, another buffer, or str (as UTF-8), and come back as bytes, or as str where that
    was asked for. Values are what the codec makes of bytes. It is called before anything is written or
    removed: when it raises, the store is as it was.

    >>> import tempfile, mmapkv
    >>> with mmapkv.KVStore.open(tempfile.mkdtemp()) as kv:
    ...     users = kv.namespace("users/")
    ...     users["ann"] = b"admin"
    ...     list(users.items()), list(kv)
    ([(b'ann', b'admin')], [b'users/ann'])
    """

    def __init__(self, store: KVStore, prefix: str | Buffer, codec: Codec[T], keys: type[K]) -> None:
        if keys not in (bytes, str):
            raise TypeError(f"keys come back as bytes or str, not as {keys!r}")
        self._store = store
        self._prefix = prefix.encode() if isinstance(prefix, str) else bytes(memoryview(prefix))
        self._codec = checked(codec)
        self._keys = keys
        self._oldest = Oldest(self._prefix)

    @property
    def store(self) -> KVStore:
        """The store that this is a part of."""
        return self._store

    @property
    def prefix(self) -> bytes:
        """What the keys of the store begin with."""
        return self._prefix

    @property
    def codec(self) -> Codec[T]:
        """What makes bytes of the values."""
        return self._codec

    def namespace(self, prefix: str | Buffer) -> Namespace[K, T]:
        """The part of this one whose keys begin with `prefix`."""
        return Namespace(self._store, self._inner(prefix), self._codec, self._keys)

    @overload
    def typed(self, codec: Codec[U], keys: type[bytes] = ...) -> Namespace[bytes, U]: ...
    @overload
    def typed(self, codec: Codec[U], keys: type[str]) -> Namespace[str, U]: ...
    def typed(self, codec: Codec[U], keys: type[Any] = bytes) -> Namespace[Any, U]:
        """The same keys, with values through `codec` instead; they come back as `keys`, bytes or str."""
        return Namespace(self._store, self._prefix, codec, keys)

    def __getitem__(self, key: str | Buffer, /) -> T:
        raw = self._store.get(self._inner(key))
        if raw is None:
            raise KeyError(key)
        return self._codec.decode(raw)

    @overload
    def get(self, key: str | Buffer, /, default: None = None) -> T | None: ...
    @overload
    def get(self, key: str | Buffer, /, default: T) -> T: ...
    @overload
    def get(self, key: str | Buffer, /, default: U) -> T | U: ...
    def get(self, key: str | Buffer, /, default: Any = None) -> Any:
        """The value of `key`, or `default`. Raises what decoding does."""
        raw = self._store.get(self._inner(key))
        return default if raw is None else self._codec.decode(raw)

    def get_many(self, keys: Iterable[str | Buffer], /, default: Any = None) -> list[Any]:
        """The values of many keys, in their order, as :meth:`mmapkv.KVStore.get_many` finds them.

        Raises TypeError for a single key.
        """
        refuse_one_key(keys)
        found = self._store.get_many([self._inner(key) for key in keys])
        return [default if raw is None else self._codec.decode(raw) for raw in found]

    def scan(
        self,
        prefix: str | Buffer = b"",
        *,
        start: str | Buffer | None = None,
        stop: str | Buffer | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[K, T]]:
        """The pairs in the order of their keys, as :meth:`mmapkv.KVStore.scan` gives them."""
        first, last = (None if limit is None else self._inner(limit) for limit in (start, stop))
        pairs = self._store.scan(self._inner(prefix), start=first, stop=last, reverse=reverse)
        return ((self._outer(key), self._codec.decode(raw)) for key, raw in pairs)

    def __contains__(self, key: object, /) -> bool:
        return self._inner(key) in self._store

    def __setitem__(self, key: str | Buffer, value: T, /) -> None:
        self._store[self._inner(key)] = self._encoded(value)

    def put(self, key: str | Buffer, value: T, /, *, ttl: _Ttl = None, durable: bool = False) -> None:
        """Set the value of `key`, as :meth:`mmapkv.KVStore.put` does; raises what encoding does, too."""
        self._store.put(self._inner(key), self._encoded(value), ttl=ttl, durable=durable)

    def put_many(
        self,
        pairs: Mapping[K, T] | Iterable[tuple[str | Buffer, T]],
        /,
        *,
        ttl: _Ttl = None,
        durable: bool = False,
    ) -> None:
        """Set the values of many keys, all of them or none, as :meth:`mmapkv.KVStore.put_many` does."""
        items = pairs.items() if isinstance(pairs, Mapping) else pairs
        encoded = ((self._inner(key), self._encoded(value)) for key, value in items)
        self._store.put_many(encoded, ttl=ttl, durable=durable)

    def add(self, key: str | Buffer, value: T, /, *, ttl: _Ttl = None, durable: bool = False) -> bool:
        """Set the value of `key` only if it is absent, as :meth:`mmapkv.KVStore.add` does: whether it was.

        Raises what encoding does, too.
        """
        return self._store.add(self._inner(key), self._encoded(value), ttl=ttl, durable=durable)

    def replace(self, key: str | Buffer, value: T, /, *, ttl: _Ttl = None, durable: bool = False) -> bool:
        """Set the value of `key` only if it is present, as :meth:`mmapkv.KVStore.replace` does: if it was.

        Raises what encoding does, too.
        """
        return self._store.replace(self._inner(key), self._encoded(value), ttl=ttl, durable=durable)

    def touch(self, key: str | Buffer, /, ttl: _Ttl = None, *, durable: bool = False) -> bool:
        """Give `key` another time to live, as :meth:`mmapkv.KVStore.touch` does."""
        return self._store.touch(self._inner(key), ttl, durable=durable)

    def ttl(self, key: str | Buffer, /) -> float | None:
        """How long `key` still has to live, as :meth:`mmapkv.KVStore.ttl` says."""
        return self._store.ttl(self._inner(key))

    def delete_many(self, keys: Iterable[str | Buffer], /, *, durable: bool = False) -> int:
        """Remove many keys, as :meth:`mmapkv.KVStore.delete_many` does, and return how many were there.

        Raises TypeError for a single key.
        """
        refuse_one_key(keys)
        return self._store.delete_many((self._inner(key) for key in keys), durable=durable)

    def setdefault(self, key: str | Buffer, default: T | None = None, /) -> T:
        """The value of `key`, which is set to `default` first when it is absent.

        Costs and raises what :meth:`mmapkv.KVStore.setdefault` does, and what the codec does.
        """
        raw = self._store.get(self._inner(key))
        if raw is None:
            # In one step: what another thread has set meanwhile stays.
            raw = self._store.setdefault(self._inner(key), self._encoded(cast("T", default)))
        return self._codec.decode(raw)

    def __delitem__(self, key: str | Buffer, /) -> None:
        try:
            del self._store[self._inner(key)]
        except KeyError:
            raise KeyError(key) from None

    @overload
    def pop(self, key: str | Buffer, /) -> T: ...
    @overload
    def pop(self, key: str | Buffer, default: T, /) -> T: ...
    @overload
    def pop(self, key: str | Buffer, default: U, /) -> T | U: ...
    def pop(self, key: str | Buffer, default: Any = _MISSING, /) -> Any:
        """Remove `key` and return its value; `default`, or KeyError, when it is absent.

        Of several threads one gets the value. What cannot be decoded is not removed. Costs two look-ups and a
        record, and a look at the value for each of them.
        """
        inner = self._inner(key)
        while True:
            raw = self._store.get(inner)
            if raw is None:
                if default is _MISSING:
                    raise KeyError(key)
                return default
            value = self._codec.decode(raw)
            # Unless another thread has changed it while this one decoded.
            if self._store.compare_and_set(inner, None, expected=raw):
                return value

    def popitem(self) -> tuple[K, T]:
        """Remove and return a pair, roughly the one that was changed longest ago. KeyError when empty.

        Emptying it this way, with one Namespace object, reads the log of the store once.
        """
        found = self._oldest.take(self._store, self, self._outer)
        if found is None:
            raise KeyError("popitem: the namespace is empty")
        return found

    def clear(self) -> None:
        """Delete every key of this part, one by one. Costs what iteration does, and a deletion for each."""
        for key in self._inner_keys():
            self._store.pop(key, None)

    def __iter__(self) -> Iterator[K]:
        return map(self._outer, self._inner_keys())

    def __len__(self) -> int:
        return sum(1 for _ in self._inner_keys())

    def __bool__(self) -> bool:
        return any(True for _ in self._inner_keys())

    def keys(self) -> KeysView[K]:
        """A view of the keys; iterating it copies no value."""
        return Keys(self)

    def items(self) -> ItemsView[K, T]:
        """A view of the (key, value) pairs; iterating it reads each record once."""
        return _Items(self)

    def values(self) -> ValuesView[T]:
        """A view of the values; iterating it reads each record once."""
        return _Values(self)

    def flush(self) -> None:
        """Make every write to the store durable, as :meth:`mmapkv.KVStore.flush` does."""
        self._store.flush()

    def sync(self) -> None:
        """As :meth:`mmapkv.KVStore.sync` does."""
        self._store.sync()

    def __reduce__(self) -> tuple[Any, ...]:
        # With the store, which opens again for reading.
        return Namespace, (self._store, self._prefix, self._codec, self._keys)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._prefix!r} of {self._store!r}, {self._codec!r}>"

    def _inner(self, key: Any) -> str | Buffer:
        # The key as the store has it.
        if not self._prefix:
            return cast("str | Buffer", key)
        try:
            return b"".join((self._prefix, key.encode() if isinstance(key, str) else key))
        except (TypeError, BufferError):
            kind = type(key).__name__
            raise TypeError(f"a key is bytes, another contiguous buffer or str, not {kind}") from None

    def _outer(self, key: bytes) -> K:
        key = key[len(self._prefix) :]
        return key if self._keys is bytes else key.decode()  # type: ignore[return-value]

    def _encoded(self, value: T) -> Buffer:
        data = self._codec.encode(value)
        if not isinstance(data, bytes):
            try:
                memoryview(data).release()
            except TypeError:
                kind = type(data).__name__
                raise TypeError(f"{self._codec!r} encoded a value as {kind}, which is no buffer") from None
        return data

    def _inner_keys(self) -> Iterator[bytes]:
        if self._store._in_order and self._prefix:
            return self._store.scan(self._prefix, values=False)
        keys = self._store._walk(KEYS)
        return (key for key in keys if key.startswith(self._prefix)) if self._prefix else keys

    def _pairs(self) -> Iterator[tuple[K, T]]:
        if self._store._in_order and self._prefix:
            pairs = self._store.scan(self._prefix)
            return ((self._outer(key), self._codec.decode(raw)) for key, raw in pairs)
        pairs = self._store._walk(ITEMS)
        return (
            (self._outer(key), self._codec.decode(raw)) for key, raw in pairs if key.startswith(self._prefix)
        )


class _Items(Pairs[K, T]):
    _mapping: Namespace[K, T]

    def __iter__(self) -> Iterator[tuple[K, T]]:
        return self._mapping._pairs()


class _Values(ValuesView[T]):
    _mapping: Namespace[Any, T]

    def __iter__(self) -> Iterator[T]:
        return (value for _, value in self._mapping._pairs())
