"""Several writers of one store: each sees at once what the others did, and nobody's write is lost."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmapio import Closed, FlushPolicy
from mmapkv import AsyncKVStore, Conflict, KVStore, Locked, StoreError, dbm
from mmapkv.cli import main
from mmapkv.codecs import Json
from mmaplog import LogError
from tests.crash.child import Child
from tests.support.plain_reader import check_store
from tests.support.waiting import until
from tests.unit.mmapio.processes import in_child, living_child, outcome
from tests.unit.mmapkv.colliding_keys import HashInverter, seed_of
from tests.unit.mmapkv.index_words import CLEAN, IndexWords
from tests.unit.mmapkv.stores import MANUAL, NEVER, SEGMENT, agreeing, contents, opened


def shared(path: Path, mode: Any = "c", policy: FlushPolicy = MANUAL, **options: Any) -> KVStore:
    """A store of small segments as one of its writers. The policy starts no thread: the process may fork."""
    return KVStore.open(path, mode, shared=True, flush_policy=policy, segment_bytes=SEGMENT, **options)


def together(*bodies: Callable[[], object]) -> None:
    """Run each in a process of its own, all at the same time."""
    children = [Child(lambda started, body=body: (body(), started())) for body in bodies]  # type: ignore[misc]
    for child in children:
        child.wait_started()
    for child in children:
        assert child.kill() == ""


def is_clean(path: Path) -> bool:
    """Whether the index was closed as one that may be trusted."""
    return IndexWords(path)[CLEAN] == 1


# ---- two handles ----


def test_each_handle_sees_what_the_other_did(tmp_path: Path) -> None:
    """Every call of the one after every call of the other, over rolls and splits."""
    path = tmp_path / "kv"
    chance = random.Random(1)
    model: dict[bytes, bytes] = {}
    with shared(path) as one, shared(path) as two, opened(path, "r") as reader:
        for turn in range(4000):
            kv, other = (one, two) if chance.random() < 0.5 else (two, one)
            key, value = b"%d" % chance.randrange(6000), chance.randbytes(chance.randrange(60))
            kind = turn % 8
            if kind < 3:
                kv[key] = model[key] = value
            elif kind == 3:
                assert kv.pop(key, None) == model.pop(key, None)
            elif kind == 4:
                assert kv.add(key, value) == (key not in model)
                model.setdefault(key, value)
            elif kind == 5:
                model[key] = model.get(key, b"") + value
                assert kv.append(key, value) == len(model[key])
            elif kind == 6:
                assert kv.compare_and_set(key, value, expected=model.get(key))
                model[key] = value
            else:
                many = {b"%d" % chance.randrange(6000): value for _ in range(15)}
                kv.put_many(many)
                model.update(many)
            assert other.get(key) == reader.get(key) == model.get(key)
            assert len(other) == len(reader) == len(model)
        for each in (one, two, reader):
            assert agreeing(each) == model
            assert each.verify().damages == ()
        assert one.stats()["index_segments"] > 1
        assert one.stats()["segments"] > 2
    assert contents(path) == check_store(path) == model


def test_what_is_refused_holds_no_lock(tmp_path: Path) -> None:
    """After a call that changed nothing, or raised, the other handle would wait for ever."""
    with shared(tmp_path) as kv, shared(tmp_path) as other:
        kv["text"] = "text"
        kv["number"] = str(2**63 - 1)
        refused: list[Callable[[], object]] = [
            lambda: kv.__delitem__("absent"),
            lambda: kv.pop("absent"),
            lambda: kv.incr("text"),
            lambda: kv.incr("number"),
            lambda: kv.put("", b"x"),
            lambda: kv.put("key", 1),  # type: ignore[arg-type]
        ]
        unchanged: list[tuple[Callable[[], object], object]] = [
            (lambda: kv.add("text", b""), False),
            (lambda: kv.replace("absent", b""), False),
            (lambda: kv.setdefault("text", b"x"), b"text"),
            (lambda: kv.compare_and_set("text", b"", expected=b"x"), False),
            (lambda: kv.compare_and_set("text", b"", version=99), False),
            (lambda: kv.compare_and_set("absent", None, expected=None), True),
            (lambda: kv.touch("absent"), False),
            (lambda: kv.pop("absent", None), None),
            (kv.sweep, 0),
            (lambda: kv.delete_many(["absent"]), 0),
        ]
        for number, call in enumerate(refused):
            with pytest.raises((KeyError, ValueError, OverflowError, TypeError)):
                call()
            other["other"] = b"%d" % number
        for number, (call, answer) in enumerate(unchanged):
            assert call() == answer
            other["other"] = b"%d" % number
        with pytest.raises(Conflict), kv.transaction() as transaction:
            transaction["other"] = b"mine"
            other["other"] = b"its"
        other["other"] = b"after"
        large = bytes(100_000)
        assert kv.append("large", large) == other.append("large", b"") == 100_000
        assert other.touch("large", 1000)
        assert kv["large"] == large


def add_in_three_ways(kv: KVStore, times: int) -> None:
    """Add to three numbers, each in steps that others could come in between of."""

    def add_one(transaction: Any) -> None:
        transaction["tx"] = b"%d" % (int(transaction.get("tx", b"0")) + 1)

    for _ in range(times):
        kv.incr("incr")
        while True:
            value, version = kv.get_versioned("cas") or (b"0", None)
            if kv.compare_and_set("cas", b"%d" % (int(value) + 1), version=version):
                break
        kv.retry(add_one, attempts=100_000)


def test_threads_with_two_handles(tmp_path: Path) -> None:
    """Two threads on each handle, so that they wait for each other within a handle and across."""
    with shared(tmp_path) as one, shared(tmp_path) as two:
        threads = [threading.Thread(target=add_in_three_ways, args=(kv, 100)) for kv in (one, one, two, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert agreeing(one) == agreeing(two) == {b"incr": b"400", b"cas": b"400", b"tx": b"400"}


def test_no_update_of_a_process_is_lost(tmp_path: Path) -> None:
    """Four processes add to the same numbers, and put keys of their own while the index splits."""
    path = tmp_path / "kv"
    shared(path).close()

    def work(name: int) -> None:
        with shared(path) as kv:
            add_in_three_ways(kv, 100)
            for number in range(0, 2000, 10):
                kv.put_many({b"%d %d" % (name, number + part): bytes(20) for part in range(10)})
            for number in range(0, 2000, 2):
                del kv[b"%d %d" % (name, number)]

    together(*(lambda name=name: work(name) for name in range(4)))  # type: ignore[misc]
    expected = {b"incr": b"400", b"cas": b"400", b"tx": b"400"}
    expected |= {b"%d %d" % (name, number): bytes(20) for name in range(4) for number in range(1, 2000, 2)}
    assert contents(path) == check_store(path) == expected


# ---- the index of another ----


def test_another_makes_the_index_larger_and_puts_a_new_one_in_its_place(tmp_path: Path) -> None:
    """One handle has mapped what the other has left behind: it must find the new end, and the new file."""
    with shared(tmp_path) as one, shared(tmp_path) as two:
        one["first"] = b"1"
        two.put_many({b"%d" % number: b"%d" % number for number in range(20_000)})
        one["second"] = b"2"
        assert one["19999"] == b"19999"
        before = seed_of(tmp_path)
        twins = list(HashInverter(before).twins(7, 24, 5, 64))
        for key in twins:
            two[key] = b"twin"
        assert seed_of(tmp_path) != before
        one["third"] = b"3"
        one.put_many({b"%d" % number: b"x" for number in range(20_000, 40_000)})
        two.put_many({b"%d" % number: b"y" for number in range(20_000, 30_000)})
        del one["first"]
        assert len(one) == len(two) == 40_000 + len(twins) + 2
        assert two["39999"] == b"x"
        assert one["20000"] == b"y"
        assert one.verify().damages == two.verify().damages == ()


def test_keys_stay_in_order(tmp_path: Path) -> None:
    """The sorted keys of one handle go by the log, whoever wrote it."""
    with shared(tmp_path, ordered=True) as one, shared(tmp_path) as two:
        for number in range(50):
            two[b"%02d" % number] = b""
            one[b"%02d!" % number] = b""
        del two["07"]
        assert list(one.scan()) == list(two.scan()) == sorted(one.items())


def test_moments_and_changes_of_another(tmp_path: Path) -> None:
    """What one looks at stays, whatever the other compacts; what one follows comes, whoever wrote it."""
    path = tmp_path / "kv"
    with shared(path) as one, shared(path) as two:
        for number in range(100):
            one[b"%d" % number] = bytes(3000)
        with one.snapshot() as before:
            for turn in range(2):
                for number in range(0, 100, 2):
                    two[b"%d" % number] = b"%d" % turn
            two.compact()
            assert dict(before.items()) == {b"%d" % number: bytes(3000) for number in range(100)}
        assert one.compact().records_removed >= 50
        assert dict(one.items()) == dict(two.items())
        changes = two.changes(None, follow=True, timeout=60)
        one["one"] = b"1"
        together(lambda: shared(path).put("new", "1"))
        one.close()
        assert [next(changes).key for _ in range(2)] == [b"one", b"new"]


def test_both_compact_at_the_same_time(tmp_path: Path) -> None:
    """One at a time compacts, while both are written to."""
    with shared(tmp_path) as one, shared(tmp_path) as two:
        removed: list[int] = []

        def work(kv: KVStore, name: str) -> None:
            for turn in range(6):
                for number in range(60):
                    kv[f"{name}{number}"] = bytes(500) + b"%d" % turn
                removed.append(kv.compact().records_removed)

        threads = [threading.Thread(target=work, args=each) for each in ((one, "a"), (two, "b"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(removed) > 0
        assert agreeing(one) == agreeing(two)
        assert {value for _, value in one.items()} == {bytes(500) + b"5"}
        assert len(one) == 120
        assert one.verify().damages == ()


# ---- opening ----


def test_shared_and_exclusive_exclude_each_other(tmp_path: Path) -> None:
    """Who wants the store alone gets it alone, and is told who has it."""
    path = tmp_path / "kv"
    with shared(path) as kv:
        assert kv.shared
        kind, text = in_child(lambda: outcome(lambda: opened(path)))
        assert kind == "Locked"
        assert f"process {os.getpid()}" in text
        with pytest.raises(Locked, match="have every writer share it"):
            opened(path)
    with opened(path) as alone:
        assert not alone.shared
        with pytest.raises(Locked, match=f"process {os.getpid()}"):
            shared(path)
    for mode in "rn":
        with pytest.raises(ValueError, match="shared"):
            shared(path, mode)


def test_another_writer_comes_to_a_living_index(tmp_path: Path) -> None:
    """It was taken for one to be recovered, which put another in its place."""
    path = tmp_path / "kv"
    with shared(path) as one:
        one["key"] = b"value"
        made = (path / "INDEX").stat().st_ino
        with shared(path) as two:
            assert not two._log.recovered
            assert two["key"] == b"value"
            two["key"] = b"other"
        assert (path / "INDEX").stat().st_ino == made
        assert one["key"] == b"other"


def test_an_unpickled_handle_shares_too(tmp_path: Path) -> None:
    """Of an exclusive one it could only read."""
    with shared(tmp_path / "kv", policy=NEVER, verify=False) as kv:
        with pickle.loads(pickle.dumps(kv)) as other:
            assert (other.shared, other.flush_policy) == (True, NEVER)
            other["key"] = b"value"
        assert kv["key"] == b"value"


# ---- closing ----


def test_the_last_to_close_marks_the_index_as_clean(tmp_path: Path) -> None:
    """And nobody before: the others go on to change it."""
    path = tmp_path / "kv"
    one, two = shared(path), shared(path)
    one["a"] = b"1"
    one.close()
    assert not is_clean(path)
    assert two["a"] == b"1"
    two.close()
    assert is_clean(path)
    one, two = shared(path), shared(path)
    # Until the first write it stays.
    assert is_clean(path)
    two["b"] = b"2"
    assert not is_clean(path)
    one["c"] = b"3"
    two.close()
    assert not is_clean(path)
    with pytest.raises(Closed):
        two["d"] = b"4"
    one.close()
    one.close()
    assert is_clean(path)
    (path / "CONTROL").unlink()
    assert contents(path) == {b"a": b"1", b"b": b"2", b"c": b"3"}


def test_one_was_killed_before_the_last_one_closed(tmp_path: Path) -> None:
    """Nobody else will finish what it was at, so the last one does, and marks what is whole."""
    path = tmp_path / "kv"
    with shared(path) as kv:
        kv["a"] = b"1"

        def die() -> None:
            other = shared(path)
            other["b"] = b"2"
            other._log.control.mutexes()[0].acquire()
            os.kill(os.getpid(), signal.SIGKILL)

        child = Child(lambda _: die())
        child.wait_started()
        child.kill()
    assert is_clean(path)
    assert contents(path) == {b"a": b"1", b"b": b"2"}


def test_handles_come_and_go_while_others_write(tmp_path: Path) -> None:
    """An index was marked as clean that somebody wrote to, or a writer came to one that was being marked."""
    path = tmp_path / "kv"
    shared(path).close()

    def work(name: int) -> None:
        for turn in range(25):
            with shared(path) as kv:
                for number in range(5):
                    kv[b"%d %d %d" % (name, turn, number)] = b"x"

    together(*(lambda name=name: work(name) for name in range(3)))  # type: ignore[misc]
    assert is_clean(path)
    expected = {
        b"%d %d %d" % each for each in ((n, t, i) for n in range(3) for t in range(25) for i in range(5))
    }
    assert contents(path).keys() == expected


def test_a_forked_child_reads_and_closes(tmp_path: Path) -> None:
    """It inherits a handle, and takes no lock from its parent."""
    path = tmp_path / "kv"
    with shared(path) as kv:
        kv["key"] = b"value"

        def work() -> tuple[bytes, tuple[str, str]]:
            refused = outcome(lambda: kv.put("key", b"child"))
            value = kv["key"]
            kv.close()
            with shared(path) as own:
                own["child"] = b"1"
            return value, refused

        value, (kind, text) = in_child(work)
        assert (value, kind) == (b"value", "Closed")
        assert "inherited by fork" in text
        kv["key"] = b"later"
        assert kv["child"] == b"1"
        assert not is_clean(path)


# ---- who waits ----


def test_who_waits_can_be_interrupted(tmp_path: Path) -> None:
    """While another process holds the lock; when that dies, it goes on."""
    path = tmp_path / "kv"
    with shared(path) as kv:
        kv["key"] = b"1"

        def hold() -> object:
            held = shared(path)
            held._log.control.mutexes()[0].acquire()
            return held

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            with living_child(hold):
                for call in (lambda: kv.put("key", b"2"), lambda: kv.put_many({"key": b"2"})):
                    with pytest.raises(KeyboardInterrupt):
                        signal.setitimer(signal.ITIMER_REAL, 0.05)
                        call()
                assert kv["key"] == b"1"
        finally:
            signal.signal(signal.SIGALRM, before)
        kv["key"] = b"3"
        assert kv["key"] == b"3"


def test_a_write_within_a_write_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A destructor that interrupts a write must not wait for the lock that this very thread holds."""
    from mmapkv import index_file

    raised: list[BaseException] = []
    with shared(tmp_path) as kv, shared(tmp_path) as other:
        attempts = [lambda: kv.put("a", b"x"), lambda: kv.put_many({"a": b"x"}), kv.close, kv.compact]
        attempts += [lambda: other.put("a", b"x"), lambda: kv._rebuild_index(kv._parts()[1])]  # type: ignore[arg-type]
        real = index_file.clear_mark

        def clear_mark(index: Any) -> None:
            real(index)
            for attempt in attempts:
                try:
                    attempt()
                except (LogError, StoreError, RuntimeError) as error:
                    raised.append(error)

        monkeypatch.setattr(index_file, "clear_mark", clear_mark)
        kv["key"] = b"value"
        monkeypatch.undo()
        assert len(raised) == len(attempts)
        assert dict(other.items()) == {b"key": b"value"}
        other["key"] = b"again"
        kv["key"] = b"and again"


def test_python_code_runs_before_the_lock_is_taken(tmp_path: Path) -> None:
    """A generator, a codec, a buffer that asks for another writer's work would wait for it for ever."""
    with shared(tmp_path) as kv, shared(tmp_path) as other:

        def pairs() -> Any:
            for number in range(3):
                other[b"meanwhile %d" % number] = b""
                yield b"%d" % number, b""

        class Codec:
            def encode(self, value: bytes) -> bytes:
                other["encoding"] = value
                return value

            def decode(self, data: bytes) -> bytes:
                other["decoding"] = data
                return data

        kv.put_many(pairs())
        assert kv.delete_many(key for key, _ in pairs()) == 3
        typed = kv.typed(Codec())
        typed["typed"] = b"1"
        assert typed.pop("typed") == b"1"
        assert kv.retry(lambda tx: (other.put("within", b"1"), tx.put("tx", b"1"))) == (None, None)
        assert dict(kv.items()).keys() == {b"meanwhile %d" % n for n in range(3)} | {
            b"encoding",
            b"decoding",
            b"within",
            b"tx",
        }
    gc.collect()


def test_a_commit_of_much_keeps_others_waiting_and_nobody_out(tmp_path: Path) -> None:
    """More than a mebibyte is written without the GIL; another handle's thread must still wait."""
    with shared(tmp_path) as one, shared(tmp_path) as two:
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                two.incr("count")

        thread = threading.Thread(target=work)
        thread.start()
        for turn in range(5):
            one.put_many({b"%d" % number: b"%d" % turn * 2000 for number in range(1000)}, durable=True)
        before = int(one.get("count", b"0"))
        until(lambda: int(one.get("count", b"0")) > before)
        stop.set()
        thread.join()
        assert int(one["count"]) > before
        assert one.verify().damages == ()


# ---- other ways to a store ----


def test_facades_pass_it_on(tmp_path: Path) -> None:
    """Typed stores, namespaces, dbm, async code and the command write beside others who share."""
    path = tmp_path / "kv"
    with shared(path) as kv, KVStore.open(path, shared=True, flush_policy=MANUAL, codec=Json()) as typed:
        typed["json"] = [1]
        kv.namespace("a/")["b"] = b"1"
        with dbm.open(path, "c", shared=True) as database:
            database["dbm"] = b"2"

        async def work() -> None:
            async with await AsyncKVStore.open(path, shared=True, flush_policy=MANUAL) as store:
                await store.put("async", b"3")
                async with store.batch() as batch:
                    batch.put("batch", b"4")

        asyncio.run(work())
        for command in (["put", str(path), "shell", "5"], ["del", str(path), "dbm"], ["compact", str(path)]):
            assert main(command) == 0
        assert dict(kv.items()) == {
            b"json": b"[1]",
            b"a/b": b"1",
            b"async": b"3",
            b"batch": b"4",
            b"shell": b"5",
        }
