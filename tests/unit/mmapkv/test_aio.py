"""The store for async code: what is quick is done at once, what may wait in a thread, on every back-end."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapio import Closed, FlushPolicy, Unsupported
from mmapkv import AsyncKVStore, Conflict, KVStore, Locked
from mmapkv.aio_steps import CALLS_MAX, RECORDS_MAX
from mmapkv.compactor import Compactor
from tests.unit.mmapio.async_calls import Gate, anyio, on_each_backend, run
from tests.unit.mmapkv.stores import MANUAL, NEVER, SEGMENT, opened


async def started(path: Path, policy: FlushPolicy = MANUAL) -> AsyncKVStore:
    return await AsyncKVStore.open(path, flush_policy=policy, segment_bytes=SEGMENT)


@on_each_backend
def test_every_call(tmp_path: Path, backend: str) -> None:
    async def main() -> None:
        async with await started(tmp_path / "kv") as kv:
            assert kv.path == str(tmp_path / "kv")
            assert not kv.closed
            await kv.put("pear", "green")
            await kv.put("apple", b"red", durable=True)
            assert await kv.get("pear") == kv.store["pear"] == b"green"
            assert await kv.get("plum") is None
            assert await kv.get("plum", 5) == 5
            assert await kv.contains("apple")
            assert not await kv.contains("plum")
            assert await kv.count() == 2
            assert await kv.setdefault("plum", "blue") == b"blue"
            assert await kv.pop("plum") == b"blue"
            assert await kv.pop("plum", None) is None
            with pytest.raises(KeyError):
                await kv.pop("plum")
            with pytest.raises(KeyError):
                await kv.delete("plum")
            keys = kv.keys()
            assert [key async for key in kv] == [b"pear", b"apple"] == [key async for key in keys]
            assert [value async for value in kv.values()] == [b"green", b"red"]
            assert [pair async for pair in kv.items()] == [(b"pear", b"green"), (b"apple", b"red")]
            assert [pair async for pair in kv.scan()] == [(b"apple", b"red"), (b"pear", b"green")]
            assert [key async for key in kv.scan("p", values=False)] == [b"pear"]
            assert [key async for key in kv.scan(start="b", stop="q", reverse=True)] == [(b"pear", b"green")]
            assert [change.key async for change in kv.changes(1)] == [b"apple", b"plum", b"plum"]
            await kv.flush()
            assert (await kv.stats())["durable"] == 4
            assert await kv.run(lambda store: store.popitem()) == (b"pear", b"green")
            await kv.delete("apple")
            assert await kv.add("n", "4")
            assert not await kv.add("n", "5")
            assert await kv.replace("n", "5")
            assert await kv.incr("m", 3, initial=4) == 7
            assert await kv.append("n", "0") == 2
            assert not await kv.compare_and_set("n", "6", expected="5")
            assert await kv.compare_and_set("n", "6", expected="50", ttl=60)
            assert 0 < (await kv.ttl("n") or 0) <= 60
            assert await kv.touch("n")
            assert await kv.ttl("n") is None
            await kv.put("short", "x", ttl=1e-9)
            assert await kv.sweep() == 1
            await kv.put_many({"o": "1", "p": "2"})
            assert await kv.delete_many(["o", "q"]) == 1
            assert await kv.retry(lambda tx: tx.pop("p")) == b"2"
            with kv.snapshot() as snapshot:
                await kv.clear()
                assert list(snapshot.scan(values=False)) == [b"m", b"n"]
            assert await kv.count() == 0
        assert kv.closed
        with pytest.raises(Closed):
            await kv.get("pear")
        await kv.close()

    run(backend, main)


@on_each_backend
def test_an_open_store_is_shared(tmp_path: Path, backend: str) -> None:
    async def main() -> None:
        with opened(tmp_path / "kv") as store:
            kv = AsyncKVStore(store)
            await kv.put(b"a", b"1")
            store[b"b"] = b"2"
            assert await kv.get(b"b") == b"2"
            with pytest.raises(Locked):
                await started(tmp_path / "kv")

    run(backend, main)


#: Calls that may wait, with the method of the store that does, and the policy under which it does.
WAITING: dict[str, tuple[str, FlushPolicy, Callable[[AsyncKVStore], Awaitable[object]]]] = {
    "a durable put": ("put", NEVER, lambda kv: kv.put(b"k", b"v", durable=True)),
    "a put that may flush": ("put", FlushPolicy.ALWAYS, lambda kv: kv.put(b"k", b"v")),
    "the same after some bytes": ("put", FlushPolicy.every_bytes(4096), lambda kv: kv.put(b"k", b"v")),
    "the same after some writes": ("put", FlushPolicy.every_writes(5), lambda kv: kv.put(b"k", b"v")),
    "a deletion that may flush": ("__delitem__", FlushPolicy.ALWAYS, lambda kv: kv.delete(b"0")),
    "a pop that may flush": ("pop", FlushPolicy.ALWAYS, lambda kv: kv.pop(b"0")),
    "add": ("add", FlushPolicy.ALWAYS, lambda kv: kv.add(b"n", b"v")),
    "replace": ("replace", FlushPolicy.ALWAYS, lambda kv: kv.replace(b"0", b"v")),
    "append": ("append", FlushPolicy.ALWAYS, lambda kv: kv.append(b"0", b"v")),
    "incr, durable": ("incr", NEVER, lambda kv: kv.incr(b"n", durable=True)),
    "compare_and_set": (
        "compare_and_set",
        FlushPolicy.ALWAYS,
        lambda kv: kv.compare_and_set(b"n", b"v", expected=None),
    ),
    "touch, durable": ("touch", NEVER, lambda kv: kv.touch(b"0", 5, durable=True)),
    "put_many": ("put_many", NEVER, lambda kv: kv.put_many({b"n": b"v"})),
    "delete_many": ("delete_many", NEVER, lambda kv: kv.delete_many([b"0"])),
    "retry": ("retry", NEVER, lambda kv: kv.retry(lambda tx: tx.pop(b"0"))),
    "sweep": ("sweep", NEVER, lambda kv: kv.sweep()),
    "clear": ("clear", NEVER, lambda kv: kv.clear()),
    "flush": ("flush", NEVER, lambda kv: kv.flush()),
    "stats": ("stats", NEVER, lambda kv: kv.stats()),
    "close": ("close", NEVER, lambda kv: kv.close()),
    "run": ("popitem", NEVER, lambda kv: kv.run(lambda store: store.popitem())),
}


def gated(gate: Gate, name: str) -> type[KVStore]:
    """A store one of whose methods goes through the gate."""
    return type("Gated", (KVStore,), {name: gate.before(getattr(KVStore, name))})


@on_each_backend
@pytest.mark.parametrize(("name", "policy", "call"), WAITING.values(), ids=WAITING.keys())
def test_the_event_loop_goes_on_meanwhile(
    tmp_path: Path,
    backend: str,
    name: str,
    policy: FlushPolicy,
    call: Callable[[AsyncKVStore], Awaitable[Any]],
) -> None:
    """The gate is opened by the event loop, while the call is held up in its thread."""

    async def main() -> None:
        gate = Gate()
        with gated(gate, name).open(tmp_path / "kv", flush_policy=policy, segment_bytes=SEGMENT) as store:
            if name != "put":
                store.update({b"%d" % number: b"value" for number in range(3)})
            kv = AsyncKVStore(store)
            async with anyio.create_task_group() as group:
                group.start_soon(call, kv)
                await gate.entered()
                gate.open()
            assert gate.passed == 1

    run(backend, main)


@on_each_backend
@pytest.mark.parametrize("many", [1, RECORDS_MAX + 1])
def test_batches_and_transactions(tmp_path: Path, backend: str, many: int) -> None:
    """All or nothing: at the end of the block, when that raises, and when it conflicts."""
    fresh = {b"%d" % number: b"v" for number in range(many)}

    async def main() -> None:
        async with await started(tmp_path / "kv", NEVER) as kv:
            async with kv.batch() as batch:
                for key, value in fresh.items():
                    batch[key] = value
                assert await kv.count() == 0
            assert dict(kv.store.items()) == fresh

            async with kv.transaction(durable=True) as tx:
                for key in fresh:
                    tx[key] = tx[key] * 2
            assert (await kv.stats())["durable"] == 2 * many
            for block in (kv.batch, kv.transaction):
                with pytest.raises(ZeroDivisionError):
                    async with block() as doubtful:
                        doubtful[b"0"] = b"lost"
                        1 / 0  # noqa: B018
            assert await kv.get(b"0") == b"vv"
            with pytest.raises(Conflict):
                async with kv.transaction() as tx:
                    tx[b"0"] += b"!"
                    await kv.put(b"0", b"other")
            assert await kv.get(b"0") == b"other"
            assert (await kv.stats())["snapshots"] == 0

    run(backend, main)


@on_each_backend
@pytest.mark.parametrize("block", ["batch", "transaction"])
def test_a_block_that_is_cancelled_changes_nothing(tmp_path: Path, backend: str, block: str) -> None:
    """Neither in its middle, nor at its end before that begins."""

    async def main() -> None:
        async with await started(tmp_path / "kv", NEVER) as kv:
            for wait in (True, False):
                with anyio.CancelScope() as scope:
                    async with getattr(kv, block)(durable=True) as changes:
                        changes[b"k"] = b"v"
                        scope.cancel()
                        if wait:
                            await anyio.sleep(60)
                assert scope.cancelled_caught
                assert not await kv.contains(b"k")
            assert (await kv.stats())["snapshots"] == 0

    run(backend, main)


@on_each_backend
def test_what_is_quick_takes_no_thread(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        kv = await started(tmp_path / "kv")
        with monkeypatch.context() as patched:
            patched.setattr("mmapkv.aio.in_thread", None)
            await kv.put(b"k", b"v")
            assert await kv.get(b"k") == b"v"
            assert await kv.setdefault(b"l", b"w") == b"w"
            await kv.delete(b"l")
            assert [pair async for pair in kv.items()] == [(b"k", b"v")] == [pair async for pair in kv.scan()]
            assert len([change async for change in kv.changes()]) == 3
        await kv.close()

    run(backend, main)


@on_each_backend
def test_the_keys_are_sorted_in_a_thread_when_they_are_many(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        kv = await started(tmp_path / "kv", NEVER)
        kv.store.update({b"%06d" % number: b"" for number in range(RECORDS_MAX + 1)})
        by: list[int] = []
        prepare = kv.store._ordered.prepare

        def noted(store: KVStore) -> None:
            by.append(threading.get_ident())
            prepare(store)

        monkeypatch.setattr(kv.store._ordered, "prepare", noted)
        assert len([pair async for pair in kv.scan()]) == RECORDS_MAX + 1
        assert by[0] != threading.get_ident()
        assert by[1:] == [threading.get_ident()]
        await kv.close()

    run(backend, main)


CALLS: dict[str, Callable[[AsyncKVStore], Awaitable[object]]] = {
    "get": lambda kv: kv.get(b"k"),
    "contains": lambda kv: kv.contains(b"k"),
    "count": lambda kv: kv.count(),
    "put": lambda kv: kv.put(b"k", b"v"),
}


@on_each_backend
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_task_that_never_waits_lets_others_have_turns(
    tmp_path: Path, backend: str, call: Callable[[AsyncKVStore], Awaitable[object]]
) -> None:
    async def main() -> None:
        turns = []

        async def count() -> None:
            while True:
                turns.append(None)
                await anyio.lowlevel.checkpoint()

        async with await started(tmp_path / "kv") as kv, anyio.create_task_group() as group:
            group.start_soon(count)
            for _ in range(10 * CALLS_MAX):
                await call(kv)
            group.cancel_scope.cancel()
        assert 5 <= len(turns) <= 20

    run(backend, main)


@on_each_backend
@pytest.mark.parametrize("what", ["keys", "items", "scan", "changes"])
def test_an_iteration_lets_others_have_turns(tmp_path: Path, backend: str, what: str) -> None:
    """And loses nothing when it is cancelled at one of them."""

    async def main() -> None:
        turns = []

        async def count() -> None:
            while True:
                turns.append(None)
                await anyio.lowlevel.checkpoint()

        async with await started(tmp_path / "kv", NEVER) as kv:
            kv.store.update({b"%04d" % number: b"v" for number in range(10 * CALLS_MAX)})
            found: list[Any] = []
            steps = getattr(kv, what)()
            async with anyio.create_task_group() as group:
                group.start_soon(count)
                async for each in steps:
                    found.append(each)
                group.cancel_scope.cancel()
            assert len(found) == 10 * CALLS_MAX
            assert len(turns) >= 5

            steps, again = getattr(kv, what)(), []
            with anyio.CancelScope() as scope:
                async for each in steps:
                    again.append(each)
                    if len(again) == 3:
                        scope.cancel()
            assert scope.cancelled_caught
            assert len(again) < 10 * CALLS_MAX
            again += [each async for each in steps]
            assert again == found

    run(backend, main)


@on_each_backend
def test_waiting_for_a_change_can_be_cancelled(tmp_path: Path, backend: str) -> None:
    """None is lost by it."""

    async def main() -> None:
        async with await started(tmp_path / "kv") as kv:
            changes = kv.changes(None, follow=True)
            with anyio.move_on_after(0.01) as scope:
                await changes.__anext__()
            assert scope.cancelled_caught
            await kv.put(b"k", b"v")
            assert (await changes.__anext__()).key == b"k"
            assert changes.seq == 1
            assert changes.complete

    run(backend, main)


@pytest.mark.parametrize("when", ["before it begins", "while it runs"])
def test_a_durable_put_that_is_cancelled(tmp_path: Path, when: str) -> None:
    """By asyncio's own means, which no shield holds off: done, or not begun, and the store goes on."""

    async def main() -> None:
        gate = Gate()
        kv = AsyncKVStore(gated(gate, "put").open(tmp_path / "kv", flush_policy=NEVER))
        task = asyncio.ensure_future(kv.put(b"k", b"v", durable=True))
        if when == "while it runs":
            await gate.entered()
        task.cancel()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await kv.get(b"k") == b"v") == (when == "while it runs")
        await kv.put(b"l", b"w", durable=True)
        assert kv.store.stats()["durable"] == kv.store.stats()["committed"]
        await kv.close()

    asyncio.run(main())


def test_opening_that_is_cancelled_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nobody could write the store until the garbage collector comes."""

    async def main() -> None:
        gate = Gate()
        original = KVStore.open.__func__  # type: ignore[attr-defined]
        monkeypatch.setattr(KVStore, "open", classmethod(gate.before(original)))
        task = asyncio.ensure_future(AsyncKVStore.open(tmp_path / "kv", flush_policy=NEVER))
        await gate.entered()
        task.cancel()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await task
        await (await AsyncKVStore.open(tmp_path / "kv", flush_policy=NEVER)).close()

    asyncio.run(main())


@on_each_backend
def test_a_cancelled_task_closes_all_the_same(tmp_path: Path, backend: str) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with await started(tmp_path / "kv") as kv:
                await kv.put(b"k", b"v")
                scope.cancel()
                await anyio.sleep(60)
        assert scope.cancelled_caught
        assert kv.closed
        with opened(tmp_path / "kv") as store:
            assert store[b"k"] == b"v"

    run(backend, main)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_closing_that_is_cancelled_is_carried_out(tmp_path: Path, steps: int) -> None:
    """By asyncio's own means, at whatever point it is."""

    async def main() -> None:
        kv = await started(tmp_path / "kv")
        task = asyncio.ensure_future(kv.close())
        for _ in range(steps):
            await asyncio.sleep(0)
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0)
        assert kv.closed

    asyncio.run(main())


def test_without_anyio_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anyio", None)
    with opened(tmp_path / "kv") as store, pytest.raises(Unsupported, match=r"pip install mmapkv\[async\]"):
        AsyncKVStore(store)


def test_nothing_of_a_store_is_forgotten() -> None:
    """Calls that came later had no twin, and nobody noticed."""
    views = {"namespace", "typed"}
    elsewhere = {"open": {"codec"}, "pop": {"default"}}
    twins = {"contains": "__contains__", "count": "__len__", "delete": "__delitem__"}
    ours, theirs = (
        {name for name in dir(each) if not name.startswith("_")} for each in (AsyncKVStore, KVStore)
    )
    assert theirs - ours == views
    assert ours - theirs == {*twins, "run", "store"}
    for name in sorted(theirs & ours):
        if callable(getattr(KVStore, name)):
            missing = _parameters(getattr(KVStore, name)) - _parameters(getattr(AsyncKVStore, name))
            assert missing == elsewhere.get(name, set()), name


def _parameters(call: Callable[..., Any]) -> set[str]:
    # Of `pop` and `update` each has its own way to say the rest.
    given = inspect.signature(call).parameters.values()
    names = {each.name for each in given if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    return names | ({"expected", "version", "ttl"} if "condition" in str(given) else set())


@on_each_backend
def test_many_keys_and_care(tmp_path: Path, backend: str) -> None:
    """What is short is done in the loop's own thread, the rest in another."""

    async def main() -> None:
        async with await started(tmp_path / "kv") as kv:
            await kv.update({"apple": "red"}, pear="green")
            assert await kv.get_many(["pear", "plum"], "no") == [b"green", "no"]
            assert await kv.get_many(iter(["apple"])) == [b"red"]
            buffer = bytearray(10)
            assert await kv.get_many_into(["apple", "pear"], buffer, stride=5) == 8
            assert bytes(buffer) == b"red\0\0green"
            assert await kv.get_into("pear", buffer) == 5
            view = await kv.get_view("apple")
            assert view is not None
            assert bytes(view) == b"red"
            assert await kv.get_versioned("pear") == (b"green", 1)
            await kv.put("apple", "yellow")
            assert (await kv.compact()).records_removed == 1
            assert (await kv.verify()).damages == ()
            await kv.backup(tmp_path / "copy")
            await kv.sync()
            assert kv.flush_policy is MANUAL
            assert await kv.popitem() == (b"pear", b"green")
        async with await started(tmp_path / "copy") as kv:
            assert await kv.count() == 2

    run(backend, main)


@on_each_backend
def test_long_look_ups_take_a_thread(tmp_path: Path, backend: str) -> None:
    """The loop goes on meanwhile; what is short is not worth one."""
    threads: list[int] = []

    class Keys(list[str]):
        def __iter__(self) -> Iterator[str]:
            threads.append(threading.get_ident())
            return super().__iter__()

    async def main() -> None:
        async with await started(tmp_path / "kv") as kv:
            await kv.get_many(Keys(["a"]))
            await kv.get_many(Keys(["a"] * (RECORDS_MAX + 1)))

    run(backend, main)
    assert [each == threading.get_ident() for each in threads] == [True, False]


@on_each_backend
def test_the_loop_does_not_wait_for_compaction(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who overwrites without a pause waits for room; that stopped the loop for tenths of a second."""
    waited: set[int] = set()
    await_step = Compactor._await_step

    def noted(self: Compactor, seconds: float) -> None:
        waited.add(threading.get_ident())
        await_step(self, seconds)

    monkeypatch.setattr(Compactor, "_await_step", noted)

    async def main() -> None:
        keys = [b"%d" % number for number in range(2000)]
        async with await AsyncKVStore.open(tmp_path / "kv", flush_policy=MANUAL) as kv:
            for _ in range(10):
                for key in keys:
                    await kv.put(key, bytes(1000))
            figures = await kv.stats()
            # And it did wait.
            assert figures["dead_bytes"] < figures["live_bytes"] + (4 << 20)
            assert figures["compactions"] > 0

    run(backend, main)
    assert waited
    assert threading.get_ident() not in waited
