"""What a cache keeps away: its files are bounded too, and what removes them ends with the handle."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import pytest

from mmapio import FlushPolicy
from mmapio.errors import Closed
from mmapkv import KVStore
from mmapkv.remover import Remover
from mmaplog import segment_set
from tests.support.waiting import PATIENCE_SECONDS, until
from tests.unit.mmapio.processes import in_child, run_python

MAX = 512 << 10
SEGMENT = 64 << 10
VALUE = b"v" * 400
BEHIND = 4 << 20
#: What docs/cache.md says of the log.
LOG_MAX = MAX // 8 * 11 + BEHIND + 2 * SEGMENT
#: CONTROL, LOCK, MANIFEST, VISITED.
FIXED = 64 << 10


def opened(path: Path, max_bytes: int = MAX, segment_bytes: int = SEGMENT) -> KVStore:
    return KVStore.open(
        path, flush_policy=FlushPolicy.MANUAL, max_bytes=max_bytes, segment_bytes=segment_bytes
    )


def on_disk(path: Path) -> int:
    """Of all files but INDEX, which grows with the keys; one that goes meanwhile counts for nothing."""
    found = 0
    for each in path.iterdir():
        if each.name.startswith("INDEX"):
            continue
        try:
            found += each.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return found


def fill(kv: KVStore, start: int, size: int, value: bytes = VALUE) -> int:
    """Put keys that are new, of about `size` bytes in all; the number after the last."""
    stop = start + size // len(value)
    for number in range(start, stop):
        kv[b"%d" % number] = value
    return stop


def thread_of(kv: KVStore) -> threading.Thread:
    """The one that removes what was evicted; there must be one by now."""
    assert kv._remover is not None
    thread = kv._remover._thread
    assert thread is not None
    return thread


@pytest.mark.parametrize("size", [30, 400, 20_000, (SEGMENT - 4096) // 2 + 100, 90_000])
def test_its_files_are_bounded(tmp_path: Path, size: int) -> None:
    """Those that are to be removed too, and what a record that does not fit leaves of a file."""
    path = tmp_path / "kv"
    value = b"x" * size
    with opened(path) as kv:
        number = 0
        for _ in range(100):
            number = fill(kv, number, 120_000, value)
            assert on_disk(path) <= LOG_MAX + FIXED
            assert kv.stats()["live_bytes"] <= MAX
        assert kv.stats()["evictions"] > 0
    with opened(path) as kv:
        assert on_disk(path) <= LOG_MAX + FIXED
        fill(kv, number, 5_000_000, value)
        assert on_disk(path) <= LOG_MAX + FIXED


def test_what_is_cleared_goes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    with opened(path, 8 << 20) as kv:
        fill(kv, 0, 3 << 20)
        kv.clear()
        until(lambda: on_disk(path) <= 2 * SEGMENT + FIXED)
        assert len(kv) == 0


def test_what_is_behind_is_removed_by_who_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    with KVStore.open(path, segment_bytes=SEGMENT, flush_policy=FlushPolicy.MANUAL) as kv:
        fill(kv, 0, 3 << 20)
        kv.clear()
    with opened(path) as kv:
        kv["a"] = "1"
        until(lambda: on_disk(path) <= 3 * SEGMENT + FIXED)
        assert dict(kv) == {b"a": b"1"}


def test_the_bound_is_that_of_who_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    with opened(path, 4 << 20) as kv:
        number = fill(kv, 0, 8 << 20)
        assert kv.stats()["live_bytes"] > 3 << 20
    for bound in (1 << 20, MAX, 2 << 20):
        with opened(path, bound) as kv:
            # The first put makes it as small as it is to be.
            number = fill(kv, number, len(VALUE))
            assert kv.stats()["live_bytes"] <= bound
            number = fill(kv, number, 2 * bound)
            assert bound - (bound >> 4) < kv.stats()["live_bytes"] <= bound
            assert kv.verify().damages == ()


def test_a_put_reads_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evicting takes a look at records and nothing else, until a segment is through."""
    looks = 0
    listing = segment_set.list_segments  # type: ignore[attr-defined]

    def counted(directory: object) -> object:
        nonlocal looks
        looks += 1
        return listing(directory)

    with opened(tmp_path / "kv", segment_bytes=1 << 20) as kv:
        number = fill(kv, 0, 600_000)
        monkeypatch.setattr(segment_set, "list_segments", counted)
        evicted = kv.stats()["evictions"]
        fill(kv, number, 300_000)
        assert kv.stats()["evictions"] > evicted + 500
        assert looks == 0


def test_a_snapshot_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it needs cannot be removed: that is tried once a segment, and waited for by nobody."""
    tries = 0
    wait, remove = Remover.wait, Remover._work

    def counted(self: Remover) -> None:
        nonlocal tries
        tries += 1
        remove(self)

    def refused(self: Remover, store: KVStore) -> None:
        assert store._eviction is not None
        until(lambda: not self._busy)
        waits.append(tries)
        wait(self, store)

    waits: list[int] = []
    monkeypatch.setattr(Remover, "_work", counted)
    monkeypatch.setattr(Remover, "wait", refused)
    with opened(tmp_path / "kv") as kv:
        number = fill(kv, 0, 400_000)
        with kv.snapshot() as snapshot:
            before = dict(snapshot)
            number = fill(kv, number, 8 << 20)
            assert dict(snapshot) == before
            assert 0 < tries <= kv.stats()["segments"]
            assert len(waits) <= 2
            assert on_disk(tmp_path / "kv") > 8 << 20
        fill(kv, number, 4 * SEGMENT)
        until(lambda: on_disk(tmp_path / "kv") <= LOG_MAX + FIXED)


def test_what_is_damaged_is_evicted_like_anything_else(tmp_path: Path) -> None:
    """A value of which the disk has lost something keeps nobody from putting others."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv["damaged"] = b"d" * 400
        number = fill(kv, 0, 300_000)
    (first,) = [each for each in path.glob("*.seg") if each.name.startswith("0" * 20)]
    raw = bytearray(first.read_bytes())
    raw[raw.index(b"d" * 100) + 50] ^= 1
    first.write_bytes(raw)
    with opened(path) as kv:
        kv.get_many([b"%d" % each for each in range(number)])
        assert "damaged" in KVStore.open(path, "r", verify=False)
        fill(kv, number, 2 << 20)
        # Until its segment is gone, a look-up meets it.
        until(lambda: not first.exists())
        assert "damaged" not in kv
        assert len(kv) == len(dict(kv))
        assert kv.verify().damages == ()


def test_values_with_a_time_to_live(tmp_path: Path) -> None:
    """What has expired is gone, and takes no room from the rest; the count is right."""
    with opened(tmp_path / "kv") as kv:
        for number in range(4000):
            kv.put(b"%d" % number, VALUE, ttl=1e-6 if number % 2 else 3600)
        time.sleep(0.001)
        kv["last"] = VALUE
        kept = [each for each in range(0, 4000, 2) if b"%d" % each in kv]
        assert len(kept) > MAX * 5 // 8 // 460
        kv.sweep()
        assert len(kv) == len(kept) + 1
        assert kv.verify().damages == ()


def test_what_was_looked_up_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv["a"], kv["b"] = "1", "2"
        assert (kv["a"], kv.get("b"), kv.get("c"), "d" in kv) == (b"1", b"2", None, False)
        with pytest.raises(KeyError):
            kv["e"]
        kv.get_many(["a", "b", "x"])
        told = kv.stats()
        assert (told["hits"], told["misses"]) == (4, 4)
        with KVStore.open(path, "r") as reader:
            assert reader.get("a") == b"1"
            told = reader.stats()
            assert (told["hits"], told["misses"]) == (1, 0)
            assert "evictions" not in told
    with KVStore.open(tmp_path / "other") as kv:
        kv.get("a")
        assert "hits" not in kv.stats()


def test_a_namespace_and_typed_values_are_of_the_cache(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as kv:
        names, typed = kv.namespace("n/"), kv.typed(Doubled(), str)
        for number in range(2000):
            names[b"%d" % number] = VALUE
            typed[f"t{number}"] = "v" * 200
            assert names.get(b"0") == VALUE
            assert typed.get("t1") == (None if number == 0 else "v" * 200)
        assert kv.stats()["live_bytes"] <= MAX
        assert len(names) < 1000
        names.clear()
        assert len(names) == 0
        assert typed["t1999"] == "v" * 200
        assert kv.verify().damages == ()


class Doubled:
    """A codec that writes everything twice."""

    def encode(self, value: str) -> bytes:
        return value.encode() * 2

    def decode(self, data: bytes) -> str:
        return bytes(data[: len(data) // 2]).decode()


def test_a_backup_is_a_store_with_what_was_there(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as kv:
        fill(kv, 0, 3 << 20)
        kv.backup(tmp_path / "copy")
        with KVStore.open(tmp_path / "copy", "r") as copy:
            assert dict(copy) == dict(kv)
            assert copy.verify().damages == ()


def test_transactions_are_of_what_is_there(tmp_path: Path) -> None:
    """One that is retried counts what the cache still has, and nothing twice."""
    with opened(tmp_path / "kv") as kv:
        kv["count"] = "0"
        for number in range(200):
            fill(kv, number * 50, 20_000)

            def count(tx: object) -> int:
                new = int(tx["count"]) + 1  # type: ignore[index]
                tx["count"] = str(new)  # type: ignore[index]
                return new

            assert kv.retry(count) == number + 1
        assert kv.stats()["evictions"] > 0


def test_closing_ends_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it has just been asked for more, and is waited for no longer than that takes."""
    begun = threading.Event()
    work = Remover._work

    def slowed(self: Remover) -> None:
        begun.set()
        until(lambda: self._ending)
        work(self)

    monkeypatch.setattr(Remover, "_work", slowed)
    kv = opened(tmp_path / "kv")
    fill(kv, 0, 3 << 20)
    assert begun.wait(PATIENCE_SECONDS)
    thread = thread_of(kv)
    kept = dict(kv)
    kv.close()
    assert not thread.is_alive()
    kv.close()
    with KVStore.open(tmp_path / "kv", "r") as kv:
        assert dict(kv) == kept
        assert kv.verify().damages == ()


def test_a_cache_that_is_dropped_takes_its_thread_along(tmp_path: Path) -> None:
    gc.disable()
    try:
        kv = opened(tmp_path / "kv")
        fill(kv, 0, 3 << 20)
        thread = thread_of(kv)
        remover = kv._remover
        until(lambda: remover is None or not remover._busy)
        # Without the garbage collector: nothing that it has refers to it.
        del kv
        thread.join(PATIENCE_SECONDS)
    finally:
        gc.enable()
    assert not thread.is_alive()


def test_a_forked_child_has_no_thread(tmp_path: Path) -> None:
    kv = opened(tmp_path / "kv")
    number = fill(kv, 0, 3 << 20)
    last = b"%d" % (number - 1)

    def child() -> bytes:
        found = kv[last]
        with pytest.raises(Closed):
            kv["new"] = "1"
        kv.close()
        return found

    assert in_child(child) == VALUE
    fill(kv, number, 3 << 20)
    assert on_disk(tmp_path / "kv") <= LOG_MAX + FIXED
    thread = thread_of(kv)
    assert thread.is_alive()
    kv.close()
    assert not thread.is_alive()


def test_the_end_of_the_interpreter_is_no_trouble(tmp_path: Path) -> None:
    code = """
from mmapio import FlushPolicy
from mmapkv import KVStore
kv = KVStore.open(arguments[0], max_bytes=512 << 10, segment_bytes=64 << 10, flush_policy=FlushPolicy.MANUAL)
for number in range(8000):
    kv[b"%d" % number] = b"v" * 400
answer(len(kv))
"""
    kept = run_python(code, tmp_path / "kv")
    with KVStore.open(tmp_path / "kv", "r") as kv:
        assert len(kv) == len(dict(kv)) == kept
        assert kv.verify().damages == ()


def test_a_destructor_may_put_while_something_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for what it interrupted."""
    put = threading.Event()
    work = Remover._work
    kv = opened(tmp_path / "kv")

    def interrupted(self: Remover) -> None:
        if not put.is_set():
            fill(kv, 10_000_000, BEHIND + (2 << 20))
            put.set()
        work(self)

    monkeypatch.setattr(Remover, "_work", interrupted)
    with kv:
        number = fill(kv, 0, 2 << 20)
        until(put.is_set)
        fill(kv, number, 2 << 20)
        assert kv.stats()["live_bytes"] <= MAX
        assert kv.verify().damages == ()


@pytest.mark.parametrize("bound", [1, (256 << 10) - 1, (1 << 44) + 1, (1 << 63) - 1, 1 << 70])
def test_a_bound_that_is_none(tmp_path: Path, bound: int) -> None:
    """Told with the numbers, before anything is made."""
    with pytest.raises(ValueError, match=f"262144 to 17592186044416, not {bound}"):
        KVStore.open(tmp_path / "kv", max_bytes=bound)
    assert not (tmp_path / "kv").exists()


def test_several_writers_have_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To start one takes a while, in which others find that there is none."""
    real = threading.Thread.start
    started: list[threading.Thread] = []
    others: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if thread.name == "mmapkv-remover":
            started.append(thread)
            if len(started) == 1:
                others.append(threading.Thread(target=remover.wake))
                real(others[0])
                others[0].join(PATIENCE_SECONDS)
        real(thread)

    with opened(tmp_path / "kv") as kv:
        assert kv._remover is not None
        remover = kv._remover
        monkeypatch.setattr(threading.Thread, "start", start)
        assert remover.wake()
        assert len(started) == 1
