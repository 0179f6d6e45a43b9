"""Twins of the blocking calls for ``async`` code, on asyncio, trio, and whatever else anyio runs on.

A call that may wait for a disk, a lock of the kernel, or somebody else has a twin named after it, with
``_async`` at the end, the same parameters, the same result and the same errors. The call runs in a worker
thread of anyio's, so that the event loop goes on meanwhile; that costs some 50 to 100 us. The package anyio
comes with the extra ``async``; without it the twins raise Unsupported. ::

    async with await MemoryMappedFile.open_rw_async("data") as mapped:
        await mapped.update_region_async(0, b"durable when this returns")
        async for event in mapped.watch_async():
            ...

Cancelling. A call that was not begun is revoked. One that was begun runs to its end, and only then does the
caller go on: so no call is half done, and a buffer that was handed over is the caller's again when the call
is over, cancelled or not. It is also how long cancelling may take: as long as the disk does. Where anyio
cancels, the call still returns its result, and the next ``await`` is what raises; where asyncio cancels by
itself (``Task.cancel``, ``asyncio.timeout``), the call raises, and its result is dropped. What waits for
others (:func:`wait_async`, :class:`AsyncWatch`, a ``resize_async`` with a timeout) can be cancelled within
0.1 s at any time.

What has no twin, for a reason:

- Views, ``m[i]``, atomics: as fast as memory where the pages are in it. Bring them in with
  :meth:`~AsyncTwins.touch_pages_range_async`. Under ``FlushPolicy.ALWAYS`` and the policies that count,
  any store may flush, and wait: in ``async`` code prefer ``MANUAL`` or ``every_millis``, and the twins.
- :class:`mmapio.SharedMutex`: its owner is a thread, and all tasks of an event loop are one thread. Let
  tasks wait for a mapped word with :func:`wait_async` instead.
- What calls back (``for_each_mut``): ``await anyio.to_thread.run_sync(chunks.for_each_mut, function)``.
- :class:`mmapio.Reader`: ``anyio.wrap_file(mapped.reader())`` makes an asynchronous file of it; read 256 KiB
  or more at a time, since shorter copies may keep the GIL while a page comes from the disk.
- :class:`mmapio.Builder`: the constructors' twins take the same options.
"""

from __future__ import annotations

import errno
import functools
import importlib
import operator
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Self, SupportsIndex, TypedDict, TypeVar, Unpack, cast

from mmapio._vm import PAGE_SIZE
from mmapio.errors import MmapIoError, ResizeFailed, Unsupported
from mmapio.options import FlushPolicy, MmapAdvice, MmapMode, TouchHint
from mmapio.watch import INTERVAL_SECONDS, ChangeEvent, ChangeKind, WatchHandle, watch

if TYPE_CHECKING:
    from concurrent.futures import Future
    from typing import TypeAlias

    from anyio import CapacityLimiter
    from anyio.lowlevel import RunVar
    from typing_extensions import Buffer

    from mmapio.atomic import Atomic
    from mmapio.file import MemoryMappedFile

    _Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

__all__ = [
    "AsyncTwins",
    "AsyncWatch",
    "copy_mmap_async",
    "create_mmap_async",
    "delete_mmap_async",
    "in_thread",
    "load_mmap_async",
    "wait_async",
    "write_mmap_async",
]

T = TypeVar("T")

#: How long a thread waits for others at a stretch, and so how long cancelling it takes at most.
SLICE_SECONDS = 0.1

#: Threads that wait for others, for each event loop. They are none of anyio's usual 40, which must stay free
#: for those who are waited for. What is more than this takes turns of a slice each.
WAITING_MAX = 64

#: Events that a watch keeps for a reader who is late, before it merges them.
EVENTS_MAX = 64

#: Copies of up to 256 KiB are made with the GIL held, and a page that must come from the disk would then stop
#: the event loop too, from whatever thread. Copies of up to this length, to be safe, have the pages first.
POPULATED_BYTES_MAX = 1 << 20


# What the constructors take: all of them, those of mappings that grow, those of writable ones, create_rw.
class _Options(TypedDict, total=False):
    touch_hint: TouchHint
    huge_pages: bool


class _GrowingOptions(_Options, total=False):
    reserve: SupportsIndex


class _WritableOptions(_GrowingOptions, total=False):
    flush_policy: FlushPolicy


class _CreateOptions(_WritableOptions, total=False):
    sparse: bool


async def in_thread(call: Callable[[], T], *, limiter: CapacityLimiter | None = None) -> T:
    """Run `call` in a worker thread, and return or raise what it does.

    Cancelled before it began, it never runs; cancelled later, it ends first. `limiter` counts the thread
    instead of anyio's own. Raises Unsupported without the package anyio.
    """
    check_anyio()
    from concurrent.futures import Future

    from anyio import get_cancelled_exc_class, to_thread

    job: Future[None] = Future()

    def work() -> T:
        if not job.set_running_or_notify_cancel():
            raise RuntimeError("the call was revoked, and nobody waits for it")
        try:
            return call()
        finally:
            job.set_result(None)

    try:
        # Shielded from anyio's cancellation once it is begun.
        return await to_thread.run_sync(work, limiter=limiter)
    except get_cancelled_exc_class():
        if not job.cancel():
            await _ended(job)
        raise


async def in_thread_all_the_same(call: Callable[[], None]) -> None:
    """For layers above: :func:`in_thread`, for what must be done by tasks that were cancelled too."""
    check_anyio()
    from concurrent.futures import ThreadPoolExecutor

    from anyio import CancelScope, get_cancelled_exc_class

    begun = False

    def work() -> None:
        nonlocal begun
        begun = True
        call()

    try:
        with CancelScope(shield=True):
            await in_thread(work)
    except get_cancelled_exc_class():
        # By asyncio's own Task.cancel(), which no shield holds off. What is begun here nobody revokes.
        if not begun:
            job = ThreadPoolExecutor(1).submit(call)
            await _ended(job)
            job.result()
        raise


async def _ended(job: Future[None]) -> None:
    # No shield of anyio's holds off asyncio's own Task.cancel(). Whoever is told "cancelled" uses his buffer
    # for something else, so he is told no sooner than the thread lets go of it, however often he asks.
    import asyncio

    from anyio import CancelScope

    with CancelScope(shield=True):
        while not job.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([asyncio.wrap_future(job)])


def check_anyio() -> None:
    """For layers above: raise Unsupported without the package anyio."""
    try:
        importlib.import_module("anyio")
    except ImportError as error:
        raise Unsupported(
            errno.ENOSYS, f"async calls need the package anyio: pip install mmapkv[async] ({error})"
        ) from error


# The limiter of each event loop; made at the first wait, for it takes anyio.
_limiters: RunVar[CapacityLimiter] | None = None


def waiting() -> CapacityLimiter:
    """For layers above: what counts the threads that wait for others, in this event loop."""
    check_anyio()
    global _limiters
    from anyio import CapacityLimiter
    from anyio.lowlevel import RunVar

    if _limiters is None:
        _limiters = RunVar("mmapio_waiting")
    limiter = _limiters.get(None)
    if limiter is None:
        limiter = CapacityLimiter(WAITING_MAX)
        _limiters.set(limiter)
    return limiter


def _file(twins: AsyncTwins) -> MemoryMappedFile:
    return cast("MemoryMappedFile", twins)


def _class(twins: type[AsyncTwins]) -> type[MemoryMappedFile]:
    return cast("type[MemoryMappedFile]", twins)


def _bring_in(file: MemoryMappedFile, offset: SupportsIndex, length: SupportsIndex, how: MmapAdvice) -> None:
    # A hint: what is wrong with the range is told by the call that follows.
    if operator.index(length) <= POPULATED_BYTES_MAX:
        with suppress(MmapIoError):
            file.advise(offset, length, how)


class AsyncTwins:
    """The part of :class:`mmapio.MemoryMappedFile` that is for ``async`` code; no use without the rest."""

    __slots__ = ()

    @classmethod
    async def create_rw_async(
        cls, path: _Path, size: SupportsIndex, **options: Unpack[_CreateOptions]
    ) -> Self:
        """:meth:`MemoryMappedFile.create_rw` in a thread."""
        return cast(Self, await in_thread(lambda: _class(cls).create_rw(path, size, **options)))

    @classmethod
    async def open_rw_async(cls, path: _Path, **options: Unpack[_WritableOptions]) -> Self:
        """:meth:`MemoryMappedFile.open_rw` in a thread."""
        return cast(Self, await in_thread(lambda: _class(cls).open_rw(path, **options)))

    @classmethod
    async def open_ro_async(cls, path: _Path, **options: Unpack[_GrowingOptions]) -> Self:
        """:meth:`MemoryMappedFile.open_ro` in a thread."""
        return cast(Self, await in_thread(lambda: _class(cls).open_ro(path, **options)))

    @classmethod
    async def open_cow_async(cls, path: _Path, **options: Unpack[_Options]) -> Self:
        """:meth:`MemoryMappedFile.open_cow` in a thread."""
        return cast(Self, await in_thread(lambda: _class(cls).open_cow(path, **options)))

    @classmethod
    async def open_or_create_async(
        cls, path: _Path, default_size: SupportsIndex, **options: Unpack[_WritableOptions]
    ) -> Self:
        """:meth:`MemoryMappedFile.open_or_create` in a thread."""
        return cast(Self, await in_thread(lambda: _class(cls).open_or_create(path, default_size, **options)))

    async def unmap_async(self) -> BinaryIO:
        """:meth:`MemoryMappedFile.unmap` in a thread."""
        return await in_thread(_file(self).unmap)

    async def close_async(self) -> None:
        """:meth:`MemoryMappedFile.close` in a thread. A task that was cancelled closes all the same."""
        await in_thread_all_the_same(_file(self).close)

    async def __aenter__(self) -> Self:
        _file(self).__enter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close_async()

    async def read_bytes_async(self, offset: SupportsIndex, length: SupportsIndex) -> bytes:
        """:meth:`MemoryMappedFile.read_bytes` in a thread, for pages that may have to come from the disk."""
        file = _file(self)

        def read() -> bytes:
            _bring_in(file, offset, length, MmapAdvice.POPULATE_READ)
            return file.read_bytes(offset, length)

        return await in_thread(read)

    async def read_into_async(self, offset: SupportsIndex, buffer: Buffer) -> int:
        """:meth:`MemoryMappedFile.read_into` in a thread, for pages that may have to come from the disk.

        What the buffer holds is undefined until the call is over; a bytearray cannot be resized meanwhile.
        """
        file = _file(self)

        def read() -> int:
            _bring_in(file, offset, view.nbytes, MmapAdvice.POPULATE_READ)
            return file.read_into(offset, view)

        with memoryview(buffer) as view:
            return await in_thread(read)

    def chunks_owned_async(self, size: SupportsIndex) -> AsyncIterator[bytes]:
        """:meth:`MemoryMappedFile.chunks_owned`, each chunk in a thread: ask for large ones.

        As there, the file cannot be cut meanwhile.
        """
        return _Chunks(_file(self), size)

    def pages_owned_async(self) -> AsyncIterator[bytes]:
        """:meth:`chunks_owned_async` of a page each, which costs far more than reading the page does."""
        return self.chunks_owned_async(PAGE_SIZE)

    async def update_region_async(self, offset: SupportsIndex, data: Buffer) -> None:
        """:meth:`MemoryMappedFile.update_region` and :meth:`~MemoryMappedFile.flush` in a thread.

        Durable when it returns, whatever the flush policy, and so is everything written to the file before.
        The data must not change until the call is over; a bytearray cannot be resized meanwhile. Raises what
        the two calls do: after FlushFailed the bytes are written, and maybe lost.
        """
        file = _file(self)

        def write() -> None:
            _bring_in(file, offset, view.nbytes, MmapAdvice.POPULATE_WRITE)
            file.update_region(offset, view)
            if file.flush_policy != FlushPolicy.ALWAYS:
                file.flush()

        with memoryview(data) as view:
            await in_thread(write)

    async def flush_async(self, wait: bool = True) -> None:
        """:meth:`MemoryMappedFile.flush` in a thread."""
        await in_thread(lambda: _file(self).flush(wait))

    async def flush_range_async(
        self, offset: SupportsIndex, length: SupportsIndex, wait: bool = True
    ) -> None:
        """:meth:`MemoryMappedFile.flush_range` in a thread."""
        await in_thread(lambda: _file(self).flush_range(offset, length, wait))

    async def punch_hole_async(self, offset: SupportsIndex, length: SupportsIndex) -> None:
        """:meth:`MemoryMappedFile.punch_hole` in a thread."""
        await in_thread(lambda: _file(self).punch_hole(offset, length))

    async def resize_async(self, size: SupportsIndex, timeout: float = 0) -> None:
        """:meth:`MemoryMappedFile.resize` in a thread. Waiting for views takes none, and can be cancelled.

        `timeout` is in seconds by the event loop's clock.
        """
        check_anyio()
        from anyio import current_time, sleep

        end = current_time() + timeout
        pause = 0.001
        while True:
            try:
                await in_thread(lambda: _file(self).resize(size))
                return
            except ResizeFailed as error:
                if error.errno != errno.EBUSY or not current_time() < end:
                    raise
            await sleep(min(pause, max(end - current_time(), 0)))
            pause = min(2 * pause, 0.02)

    async def advise_async(
        self, offset: SupportsIndex, length: SupportsIndex | None, advice: MmapAdvice
    ) -> None:
        """:meth:`MemoryMappedFile.advise` in a thread; POPULATE_READ, POPULATE_WRITE and PAGE_OUT wait."""
        await in_thread(lambda: _file(self).advise(offset, length, advice))

    async def lock_async(self, offset: SupportsIndex, length: SupportsIndex) -> None:
        """:meth:`MemoryMappedFile.lock` in a thread."""
        await in_thread(lambda: _file(self).lock(offset, length))

    async def lock_all_async(self) -> None:
        """:meth:`MemoryMappedFile.lock_all` in a thread."""
        await in_thread(_file(self).lock_all)

    async def touch_pages_async(self, *, write: bool = False) -> None:
        """:meth:`MemoryMappedFile.touch_pages` in a thread."""
        await in_thread(lambda: _file(self).touch_pages(write=write))

    async def touch_pages_range_async(
        self, offset: SupportsIndex, length: SupportsIndex, *, write: bool = False
    ) -> None:
        """:meth:`MemoryMappedFile.touch_pages_range` in a thread."""
        await in_thread(lambda: _file(self).touch_pages_range(offset, length, write=write))

    def watch_async(self, *, interval_seconds: float = INTERVAL_SECONDS) -> AsyncWatch:
        """The changes of the file, as :meth:`MemoryMappedFile.watch` reports them, to be iterated.

        Raises Closed at once; an :class:`AsyncWatch` tells what the iteration raises.
        """
        file = _file(self)
        file.fileno()
        return AsyncWatch(file.path, interval_seconds=interval_seconds)


class _Chunks:
    """The copies of a file's chunks, made one by one."""

    __slots__ = ("_at", "_chunks", "_end", "_file", "_size")

    def __init__(self, file: MemoryMappedFile, size: SupportsIndex) -> None:
        self._chunks: Iterator[bytes] = file.chunks_owned(size)
        self._file = file
        self._size = operator.index(size)
        self._at = 0
        self._end = len(file)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = await in_thread(self._next)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def _next(self) -> bytes | None:
        length = min(self._size, self._end - self._at)
        _bring_in(self._file, self._at, length, MmapAdvice.POPULATE_READ)
        chunk = next(self._chunks, None)
        self._at += length
        return chunk


async def create_mmap_async(path: _Path, size: SupportsIndex) -> MemoryMappedFile:
    """:func:`mmapio.create_mmap` in a thread."""
    from mmapio import manager

    return await in_thread(lambda: manager.create_mmap(path, size))


async def load_mmap_async(path: _Path, mode: MmapMode = MmapMode.READ_ONLY) -> MemoryMappedFile:
    """:func:`mmapio.load_mmap` in a thread."""
    from mmapio import manager

    return await in_thread(lambda: manager.load_mmap(path, mode))


async def write_mmap_async(path: _Path, offset: SupportsIndex, data: Buffer) -> None:
    """:func:`mmapio.write_mmap` in a thread. The data must not change until the call is over."""
    from mmapio import manager

    with memoryview(data) as view:
        await in_thread(lambda: manager.write_mmap(path, offset, view))


async def copy_mmap_async(source: _Path, destination: _Path) -> str:
    """:func:`mmapio.copy_mmap` in a thread. Once begun it is not cut short, however large the file is."""
    from mmapio import manager

    return await in_thread(lambda: manager.copy_mmap(source, destination))


async def delete_mmap_async(path: _Path) -> None:
    """:func:`mmapio.delete_mmap` in a thread: to free the blocks of a large file takes a while."""
    from mmapio import manager

    await in_thread(lambda: manager.delete_mmap(path))


async def wait_async(word: Atomic, expected: SupportsIndex, timeout: float | None = None) -> bool:
    """Wait while the value of an atomic is `expected`; True once it is not, False after `timeout` seconds.

    The twin of the atomics' ``wait``: woken by ``notify`` of any process, and whoever changes the value must
    notify after it. Occupies a thread, not counted among anyio's; beyond 64 waits at a time in one event
    loop, they take turns, and each notices a change at its turn. Can be cancelled within 0.1 s. `timeout` is
    by the event loop's clock. Raises what ``wait`` does.
    """
    check_anyio()
    from anyio import current_time

    end = None if timeout is None else current_time() + timeout
    while True:
        seconds = SLICE_SECONDS if end is None else max(min(end - current_time(), SLICE_SECONDS), 0)
        if await in_thread(functools.partial(word.wait, expected, seconds), limiter=waiting()):
            return True
        if end is not None and not current_time() < end:
            return False


class AsyncWatch:
    """The changes of the file at a path: ``async for event in mapped.watch_async()``.

    Gives a :class:`ChangeEvent` for each change that :meth:`MemoryMappedFile.watch` reports, and no end: it
    goes on until it is closed, by :meth:`aclose`, the end of an ``async with`` block, or the last reference's
    going. It begins with the block, or else with the first event that is asked for; changes before that are
    nobody's, so enter the block to be sure of the moment. For one task at a time, and one event loop.

    What happens while nobody asks is kept. Of more than 64 events only the gist is: that the file was
    removed, and whether the one that is there since was modified, or its metadata. So a reader who is late
    loses places and numbers, but never learns less than that he must look again.

    Costs what a watch costs, and a thread while an event is waited for. Can be cancelled within 0.1 s; no
    event is lost by it. Beginning raises what :meth:`MemoryMappedFile.watch` does, and Unsupported without
    the package anyio.
    """

    __slots__ = ("_handle", "_inbox", "_interval_seconds", "_path", "_starting")

    def __init__(self, path: _Path, *, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._path = path
        self._interval_seconds = interval_seconds
        self._inbox = _Inbox()
        self._handle: WatchHandle | None = None
        self._starting = threading.Lock()

    async def __aenter__(self) -> Self:
        await in_thread(self._start)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChangeEvent:
        check_anyio()
        from anyio.lowlevel import checkpoint

        if self._handle is None and not self._inbox.closed:
            await in_thread(self._start)
        # Before the event is taken: to be cancelled with the event in hand would lose it.
        await checkpoint()
        while (event := self._inbox.take()) is None:
            if self._handle is None or not self._handle.is_active:
                raise StopAsyncIteration
            await in_thread(self._inbox.wait, limiter=waiting())
        return event

    async def aclose(self) -> None:
        """End the watch and wait for its thread; a task that waits for an event finds the end.

        The second time does nothing. A task that was cancelled closes all the same.
        """
        self._inbox.close()
        await in_thread_all_the_same(self._stop)

    def _start(self) -> None:
        with self._starting:
            if self._handle is None and not self._inbox.closed:
                # The watch knows the inbox and not this object, which ends it by going.
                self._handle = watch(self._path, self._inbox.put, interval_seconds=self._interval_seconds)

    def _stop(self) -> None:
        with self._starting:
            handle, self._handle = self._handle, None
        if handle is not None:
            handle.stop()


class _Inbox:
    """Events that the thread of a watch has put in, and nobody has taken yet."""

    __slots__ = ("_changed", "_events", "closed")

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[ChangeEvent] = deque()
        self.closed = False

    def put(self, event: ChangeEvent) -> None:
        """Keep an event, by itself or merged into the others."""
        with self._changed:
            self._events.append(event)
            if len(self._events) > EVENTS_MAX:
                self._events = deque(_merged(self._events))
            self._changed.notify_all()

    def take(self) -> ChangeEvent | None:
        """The oldest event; None where there is none, or after the end."""
        with self._changed:
            return self._events.popleft() if self._events and not self.closed else None

    def wait(self) -> None:
        """Until there is an event, or the end, but not for long."""
        with self._changed:
            if not self._events and not self.closed:
                self._changed.wait(SLICE_SECONDS)

    def close(self) -> None:
        """No event is taken any more."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()


def _merged(events: Iterable[ChangeEvent]) -> list[ChangeEvent]:
    """The gist of many events: whether the file went, and what happened to the one that is there since."""
    removed = False
    since: set[ChangeKind] = set()
    for event in events:
        if event.kind is ChangeKind.REMOVED:
            removed = True
            since.clear()
        else:
            since.add(event.kind)
    kinds = [ChangeKind.REMOVED] if removed else []
    kinds += [kind for kind in (ChangeKind.MODIFIED, ChangeKind.METADATA) if kind in since]
    return [ChangeEvent(None, None, kind) for kind in kinds]
