"""Cancelling async calls leaves nothing half done, and waiting for others leaves no thread behind."""

from __future__ import annotations

import asyncio
import errno
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapio import aio
from mmapio.aio import AsyncWatch, in_thread, wait_async
from mmapio.errors import Closed, ResizeFailed
from mmapio.file import MemoryMappedFile
from mmapio.watch import ChangeEvent, ChangeKind
from tests.unit.mmapio.async_calls import (
    DEADLINE_SECONDS,
    SIZE,
    Gate,
    anyio,
    gated_class,
    on_each_backend,
    run,
    sample,
    to_thread,
)
from tests.unit.mmapio.processes import run_python
from tests.unit.mmapio.watching import METADATA, MODIFIED, OFTEN_SECONDS, REMOVED, wait_until_ended

GROWN = ChangeEvent(0, 1, ChangeKind.MODIFIED)


@pytest.fixture(autouse=True)
def _no_watch_is_left() -> Iterator[None]:
    """A test that leaves the thread of a watch behind fails."""
    yield
    gc.collect()
    wait_until_ended()


class Word:
    """Stands for an atomic that nobody changes, and knows who waits for it."""

    def __init__(self) -> None:
        self.calls = 0
        self.waiting = 0
        self.began = threading.Event()

    def wait(self, expected: int, timeout: float | None) -> bool:
        assert timeout is not None and timeout <= aio.SLICE_SECONDS, "a thread would wait too long"
        self.calls += 1
        self.waiting += 1
        self.began.set()
        threading.Event().wait(timeout)
        self.waiting -= 1
        return False


@on_each_backend
def test_a_call_that_was_begun_ends_before_its_task_is_cancelled(backend: str, tmp_path: Path) -> None:
    """Whoever is cancelled uses his buffer for something else: the thread must be done with it."""
    path = sample(tmp_path)

    async def main() -> None:
        gate, events = Gate(), []
        data = bytearray(b"whole")
        with gated_class(gate, "update_region").open_rw(path) as mapped:

            async def write(scope: anyio.CancelScope) -> None:
                with scope:
                    await mapped.update_region_async(0, data)
                    events.append("ended")
                    await anyio.sleep(0)
                    events.append("not cancelled")

            async with anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()
                tasks.start_soon(write, scope)
                await gate.entered()
                scope.cancel()
                with pytest.raises(BufferError):
                    data.clear()
                events.append("opened")
                gate.open()
            assert scope.cancelled_caught
            assert events == ["opened", "ended"]
            assert not mapped.needs_flush()
            data.clear()
        assert path.read_bytes()[:6] == b"whole\5"

    run(backend, main)


@on_each_backend
def test_a_call_that_was_not_begun_is_revoked(backend: str, tmp_path: Path) -> None:
    """To be told that a call was cancelled, and then to find it done, is the worst of both."""
    path = sample(tmp_path)

    async def main() -> None:
        gate = Gate()
        gate.open()
        with gated_class(gate, "punch_hole").open_rw(path) as mapped:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await mapped.punch_hole_async(0, SIZE)
            assert scope.cancelled_caught
            # The same when it waits for a thread.
            limiter = to_thread.current_default_thread_limiter()
            limiter.total_tokens = 1
            other = object()
            limiter.acquire_on_behalf_of_nowait(other)
            with anyio.move_on_after(0.01) as scope:
                await mapped.punch_hole_async(0, SIZE)
            limiter.release_on_behalf_of(other)
            assert scope.cancelled_caught
            await to_thread.run_sync(lambda: None)
            assert gate.passed == 0
            await mapped.punch_hole_async(0, SIZE)
            assert gate.passed == 1

    run(backend, main)


@pytest.mark.parametrize("how_often", [1, 3])
def test_asyncio_cancelling_by_itself_waits_for_the_thread(tmp_path: Path, how_often: int) -> None:
    """``Task.cancel`` and ``asyncio.timeout`` pass through anyio's shield, and the buffer would be torn."""
    path = sample(tmp_path)

    async def main() -> None:
        gate = Gate()
        data = bytearray(b"whole")
        with gated_class(gate, "update_region").open_rw(path) as mapped:
            task = asyncio.create_task(mapped.update_region_async(0, data))
            await gate.entered()
            for _ in range(how_often):
                task.cancel()
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not task.done()
            with pytest.raises(BufferError):
                data.clear()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert gate.passed == 1
            assert not mapped.needs_flush()
            data.clear()
        assert path.read_bytes()[:6] == b"whole\5"

    asyncio.run(main())


def test_asyncio_cancelling_by_itself_revokes_what_was_not_begun(tmp_path: Path) -> None:
    """Waiting for a call that will never run would never end."""
    path = sample(tmp_path)

    async def main() -> None:
        with MemoryMappedFile.open_rw(path) as mapped:
            limiter = to_thread.current_default_thread_limiter()
            limiter.total_tokens = 1
            other = object()
            limiter.acquire_on_behalf_of_nowait(other)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await mapped.punch_hole_async(0, SIZE)
            limiter.release_on_behalf_of(other)
            await to_thread.run_sync(lambda: None)
        assert path.read_bytes()[:2] == b"\0\1"

    asyncio.run(main())


def test_asyncio_timeouts_end_as_timeouts() -> None:
    """The cancellation that was held back must be the one that comes out."""

    async def main() -> None:
        gate = Gate()

        async def expire(limit: asyncio.Timeout) -> None:
            await gate.entered()
            limit.reschedule(0)
            while not limit.expired():
                await asyncio.sleep(0)
            gate.open()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                helper = asyncio.create_task(expire(limit))
                await in_thread(gate.before(lambda: None))
        assert gate.passed == 1
        await helper

    asyncio.run(main())


@on_each_backend
def test_a_cancelled_task_closes_all_the_same(backend: str, tmp_path: Path) -> None:
    """What is left open keeps its address space, and what was written to it is not flushed."""
    path = sample(tmp_path)

    async def main() -> None:
        async with await MemoryMappedFile.open_rw_async(path) as mapped:
            mapped.update_region(0, b"x")
        assert mapped.closed
        mapped = MemoryMappedFile.open_rw(path)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await mapped.close_async()
        assert mapped.closed
        with anyio.CancelScope() as scope:
            async with await MemoryMappedFile.open_rw_async(path) as mapped:
                mapped.update_region(0, b"x")
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert mapped.closed
        with pytest.raises(Closed):
            await mapped.__aenter__()

    run(backend, main)


@on_each_backend
def test_shrinking_waits_for_a_view(backend: str, tmp_path: Path) -> None:
    """Views end in other tasks; a wait for them that cannot be cancelled may be one for ever."""
    path = sample(tmp_path)

    async def main() -> None:
        gate = Gate()
        gate.open()
        with gated_class(gate, "resize").open_rw(path) as mapped:
            held = [mapped.as_slice()]
            for timeout in (0, 0.01):
                with pytest.raises(ResizeFailed) as raised:
                    await mapped.resize_async(4096, timeout)
                assert raised.value.errno == errno.EBUSY
            with anyio.move_on_after(0.02) as scope:
                await mapped.resize_async(4096, float("inf"))
            assert scope.cancelled_caught
            assert len(mapped) == SIZE
            gate.passed = 0
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(mapped.resize_async, 4096, float("inf"))
                while gate.passed < 3:
                    await anyio.sleep(0.001)
                assert len(mapped) == SIZE
                held.clear()
            assert len(mapped) == 4096

    run(backend, main)


@on_each_backend
def test_waiting_for_a_word(backend: str, tmp_path: Path) -> None:
    """A waiter that nobody can wake, or that does not end when its time is over, waits for ever."""
    path = sample(tmp_path)
    notify = """
from mmapio import MemoryMappedFile
with MemoryMappedFile.open_rw(arguments[0]) as mapped:
    word = mapped.atomic_u64(0)
    word.store(2)
    answer(word.notify() >= 0)
"""

    async def main() -> None:
        with MemoryMappedFile.open_rw(path) as mapped:
            word = mapped.atomic_u64(0)
            assert await wait_async(word, word.load() + 1)
            assert await wait_async(word, word.load() + 1, 0)
            word.store(1)
            for timeout in (-1, 0, 0.001, 2.5 * aio.SLICE_SECONDS):
                assert not await wait_async(word, 1, timeout)
            results: list[bool] = []

            async def wait() -> None:
                results.append(await wait_async(word, 1, DEADLINE_SECONDS))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                assert await to_thread.run_sync(run_python, notify, path)
            assert results == [True]
            with pytest.raises(OverflowError):
                await wait_async(mapped.atomic_u32(0), 1 << 32)

    run(backend, main)


@pytest.mark.parametrize("timeout", [None, DEADLINE_SECONDS])
@on_each_backend
def test_a_cancelled_wait_leaves_no_thread(backend: str, timeout: float | None) -> None:
    """A thread that waits on for a word that nobody changes keeps the interpreter from ending."""

    async def main() -> None:
        word: Any = Word()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_async, word, 0, timeout)
            assert await to_thread.run_sync(word.began.wait, DEADLINE_SECONDS)
            tasks.cancel_scope.cancel()
        calls = word.calls
        assert word.waiting == 0
        await anyio.sleep(2 * aio.SLICE_SECONDS)
        assert word.calls == calls

    run(backend, main)


def test_a_wait_that_asyncio_cancels_leaves_no_thread() -> None:
    """The same where anyio has no part in it."""

    async def main() -> None:
        word: Any = Word()
        task = asyncio.create_task(wait_async(word, 0))
        assert await to_thread.run_sync(word.began.wait, DEADLINE_SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert word.waiting == 0
        calls = word.calls
        await asyncio.sleep(2 * aio.SLICE_SECONDS)
        assert word.calls == calls

    asyncio.run(main())


@on_each_backend
def test_waits_take_turns_and_leave_the_usual_threads_alone(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waits that use up the threads keep out the very calls that would end them."""
    path = sample(tmp_path)
    monkeypatch.setattr(aio, "WAITING_MAX", 2)
    monkeypatch.setattr(aio, "SLICE_SECONDS", 0.01)

    async def main() -> None:
        with MemoryMappedFile.open_rw(path) as mapped:
            word = mapped.atomic_u64(0)
            word.store(1)
            usual = to_thread.current_default_thread_limiter()
            usual.total_tokens = 1
            idle: Any = [Word() for _ in range(3)]
            async with anyio.create_task_group() as tasks:
                for each in idle:
                    tasks.start_soon(wait_async, each, 0)
                while not all(each.calls >= 3 for each in idle):
                    await mapped.flush_async()
                    assert sum(each.waiting for each in idle) <= 2
                    assert usual.borrowed_tokens == 0
                async with anyio.create_task_group() as inner:
                    for _ in range(5):
                        inner.start_soon(wait_async, word, 1)
                    word.store(2)
                    word.notify()
                tasks.cancel_scope.cancel()

    run(backend, main)


def watches() -> list[threading.Thread]:
    """The threads of watches that go on."""
    return [thread for thread in threading.enumerate() if thread.name == "mmapio-watch"]


@on_each_backend
def test_changes_are_iterated(backend: str, tmp_path: Path) -> None:
    """Every change comes out once, those too that were made before anybody asked, until the block's end."""
    path = sample(tmp_path)

    async def main() -> None:
        with MemoryMappedFile.open_ro(path) as mapped:
            async with mapped.watch_async(interval_seconds=OFTEN_SECONDS) as events:
                path.chmod(0o600 if path.stat().st_mode & 0o77 else 0o644)
                assert await anext(events) == METADATA
                with path.open("ab") as file:
                    file.write(b"12345")
                assert await anext(events) == ChangeEvent(SIZE, 5, ChangeKind.MODIFIED)
                path.unlink()
                async for event in events:
                    assert event == REMOVED
                    break
            assert not watches()
            assert [event async for event in events] == []
            with pytest.raises(FileNotFoundError):
                await anext(mapped.watch_async())

    run(backend, main)


@on_each_backend
def test_an_iteration_without_a_block_begins_and_ends_by_itself(backend: str, tmp_path: Path) -> None:
    """The shortest way to write it must not leak a thread, nor keep the file open."""
    path = sample(tmp_path)

    async def main() -> None:
        async def change() -> None:
            while not watches():
                await anyio.sleep(0.001)
            path.write_bytes(b"")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(change)
            async for event in AsyncWatch(path, interval_seconds=OFTEN_SECONDS):
                assert event == ChangeEvent(0, 0, ChangeKind.MODIFIED)
                break
        gc.collect()
        await to_thread.run_sync(wait_until_ended)

    run(backend, main)


@on_each_backend
def test_a_waiting_task_finds_the_end(backend: str, tmp_path: Path) -> None:
    """A watch that is closed under a task would else keep it for ever; closing twice must do no harm."""
    path = sample(tmp_path)

    async def main() -> None:
        events = AsyncWatch(path)
        seen: list[ChangeEvent] = []

        async def iterate() -> None:
            seen.extend([event async for event in events])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(iterate)
            # It waits in a thread that is none of the usual ones.
            while events._handle is None or aio.waiting().borrowed_tokens != 1:
                await anyio.sleep(0.001)
            await events.aclose()
        await events.aclose()
        assert seen == []
        with anyio.CancelScope() as scope:
            async with AsyncWatch(path) as events:
                scope.cancel()
                await anext(events)
        assert scope.cancelled_caught
        assert events._handle is None

    run(backend, main)


@on_each_backend
def test_a_cancelled_reader_of_changes_loses_none(backend: str, tmp_path: Path) -> None:
    """An event that is taken by a task that is cancelled at that moment would be nobody's."""
    path = sample(tmp_path)

    async def main() -> None:
        async with AsyncWatch(path, interval_seconds=OFTEN_SECONDS) as events:
            with anyio.move_on_after(0.01) as scope:
                await anext(events)
            assert scope.cancelled_caught
            events._inbox.put(GROWN)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anext(events)
            assert scope.cancelled_caught
            assert await anext(events) == GROWN

    run(backend, main)


def test_a_late_reader_gets_the_gist(tmp_path: Path) -> None:
    """A buffer without bound is a leak; one that drops events hides that the file was removed."""
    inbox = aio._Inbox()
    for _ in range(aio.EVENTS_MAX):
        inbox.put(GROWN)
    assert [inbox.take() for _ in range(aio.EVENTS_MAX + 1)] == [GROWN] * aio.EVENTS_MAX + [None]
    for event in [REMOVED, MODIFIED, METADATA] * (10 * aio.EVENTS_MAX):
        inbox.put(event)
        assert len(inbox._events) <= aio.EVENTS_MAX
    inbox.close()
    assert inbox.take() is None


@pytest.mark.parametrize(
    ("events", "gist"),
    [
        ([], []),
        ([GROWN, GROWN], [MODIFIED]),
        ([METADATA, GROWN, METADATA], [MODIFIED, METADATA]),
        ([METADATA, METADATA], [METADATA]),
        ([GROWN, METADATA, REMOVED], [REMOVED]),
        ([REMOVED, MODIFIED, REMOVED, MODIFIED], [REMOVED, MODIFIED]),
        ([REMOVED, MODIFIED, REMOVED], [REMOVED]),
        ([REMOVED, MODIFIED, METADATA], [REMOVED, MODIFIED, METADATA]),
    ],
)
def test_the_gist_of_many_events(events: list[ChangeEvent], gist: list[ChangeEvent]) -> None:
    """A reader who acts on it must do what he would have done on the whole."""
    assert aio._merged(events) == gist


def test_a_gate_tells_the_event_loop_from_a_thread() -> None:
    """The control: a twin that made its call on the event loop would be caught."""
    gate = Gate()
    with pytest.raises(AssertionError, match="the event loop itself"):
        gate.before(lambda: None)()
