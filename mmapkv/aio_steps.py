"""The iterations of an asynchronous store: each step at once, and now and then a turn for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Self, TypeVar

from mmapio.aio import in_thread
from mmapkv.changes import Change, Changes
from mmapkv.store import KVStore

T = TypeVar("T")

#: Calls that one task may make before the others get a turn.
CALLS_MAX = 64

#: What a scan reads before it begins is read at once if it is no more than so many records, some 0.5 ms.
RECORDS_MAX = 1000


class Turns:
    """Counts calls, and lets other tasks go first when it is their turn."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = CALLS_MAX

    async def pause(self) -> None:
        """Let other tasks go first."""
        from anyio.lowlevel import checkpoint

        self._left = CALLS_MAX
        await checkpoint()

    def over(self) -> bool:
        """Count a call: whether others are to go before it."""
        self._left -= 1
        return self._left < 0


class Walk(Generic[T]):
    """The steps of an iteration over a store, each at once."""

    __slots__ = ("_begin", "_steps", "_turns")

    def __init__(self, begin: Callable[[], Iterator[T]]) -> None:
        self._begin = begin
        self._steps: Iterator[T] | None = None
        self._turns = Turns()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._turns.over():
            # Before the step: to be cancelled with what it gave in hand would lose that.
            await self._turns.pause()
        if self._steps is None:
            await self._prepare()
            self._steps = self._begin()
        for step in self._steps:
            return step
        raise StopAsyncIteration

    async def _prepare(self) -> None:
        pass


class Scan(Walk[T]):
    """A scan, with what may take long before it."""

    __slots__ = ("_store",)

    def __init__(self, store: KVStore, begin: Callable[[], Iterator[T]]) -> None:
        super().__init__(begin)
        self._store = store

    async def _prepare(self) -> None:
        keys = self._store._ordered
        if keys.lag(self._store) > RECORDS_MAX:
            await in_thread(lambda: keys.prepare(self._store))


class AsyncChanges:
    """The changes of a store, for ``async for``, as :class:`Changes` tells. For one task at a time."""

    __slots__ = ("_changes", "_turns")

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._turns = Turns()

    @property
    def seq(self) -> int:
        """The number that the next change has at least: where to go on, another day."""
        return self._changes.seq

    @property
    def complete(self) -> bool:
        """Whether every number since the beginning was there, as :attr:`Changes.complete`."""
        return self._changes.complete

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        if self._turns.over():
            await self._turns.pause()
        return await self._changes.__anext__()
