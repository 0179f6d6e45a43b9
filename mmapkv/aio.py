"""A store for ``async`` code, on asyncio, trio, and whatever else anyio runs on.

What takes microseconds is done at once, in the task that asks for it; what may wait for a disk, or goes
through a whole store, is done in a worker thread, so that the event loop goes on. ::

    async with await AsyncKVStore.open("fruit") as kv:
        await kv.put("apple", "red")
        await kv.put("pear", "green", durable=True)  # the loop goes on while the disk writes
        async for key, value in kv.scan("p"):
            ...
        async for change in kv.changes(follow=True):
            ...

| Done at once | In a thread |
|---|---|
| get and its like, contains, count, ttl, snapshot | open, close, flush, stats, compact, verify, backup, run |
| get_many, get_many_into of up to 1,000 keys | those of more, and of keys that are an iterator |
| put, delete, incr and the like | those that are durable; all where the flush policy has writers wait |
| | all, of a store that several processes write |
| | waiting for room that compaction makes, before the next change |
| the end of a batch or transaction | the same, and if it is long |
| | put_many, update, delete_many, popitem, clear, sweep, retry |
| each step of an iteration | what a scan reads before it begins, once it is much; waiting for changes |

To hand a call to a thread takes 50 to 100 us, a get 1 us. That holds for what is in memory. A page that must
come from the disk stops the loop for as long as that takes, about as long as the way to a thread and back
where the disk is an SSD; and a thread would not help, because values are copied with the interpreter's lock
held. Nor does it help with copying very long values.

Every 64th call lets other tasks have a turn, and is where a task that never waits can be cancelled. A call
that was cancelled before it began does nothing. One that was begun in a thread runs to its end, and only then
does the task go on, so the store is as if the call had been made, and never in between; what it returned may
be lost. Waiting for a change can be cancelled within 0.1 s, and loses none.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Self,
    SupportsIndex,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from mmapio.aio import check_anyio, in_thread, in_thread_all_the_same, waiting
from mmapio.options import FlushPolicy, Trigger
from mmapkv.aio_steps import RECORDS_MAX, AsyncChanges, Scan, Turns, Walk
from mmapkv.store import KVStore
from mmaplog.log import DEFAULT_POLICY, DEFAULT_SEGMENT_BYTES

if TYPE_CHECKING:
    from typing import TypeAlias

    from typing_extensions import Buffer

    from mmapio.view import MappedSlice
    from mmapkv.batch import Batch
    from mmapkv.snapshot import Snapshot
    from mmapkv.transaction import Transaction
    from mmapkv.verify import StoreVerified
    from mmaplog.backup import Backup
    from mmaplog.compaction import Compaction

    _Bytes: TypeAlias = str | bytes | Buffer
    _Ttl: TypeAlias = float | timedelta | None

    class _Condition(TypedDict, total=False):
        expected: _Bytes | None
        version: SupportsIndex | None
        ttl: _Ttl


__all__ = ["AsyncChanges", "AsyncKVStore"]

T = TypeVar("T")
_Changes_T = TypeVar("_Changes_T", "Batch", "Transaction")

# The policies under which a change may wait until it is on the device. Of a shared store any may wait for
# another process.
_WAITING = frozenset({Trigger.ALWAYS, Trigger.BYTES, Trigger.WRITES})


class AsyncKVStore:
    """A :class:`KVStore` whose calls are awaited; the module tells which of them take a thread.

    Make one with :meth:`open`, or of an open store, which it shares from then on: both may be used. What
    this class lacks, namespaces and typed views, is to be had through :meth:`run`. Every call raises what the
    store's does, and a change of a buffer during a call that takes a thread is a change of what is written.
    """

    __slots__ = ("_store", "_turns", "_waits")

    def __init__(self, store: KVStore) -> None:
        check_anyio()
        self._store = store
        self._waits = store.shared or store.flush_policy.trigger in _WAITING
        self._turns = Turns()

    @classmethod
    async def open(
        cls,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        mode: Literal["r", "w", "c", "n"] = "c",
        *,
        shared: bool = False,
        flush_policy: FlushPolicy = DEFAULT_POLICY,
        segment_bytes: SupportsIndex = DEFAULT_SEGMENT_BYTES,
        verify: bool = True,
        ordered: bool = False,
        max_bytes: SupportsIndex | None = None,
        eviction: Literal["clock", "fifo"] | None = None,
        compaction: bool | float = True,
        reserve_bytes: SupportsIndex | None = None,
    ) -> Self:
        """:meth:`KVStore.open` in a thread. Raises Unsupported without the package anyio.

        One who is cancelled meanwhile leaves no store open.
        """
        opened: list[KVStore] = []

        def work() -> None:
            opened.append(
                KVStore.open(
                    path,
                    mode,
                    shared=shared,
                    flush_policy=flush_policy,
                    segment_bytes=segment_bytes,
                    verify=verify,
                    ordered=ordered,
                    max_bytes=max_bytes,
                    eviction=eviction,
                    compaction=compaction,
                    reserve_bytes=reserve_bytes,
                )
            )

        try:
            await in_thread(work)
        except BaseException:
            for each in opened:
                await in_thread_all_the_same(each.close)
            raise
        return cls(opened[0])

    @property
    def store(self) -> KVStore:
        """The store itself, for code that need not wait."""
        return self._store

    @property
    def path(self) -> str:
        """The directory, as it was given."""
        return self._store.path

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._store.closed

    @property
    def shared(self) -> bool:
        """Whether other handles may write too."""
        return self._store.shared

    @property
    def flush_policy(self) -> FlushPolicy:
        """When writes become durable by themselves, as it was given."""
        return self._store.flush_policy

    async def run(self, call: Callable[[KVStore], T]) -> T:
        """What `call` returns when it is given the store, in a thread.

        For whatever takes long, or is many calls that belong together.
        """
        return await in_thread(lambda: call(self._store))

    @overload
    async def get(self, key: _Bytes, default: None = None) -> bytes | None: ...
    @overload
    async def get(self, key: _Bytes, default: T) -> bytes | T: ...
    async def get(self, key: _Bytes, default: Any = None) -> Any:
        """:meth:`KVStore.get`, at once."""
        if self._turns.over():
            await self._turns.pause()
        return self._store.get(key, default)

    @overload
    async def get_view(self, key: _Bytes, /, default: None = None) -> MappedSlice | None: ...
    @overload
    async def get_view(self, key: _Bytes, /, default: T) -> MappedSlice | T: ...
    async def get_view(self, key: _Bytes, /, default: Any = None) -> Any:
        """:meth:`KVStore.get_view`, at once."""
        if self._turns.over():
            await self._turns.pause()
        return self._store.get_view(key, default)

    async def get_into(self, key: _Bytes, buffer: Buffer, /) -> int | None:
        """:meth:`KVStore.get_into`, at once."""
        if self._turns.over():
            await self._turns.pause()
        return self._store.get_into(key, buffer)

    @overload
    async def get_versioned(self, key: _Bytes, /, default: None = None) -> tuple[bytes, int] | None: ...
    @overload
    async def get_versioned(self, key: _Bytes, /, default: T) -> tuple[bytes, int] | T: ...
    async def get_versioned(self, key: _Bytes, /, default: Any = None) -> Any:
        """:meth:`KVStore.get_versioned`, at once."""
        if self._turns.over():
            await self._turns.pause()
        return self._store.get_versioned(key, default)

    async def get_many(self, keys: Iterable[_Bytes], default: Any = None, view: bool = False) -> list[Any]:
        """:meth:`KVStore.get_many`, at once for up to 1,000 keys in a list or the like, else in a thread."""
        return await self._look(keys, lambda: self._store.get_many(keys, default, view))

    async def get_many_into(
        self,
        keys: Iterable[_Bytes],
        buffer: Buffer,
        lengths: Buffer | None = None,
        *,
        stride: SupportsIndex = 0,
    ) -> int:
        """:meth:`KVStore.get_many_into` likewise."""
        return await self._look(keys, lambda: self._store.get_many_into(keys, buffer, lengths, stride=stride))

    async def contains(self, key: _Bytes) -> bool:
        """Whether the key is present; at once."""
        if self._turns.over():
            await self._turns.pause()
        return key in self._store

    async def count(self) -> int:
        """How many keys there are; at once."""
        if self._turns.over():
            await self._turns.pause()
        return len(self._store)

    async def ttl(self, key: _Bytes) -> float | None:
        """:meth:`KVStore.ttl`, at once."""
        if self._turns.over():
            await self._turns.pause()
        return self._store.ttl(key)

    async def put(self, key: _Bytes, value: _Bytes, *, ttl: _Ttl = None, durable: bool = False) -> None:
        """:meth:`KVStore.put`; like every change, in a thread if it may wait for the disk."""
        await self._change(lambda: self._store.put(key, value, ttl=ttl, durable=durable), durable)

    async def add(self, key: _Bytes, value: _Bytes, *, ttl: _Ttl = None, durable: bool = False) -> bool:
        """:meth:`KVStore.add`."""
        return await self._change(lambda: self._store.add(key, value, ttl=ttl, durable=durable), durable)

    async def replace(self, key: _Bytes, value: _Bytes, *, ttl: _Ttl = None, durable: bool = False) -> bool:
        """:meth:`KVStore.replace`."""
        return await self._change(lambda: self._store.replace(key, value, ttl=ttl, durable=durable), durable)

    async def append(self, key: _Bytes, data: _Bytes, *, durable: bool = False) -> int:
        """:meth:`KVStore.append`."""
        return await self._change(lambda: self._store.append(key, data, durable=durable), durable)

    async def incr(
        self, key: _Bytes, by: SupportsIndex = 1, *, initial: SupportsIndex = 0, durable: bool = False
    ) -> int:
        """:meth:`KVStore.incr`."""
        return await self._change(
            lambda: self._store.incr(key, by, initial=initial, durable=durable), durable
        )

    async def compare_and_set(
        self,
        key: _Bytes,
        value: _Bytes | None,
        *,
        durable: bool = False,
        **condition: Unpack[_Condition],
    ) -> bool:
        """:meth:`KVStore.compare_and_set`, with `expected`, `version` and `ttl` as there."""
        return await self._change(
            lambda: self._store.compare_and_set(key, value, durable=durable, **condition), durable
        )

    async def touch(self, key: _Bytes, ttl: _Ttl = None, *, durable: bool = False) -> bool:
        """:meth:`KVStore.touch`."""
        return await self._change(lambda: self._store.touch(key, ttl, durable=durable), durable)

    async def put_many(
        self,
        pairs: Mapping[_Bytes, _Bytes] | Iterable[tuple[_Bytes, _Bytes]],
        *,
        ttl: _Ttl = None,
        durable: bool = False,
    ) -> None:
        """:meth:`KVStore.put_many` in a thread, which goes through `pairs` too."""
        await in_thread(lambda: self._store.put_many(pairs, ttl=ttl, durable=durable))

    async def delete_many(self, keys: Iterable[_Bytes], *, durable: bool = False) -> int:
        """:meth:`KVStore.delete_many` in a thread, which goes through `keys` too."""
        return await in_thread(lambda: self._store.delete_many(keys, durable=durable))

    def batch(self, *, durable: bool = False) -> AbstractAsyncContextManager[Batch]:
        """:meth:`KVStore.batch`, for an ``async with`` block.

        Its end takes a thread if it may wait, or is long.
        """
        batch = self._store.batch(durable=durable)
        return self._block(batch, durable, lambda: len(batch))

    def transaction(self, *, durable: bool = False) -> AbstractAsyncContextManager[Transaction]:
        """:meth:`KVStore.transaction` likewise. It is read and changed at once."""
        transaction = self._store.transaction(durable=durable)
        return self._block(transaction, durable, lambda: len(transaction._batch))

    @asynccontextmanager
    async def _block(
        self, changes: _Changes_T, durable: bool, size: Callable[[], int]
    ) -> AsyncIterator[_Changes_T]:
        ended = False

        def commit() -> None:
            nonlocal ended
            ended = True
            changes.__exit__(None, None, None)

        changes.__enter__()
        try:
            yield changes
            await self._change(commit, durable or size() > RECORDS_MAX)
        except BaseException as error:
            if not ended:
                changes.__exit__(type(error), error, error.__traceback__)
            raise

    async def retry(
        self, function: Callable[[Transaction], T], *, attempts: int = 10, durable: bool = False
    ) -> T:
        """:meth:`KVStore.retry` in a thread, in which `function` is called."""
        return await in_thread(lambda: self._store.retry(function, attempts=attempts, durable=durable))

    def snapshot(self) -> Snapshot:
        """:meth:`KVStore.snapshot`, to be read as the store itself is: at once."""
        return self._store.snapshot()

    async def delete(self, key: _Bytes) -> None:
        """Remove a key. Raises KeyError when it is absent."""
        await self._change(lambda: self._store.__delitem__(key))

    @overload
    async def pop(self, key: _Bytes, /) -> bytes: ...
    @overload
    async def pop(self, key: _Bytes, default: T, /) -> bytes | T: ...
    async def pop(self, key: _Bytes, /, *default: Any) -> Any:
        """:meth:`KVStore.pop`."""
        return await self._change(lambda: self._store.pop(key, *default))

    async def setdefault(self, key: _Bytes, default: _Bytes) -> bytes:
        """:meth:`KVStore.setdefault`."""
        return await self._change(lambda: self._store.setdefault(key, default))

    async def popitem(self) -> tuple[bytes, bytes]:
        """:meth:`KVStore.popitem` in a thread, for it reads on until it finds one."""
        return await in_thread(self._store.popitem)

    async def update(self, other: Any = (), /, **named: _Bytes) -> None:
        """:meth:`KVStore.update` in a thread, which goes through `other` too."""
        await in_thread(lambda: self._store.update(other, **named))

    async def sweep(self) -> int:
        """:meth:`KVStore.sweep` in a thread."""
        return await in_thread(self._store.sweep)

    async def clear(self, *, durable: bool = False) -> None:
        """:meth:`KVStore.clear` in a thread."""
        await in_thread(lambda: self._store.clear(durable=durable))

    async def flush(self) -> None:
        """:meth:`KVStore.flush` in a thread."""
        await in_thread(self._store.flush)

    async def sync(self) -> None:
        """:meth:`KVStore.sync` in a thread."""
        await in_thread(self._store.sync)

    @overload
    async def compact(
        self, *, background: Literal[False] = False, progress: Callable[[int, int], object] | None = None
    ) -> Compaction: ...
    @overload
    async def compact(self, *, background: Literal[True]) -> None: ...
    async def compact(
        self, *, background: bool = False, progress: Callable[[int, int], object] | None = None
    ) -> Compaction | None:
        """:meth:`KVStore.compact` in a thread, in which `progress` is called."""
        # Any: which of the two can be asked for together is the store's to say.
        compact: Any = self._store.compact
        made: Compaction | None = await in_thread(lambda: compact(background=background, progress=progress))
        return made

    async def verify(
        self, *, full: bool = True, progress: Callable[[int, int], object] | None = None
    ) -> StoreVerified:
        """:meth:`KVStore.verify` in a thread, in which `progress` is called."""
        return await in_thread(lambda: self._store.verify(full=full, progress=progress))

    async def backup(
        self,
        target: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        verify: bool = True,
        progress: Callable[[int, int], object] | None = None,
    ) -> Backup:
        """:meth:`KVStore.backup` in a thread, in which `progress` is called."""
        return await in_thread(lambda: self._store.backup(target, verify=verify, progress=progress))

    async def stats(self) -> dict[str, int]:
        """:meth:`KVStore.stats` in a thread."""
        return await in_thread(self._store.stats)

    def keys(self) -> AsyncIterator[bytes]:
        """The keys as of the first one that is asked for, in the order of the last change."""
        return Walk(lambda: iter(self._store))

    def values(self) -> AsyncIterator[bytes]:
        """The values likewise."""
        return Walk(lambda: iter(self._store.values()))

    def items(self) -> AsyncIterator[tuple[bytes, bytes]]:
        """The pairs likewise."""
        return Walk(lambda: iter(self._store.items()))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.keys()

    @overload
    def scan(
        self,
        prefix: _Bytes | None = None,
        *,
        start: _Bytes | None = None,
        stop: _Bytes | None = None,
        reverse: bool = False,
        values: Literal[True] = True,
    ) -> AsyncIterator[tuple[bytes, bytes]]: ...
    @overload
    def scan(
        self,
        prefix: _Bytes | None = None,
        *,
        start: _Bytes | None = None,
        stop: _Bytes | None = None,
        reverse: bool = False,
        values: Literal[False],
    ) -> AsyncIterator[bytes]: ...
    def scan(
        self,
        prefix: _Bytes | None = None,
        *,
        start: _Bytes | None = None,
        stop: _Bytes | None = None,
        reverse: bool = False,
        values: bool = True,
    ) -> AsyncIterator[Any]:
        """:meth:`KVStore.scan` as of the first one that is asked for. To sort the keys takes a thread."""

        def begin() -> Iterator[Any]:
            # Spelled out for type checkers, which tell the two apart.
            if values:
                return self._store.scan(prefix, start=start, stop=stop, reverse=reverse)
            return self._store.scan(prefix, start=start, stop=stop, reverse=reverse, values=False)

        return Scan(self._store, begin)

    def changes(
        self,
        since: SupportsIndex | None = 0,
        *,
        follow: bool = False,
        timeout: float | None = None,
        too_old: Literal["raise", "skip"] = "raise",
    ) -> AsyncChanges:
        """:meth:`KVStore.changes`, which waits in a thread."""
        return AsyncChanges(self._store.changes(since, follow=follow, timeout=timeout, too_old=too_old))

    async def close(self) -> None:
        """:meth:`KVStore.close` in a thread. A task that was cancelled closes all the same."""
        await in_thread_all_the_same(self._store.close)

    async def __aenter__(self) -> Self:
        self._store.__enter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncKVStore of {self._store!r}>"

    async def _look(self, keys: Iterable[_Bytes], call: Callable[[], T]) -> T:
        if not isinstance(keys, Sized) or len(keys) > RECORDS_MAX:
            return await in_thread(call)
        if self._turns.over():
            await self._turns.pause()
        return call()

    async def _change(self, call: Callable[[], T], durable: bool = False) -> T:
        if durable or self._waits:
            return await in_thread(call)
        if self._turns.over():
            await self._turns.pause()
        compactor = self._store._compactor
        if compactor is None:
            return call()
        while compactor.owed is not None:
            # Before the change: to be cancelled after it would leave the caller not knowing.
            await in_thread(lambda: compactor.settle(self._store), limiter=waiting())
        compactor.defers.now = True
        try:
            return call()
        finally:
            compactor.defers.now = False
