"""A cache keeps within its bound, and keeps what is read."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mmapio import FlushPolicy
from mmapkv import Change, KVStore, ValueTooLarge, verify
from tests.support.plain_reader import check_store
from tests.support.waiting import until
from tests.unit.mmapio.processes import in_child

MAX = 512 << 10
SEGMENT = 64 << 10
VALUE = b"v" * 400
# What it is bound to on the disk, with what waits to be removed.
LOG_MAX = MAX // 8 * 11 + (4 << 20) + 2 * SEGMENT
# What is kept below the bound, so that puts need not wait.
SLACK = MAX // 32 + (8 << 10)


def opened(path: Path, eviction: str = "clock", max_bytes: int = MAX) -> KVStore:
    return KVStore.open(
        path,
        flush_policy=FlushPolicy.MANUAL,
        segment_bytes=SEGMENT,
        max_bytes=max_bytes,
        eviction=eviction,  # type: ignore[arg-type]
    )


def on_disk(path: Path) -> int:
    found = 0
    for each in path.glob("*.seg*"):
        with suppress(FileNotFoundError):
            # What was evicted is removed by a thread.
            found += each.stat().st_blocks * 512
    return found


def key(number: int) -> bytes:
    return b"key-%d" % number


def test_it_keeps_within_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    with opened(path) as kv:
        for number in range(25000):
            kv[key(number)] = VALUE
            if number % 100 == 0:
                told = kv.stats()
                assert told["live_bytes"] <= MAX
                assert on_disk(path) <= LOG_MAX
        told = kv.stats()
        assert told["max_bytes"] == MAX
        assert told["live_bytes"] > MAX - 2 * SLACK, "it lets go of no more than it must"
        assert told["evictions"] == 25000 - len(kv)
        # The oldest are gone, and nothing but them.
        assert list(kv) == [key(number) for number in range(25000 - len(kv), 25000)]
        assert kv.get(key(0)) is None
        assert kv.verify().damages == ()
        assert kv.verify().live_bytes == told["live_bytes"]
    assert verify(path).damages == ()


def test_what_overwrites_needs_no_room(tmp_path: Path) -> None:
    """What was superseded is let go of first, however much of it there is."""
    path = tmp_path / "kv"
    expected = {}
    with opened(path) as kv:
        for number in range(700):
            expected[key(number)] = kv[key(number)] = VALUE
        for turn in range(20000):
            expected[key(turn % 37)] = kv[key(turn % 37)] = VALUE + b"%d" % turn
            if turn % 100 == 0:
                assert on_disk(path) <= LOG_MAX
        assert kv.stats()["evictions"] == 0
        assert dict(kv.items()) == expected
        assert kv.verify().damages == ()


@pytest.mark.parametrize("who", ["writer", "get_many", "reader", "nobody", "fifo"])
def test_what_is_read_stays(tmp_path: Path, who: str) -> None:
    hot = [key(number) for number in range(40)]
    with opened(tmp_path / "kv", "fifo" if who == "fifo" else "clock") as kv:
        kv.put_many((each, VALUE) for each in hot)

        def look() -> None:
            if who in ("writer", "fifo"):
                for each in hot:
                    kv.get(each)
            elif who == "get_many":
                kv.get_many(hot)
            elif who == "reader":
                with KVStore.open(tmp_path / "kv", "r") as reader:
                    reader.get_many(hot)

        for number in range(100, 5000):
            if number % 300 == 0:
                in_child(look) if who == "reader" else look()
            kv[key(number)] = VALUE
        present = sum(each in kv for each in hot)
        assert present == (0 if who in ("nobody", "fifo") else 40)
        assert kv.stats()["live_bytes"] <= MAX


def test_when_everything_is_read_something_goes_all_the_same(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as kv:
        for number in range(4000):
            kv[key(number)] = VALUE
            if number % 50 == 0:
                kv.get_many(list(kv))
        assert kv.stats()["live_bytes"] <= MAX
        assert kv.verify().damages == ()


def test_what_has_expired_goes_first(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as kv:
        for number in range(500):
            kv[key(number)] = VALUE
        for number in range(500, 900):
            kv.put(key(number), VALUE, ttl=1e-6)
        time.sleep(0.001)
        for number in range(1000, 1350):
            kv[key(number)] = VALUE
        assert all(key(number) in kv for number in range(500))
        assert kv.stats()["evictions"] == 0
        assert len(kv) < 1000


def test_what_is_larger_than_the_cache_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as kv:
        kv["a"] = VALUE
        written = kv.stats()["committed"]
        with pytest.raises(ValueTooLarge, match="more than the cache"):
            kv["b"] = bytes(MAX)
        with pytest.raises(ValueTooLarge), kv.batch() as batch:
            batch["b"] = bytes(MAX)
        with pytest.raises(ValueTooLarge):
            kv.append("a", bytes(MAX - 200))
        assert (kv.stats()["committed"], kv["a"]) == (written, VALUE)
        # What just fits is all that there is then.
        kv["b"] = bytes(MAX - 100)
        assert kv.stats()["live_bytes"] <= MAX
        assert list(kv) == [b"b"]


def test_a_bound_is_checked(tmp_path: Path) -> None:
    KVStore.open(tmp_path / "kv").close()
    for mode, bound, eviction in (
        ("c", 1000, "clock"),
        ("c", -1, "clock"),
        ("c", MAX, "lru"),
        ("r", MAX, "fifo"),
    ):
        with pytest.raises(ValueError, match=r"max_bytes|eviction"):
            KVStore.open(tmp_path / "kv", mode, max_bytes=bound, eviction=eviction)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        KVStore.open(tmp_path / "kv", max_bytes="1 GiB")  # type: ignore[call-overload]


@pytest.mark.parametrize("mode", ["c", "r"])
@pytest.mark.parametrize("eviction", ["clock", "fifo"])
def test_an_eviction_without_a_bound_is_refused(tmp_path: Path, mode: Any, eviction: Any) -> None:
    """It was passed over: who forgot the bound had a store that grows, and thought it was a cache."""
    KVStore.open(tmp_path / "kv").close()
    with pytest.raises(ValueError, match=f"eviction='{eviction}' goes with max_bytes="):
        KVStore.open(tmp_path / "kv", mode, eviction=eviction)
    KVStore.open(tmp_path / "kv", mode, eviction=None).close()


def test_a_store_that_is_too_large_is_cut_down(tmp_path: Path) -> None:
    with KVStore.open(tmp_path / "kv", segment_bytes=SEGMENT) as kv:
        kv.put_many((key(number), VALUE) for number in range(5000))
    with opened(tmp_path / "kv") as kv:
        assert len(kv) == 5000
        kv["new"] = "1"
        assert kv.stats()["live_bytes"] <= MAX
        assert key(4999) in kv
        assert key(0) not in kv
    with KVStore.open(tmp_path / "kv") as kv:
        # Without a bound it is a store like any other.
        before = len(kv)
        kv.put_many((key(number), VALUE) for number in range(5000, 9000))
        assert len(kv) == before + 4000


def test_a_snapshot_keeps_what_it_needs(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as kv:
        kv.put_many((key(number), VALUE) for number in range(500))
        before, snapshot = dict(kv.items()), kv.snapshot()
        for number in range(1000, 4000):
            kv[key(number)] = VALUE
        assert dict(snapshot.items()) == before
        assert snapshot[key(3)] == VALUE
        assert kv.get(key(3)) is None
        snapshot.close()
        for number in range(4000, 4500):
            kv[key(number)] = VALUE
        assert on_disk(tmp_path / "kv") <= LOG_MAX


def test_changes_tell_what_went(tmp_path: Path) -> None:
    """A copy that is kept by them is the cache, to the last key."""
    copy: dict[bytes, tuple[int, bytes]] = {}

    def follow(change: Change) -> None:
        if change.kind == "clear":
            assert change.below is not None
            for gone in [each for each, (seq, _) in copy.items() if seq < change.below]:
                del copy[gone]
        elif change.value is None:
            del copy[change.key]
        else:
            copy[change.key] = change.seq, change.value

    with opened(tmp_path / "kv") as kv:
        since = 0
        for turn in range(60):
            kv.put_many((key(turn * 50 + each), VALUE) for each in range(50))
            changes = kv.changes(since)
            for change in changes:
                follow(change)
            since = changes.seq
        assert kv.stats()["evictions"] > 0
        assert {each: value for each, (_, value) in copy.items()} == dict(kv.items())


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_found_is_what_was_put_last(tmp_path: Path, seed: int) -> None:
    """Whatever is done to a cache, and whatever of its files is lost: a miss at worst, never an old value."""
    path, chance = tmp_path / "kv", random.Random(seed)
    model: dict[bytes, bytes] = {}
    kv = opened(path)
    snapshots = []
    for turn in range(300):
        for _ in range(chance.randrange(40)):
            name = key(chance.randrange(1500))
            what = chance.randrange(10)
            if what == 0:
                kv.pop(name, None)
                model.pop(name, None)
            elif what < 4:
                assert kv.get(name) in (None, model.get(name))
            else:
                model[name] = kv[name] = chance.randbytes(chance.randrange(2000))
        what = chance.randrange(40)
        if what == 0:
            kv.clear()
            model.clear()
        elif what == 1:
            kv.compact()
        elif what == 2:
            snapshots.append((kv.snapshot(), dict(kv.items())))
        elif what == 3:
            for snapshot, content in snapshots:
                assert dict(snapshot.items()) == content
                snapshot.close()
            snapshots.clear()
        elif what == 4:
            batch = {key(chance.randrange(1500)): chance.randbytes(300) for _ in range(50)}
            kv.put_many(batch)
            model |= batch
        elif what == 5:
            snapshots.clear()
            found = dict(kv.items())
            kv.close()
            for name in chance.choice(((), ("INDEX",), ("CONTROL",), ("VISITED",), ("INDEX", "CONTROL"))):
                (path / str(name)).unlink()
            kv = opened(path)
            assert dict(kv.items()) == found
        found = dict(kv.items())
        assert found.items() <= model.items()
        assert len(kv) == len(found)
        assert kv.stats()["live_bytes"] <= MAX
        if turn % 20 == 0:
            assert {name: kv.get(name) for name in found} == found
            assert kv.verify().damages == ()
    kv.close()


def test_threads_share_it(tmp_path: Path) -> None:
    wrong: list[object] = []
    with opened(tmp_path / "kv") as kv:

        def work(seed: int) -> None:
            try:
                chance = random.Random(seed)
                for number in range(1500):
                    name = b"%d-%d" % (seed, chance.randrange(300))
                    kv[name] = VALUE
                    if kv.get(name) != VALUE:
                        wrong.append((name, number))
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert wrong == []
        assert kv.stats()["live_bytes"] <= MAX + 4 * SLACK
        assert kv.verify().damages == ()


def test_a_plain_reader_agrees(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as kv:
        for number in range(3000):
            kv[key(number)] = VALUE
        expected = dict(kv.items())
    assert check_store(tmp_path / "kv") == expected


def test_it_is_compacted_while_it_evicts(tmp_path: Path) -> None:
    """Both rewrite and remove segments, each in a thread; neither loses count of the other."""
    with opened(tmp_path / "kv") as kv:
        written = rounds = 0
        failures: list[BaseException] = []

        def compact() -> None:
            nonlocal rounds
            try:
                for rounds in range(1, 16):
                    # There is something to compact, and to be found in the end.
                    until(lambda: written >= 400 * rounds)  # noqa: B023
                    kv.compact(background=True)
                    kv.compact()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=compact)
        thread.start()
        chance = random.Random(1)
        while thread.is_alive():
            number, written = written, written + 1
            if number > 500 * rounds:
                # Neither waits for the other to be through, nor starves it.
                time.sleep(0.0005)
            kv[b"%d" % number] = VALUE
            kv.get(b"%d" % chance.randrange(max(number - 2000, 0), number + 1))
            if number % 5 == 0:
                kv[b"%d" % chance.randrange(number + 1)] = b"short"
        thread.join()
        assert failures == []
        told = kv.stats()
        assert told["compaction_error"] == 0
        assert told["live_bytes"] <= MAX
        assert told["live_bytes"] == kv.verify().live_bytes
        found = dict(kv.items())
        assert len(kv) == len(found) > 100
        assert all(kv[key] == value for key, value in found.items())
        assert kv.verify().damages == ()
    assert check_store(tmp_path / "kv") == found
