"""Scans: the keys in order, between bounds, as of the moment of the call."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapio import Closed
from mmapkv import KVStore
from mmapkv.decode import note_presence
from mmapkv.ordered import OrderedKeys
from mmapkv.scan import BLOCK_MAX, BLOCK_MIN, bounds
from mmaplog import Log
from tests.unit.mmapio.processes import in_child, living_child
from tests.unit.mmapkv.stores import MANUAL, SEGMENT, opened

#: More than a scan takes at once, in an order that is not theirs.
COUNT = 3 * BLOCK_MAX
START = {b"%05d" % number: b"value %d" % number for number in random.Random(1).sample(range(COUNT), COUNT)}


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[KVStore]:
    """A store in which some keys were overwritten, some deleted, some brought back."""
    with opened(tmp_path / "kv") as made:
        for key in START:
            made[key] = b"before"
        for key in list(START)[::3]:
            del made[key]
        made.update(START)
        made[b"deleted"] = b"x"
        del made[b"deleted"]
        yield made


def expected(
    items: dict[bytes, bytes], low: bytes | None = None, high: bytes | None = None, prefix: bytes = b""
) -> list[tuple[bytes, bytes]]:
    """What a scan of these items gives: the definition."""
    return sorted(
        (key, value)
        for key, value in items.items()
        if key.startswith(prefix) and (low is None or key >= low) and (high is None or key < high)
    )


RANGES: dict[str, tuple[bytes, bytes | None, bytes | None]] = {
    "all": (b"", None, None),
    "a prefix": (b"01", None, None),
    "a prefix that is a key": (b"00007", None, None),
    "a prefix that nothing has": (b"x", None, None),
    "from a key on": (b"", b"02000", None),
    "below a key": (b"", None, b"00100"),
    "between keys": (b"", b"00100", b"00200"),
    "between what are no keys": (b"", b"001", b"00199x"),
    "nothing: the bounds are one key": (b"", b"00100", b"00100"),
    "nothing: the bounds are crossed": (b"", b"00200", b"00100"),
    "a prefix and both bounds": (b"01", b"01500", b"01502"),
    "a prefix, and bounds beyond it": (b"01", b"00500", b"02500"),
    "a prefix, and bounds behind it": (b"01", b"02000", None),
    "as many as a first block": (b"", None, b"%05d" % BLOCK_MIN),
    "one more than a first block": (b"", None, b"%05d" % (BLOCK_MIN + 1)),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("prefix", "low", "high"), RANGES.values(), ids=RANGES.keys())
def test_a_range_is_what_its_definition_says(
    kv: KVStore, prefix: bytes, low: bytes | None, high: bytes | None, reverse: bool
) -> None:
    """In both directions, pairs and keys."""
    wanted = expected(START, low, high, prefix)
    if reverse:
        wanted.reverse()
    assert list(kv.scan(prefix, start=low, stop=high, reverse=reverse)) == wanted
    keys = kv.scan(prefix, start=low, stop=high, reverse=reverse, values=False)
    assert list(keys) == [key for key, _ in wanted]


@pytest.mark.parametrize(
    "prefix", [b"", b"a", b"a\xff", b"\xff", b"\xff\xff", b"a\xff\xff", b"\x00", b"\xfe\xff"]
)
def test_a_prefix_ends_where_the_next_one_begins(prefix: bytes) -> None:
    """Also one whose last byte cannot be raised."""
    low, high = bounds(prefix, None, None)
    letters = [b"", b"\x00", b"a", b"b", b"\xfe", b"\xff"]
    for key in {one + two + three for one in letters for two in letters for three in letters}:
        inside = (low is None or low <= key) and (high is None or key < high)
        assert inside == key.startswith(prefix), (key, low, high)


def test_str_and_buffers_are_keys_here_too(kv: KVStore) -> None:
    assert list(kv.scan("0100", start=bytearray(b"01001"), stop=memoryview(b"01003"), values=False)) == [
        b"01001",
        b"01002",
    ]
    with pytest.raises(TypeError, match="a key is bytes, another contiguous buffer or str, not int"):
        kv.scan(5)  # type: ignore[call-overload]


def test_seeking(kv: KVStore) -> None:
    """First, last, at or after, before: the first step of a scan."""
    assert next(kv.scan(values=False)) == b"00000"
    assert next(kv.scan(reverse=True, values=False)) == b"%05d" % (COUNT - 1)
    assert next(kv.scan(start=b"00123x")) == (b"00124", b"value 124")
    assert next(kv.scan(stop=b"00123", reverse=True)) == (b"00122", b"value 122")
    assert next(kv.scan(start=b"x"), None) is None


CHANGES: dict[str, Callable[[KVStore, bytes], object]] = {
    "overwriting": lambda kv, key: kv.put(key, b"changed"),
    "deleting": lambda kv, key: kv.pop(key, None),
    "deleting what is to come": lambda kv, key: kv.pop(b"%05d" % (COUNT - 1 - int(key)), None),
    "deleting and bringing back": lambda kv, key: (kv.pop(key, None), kv.put(key, b"back")),
    "adding": lambda kv, key: kv.put(key + b" new", b"new"),
    "adding, deleting again": lambda kv, key: (kv.put(key + b"+", b"new"), kv.pop(key + b"+")),
    "nothing": lambda kv, key: None,
}


@pytest.mark.parametrize("brought_up", [False, True], ids=["alone", "beside others"])
@pytest.mark.parametrize("values", [True, False], ids=["items", "keys"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changes_during_a_scan_do_not_show_in_it(
    kv: KVStore, change: Callable[[KVStore, bytes], object], values: bool, brought_up: bool
) -> None:
    """Also when other scans, begun later, brought the keys up meanwhile."""
    found = []
    scan = kv.scan() if values else ((key, START[key]) for key in kv.scan(values=False))
    for key, value in scan:
        found.append((key, value))
        if len(found) % 50 == 1:
            change(kv, key)
            if brought_up:
                next(kv.scan(), None)
    assert found == expected(START)
    now = dict(kv.items())
    assert list(kv.scan()) == expected(now)
    assert list(kv.scan(values=False)) == sorted(now)


def test_scans_of_different_times_are_independent(kv: KVStore) -> None:
    one = kv.scan()
    kv[b"00000"] = b"second"
    two = kv.scan(reverse=True)
    del kv[b"00001"]
    three = kv.scan(values=False)
    kv.clear()
    assert next(kv.scan(), None) is None
    assert list(one) == expected(START)
    second = {**START, b"00000": b"second"}
    assert list(two) == expected(second)[::-1]
    assert list(three) == sorted(second.keys() - {b"00001"})


def test_deleted_keys_are_forgotten_when_no_scan_needs_them(kv: KVStore) -> None:
    """Memory is of what is there, not of what ever was."""
    scan = kv.scan()
    next(scan)
    for key in list(START)[10:]:
        del kv[key]
    assert sum(1 for _ in kv.scan()) == 10
    assert len(kv._ordered._keys) == COUNT
    del scan
    gc.collect()
    assert sum(1 for _ in kv.scan()) == 10
    assert len(kv._ordered._keys) == 10
    assert kv._ordered._gone == set()


def test_few_deleted_keys_are_forgotten_too(kv: KVStore) -> None:
    """One by one, where making the list anew would be dear."""
    list(kv.scan())
    del kv[b"00007"]
    assert sum(1 for _ in kv.scan()) == COUNT - 1 == len(kv._ordered._keys)


def test_a_snapshot_is_scanned_as_it_was(kv: KVStore) -> None:
    """Whenever the keys are sorted first, and however often they are since."""
    with kv.snapshot() as before:
        for key in list(START)[::2]:
            del kv[key]
        kv[b"new"] = b"x"
        with kv.snapshot() as between:
            kv.clear()
            assert list(kv.scan()) == []
            assert list(before.scan()) == expected(START)
            now = {key: START[key] for key in list(START)[1::2]} | {b"new": b"x"}
            assert list(between.scan("0", reverse=True, values=False)) == sorted(now.keys() - {b"new"})[::-1]
            assert list(between.scan()) == expected(now)
        scan = before.scan()
        next(scan)
    for late in (lambda: next(scan), before.scan):
        with pytest.raises(Closed, match="the snapshot is closed"):
            late()
    assert list(kv.scan()) == []
    assert len(kv._ordered._keys) == 0


def test_open_snapshots_and_scans_are_counted(kv: KVStore) -> None:
    """Whoever compacts the store must know of them."""
    scan = kv.scan()
    next(scan)
    assert kv.stats()["snapshots"] == 1
    assert sum(1 for _ in scan) == COUNT - 1
    del scan
    gc.collect()
    assert kv.stats()["snapshots"] == 0


def test_what_has_expired_vanishes(kv: KVStore) -> None:
    """From scans that begin later, of keys too, which else need no look-up."""
    list(kv.scan())
    kv.put(b"00000", b"short", ttl=1e-9)
    kv.put(b"short", b"x", ttl=1e-9)
    kv.put(b"long", b"x", ttl=3600)
    left = {**START, b"long": b"x"}
    del left[b"00000"]
    assert list(kv.scan()) == expected(left)
    assert list(kv.scan(values=False)) == sorted(left)
    with opened(Path(kv.path), "r") as reader:
        assert list(reader.scan(values=False)) == sorted(left)
    kv.sweep()
    assert list(kv.scan(values=False)) == sorted(left)


def test_a_batch_is_seen_whole(tmp_path: Path) -> None:
    """By the scans of another process: both keys of a pair or none."""

    def write() -> threading.Thread:
        kv = opened(tmp_path / "kv")

        def pairs() -> None:
            for number in range(1_000_000):
                with kv.batch() as batch:
                    batch[b"a%d" % (number % 50)] = batch[b"b%d" % (number % 50)] = b"%d" % number
                    batch.delete(b"a%d" % ((number + 25) % 50))
                    batch.delete(b"b%d" % ((number + 25) % 50))

        made = threading.Thread(target=pairs, daemon=True)
        made.start()
        return made

    with living_child(write), opened(tmp_path / "kv", "r") as reader:
        rounds = seen = 0
        while rounds < 50 or seen == 0:
            rounds += 1
            one, other = dict(reader.scan("a")), dict(reader.scan("b"))
            both = dict(reader.scan())
            assert {key[1:]: both[key] for key in both if key[:1] == b"a"} == {
                key[1:]: both[key] for key in both if key[:1] == b"b"
            }
            seen = max(seen, len(one) * len(other))


def test_opening_in_order(tmp_path: Path) -> None:
    """Then a scan has next to nothing to read."""
    with opened(tmp_path / "kv") as kv:
        kv.update(START)
    with KVStore.open(tmp_path / "kv", "r", ordered=True) as kv:
        assert kv._ordered.lag(kv) == 0
        assert list(kv.scan()) == expected(START)
    with opened(tmp_path / "kv", "r") as kv:
        assert kv._ordered.lag(kv) == COUNT


def test_another_process_writes(tmp_path: Path) -> None:
    """A reader's scans see what is committed, of every size of change."""
    with opened(tmp_path / "kv") as kv:
        kv.update(START)
    reader = opened(tmp_path / "kv", "r")
    assert list(reader.scan()) == expected(START)

    def write(keys: list[bytes]) -> None:
        with opened(tmp_path / "kv") as kv:
            for key in keys:
                kv[key + b"!"] = b"new"
                del kv[key]

    model = dict(START)
    for count in (1, 3, 1000):
        keys = sorted(model)[:count]
        in_child(lambda keys=keys: write(keys))  # type: ignore[misc]
        for key in keys:
            model[key + b"!"] = b"new"
            del model[key]
        assert list(reader.scan()) == expected(model)
    reader.close()


def test_scanning_below_a_writer(tmp_path: Path) -> None:
    """Each scan is of one moment: whatever the writer is at, the keys in it are a run of its last hundred."""

    def write() -> threading.Thread:
        kv = opened(tmp_path / "kv")

        def roll() -> None:
            for number in range(1_000_000):
                kv[b"%06d" % number] = b"%d" % number
                if number >= 100:
                    del kv[b"%06d" % (number - 100)]

        made = threading.Thread(target=roll, daemon=True)
        made.start()
        return made

    with living_child(write), opened(tmp_path / "kv", "r") as reader:
        seen = rounds = 0
        while rounds < 50 or seen < 100:
            rounds += 1
            found = [(int(key), int(value)) for key, value in reader.scan()]
            assert all(key == value for key, value in found)
            first = found[0][0] if found else 0
            assert [key for key, _ in found] == list(range(first, first + len(found)))
            assert len(found) <= 101
            seen = max(seen, len(found))


def test_threads_scan_while_one_writes(kv: KVStore) -> None:
    """One list serves all."""
    wrong: list[object] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            found = [key for key, _ in kv.scan("00")]
            if found != sorted(set(found)) or len(found) < 900:
                wrong.append(found)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(300):
        kv[b"00%d new" % number] = b"x"
        kv.pop(b"%05d" % (number % 100), None)
    ended.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forked_child_waits_for_no_thread_of_the_parent(kv: KVStore) -> None:
    """One that was sorting when the process forked is not there to finish."""
    with opened(Path(kv.path), "r") as reader:
        list(reader.scan())
        kv[b"new"] = b"x"
        with reader._ordered._lock, reader._ordered._era_lock:
            found = in_child(lambda: list(reader.scan(values=False)))
        assert found == [*sorted(START), b"new"] == list(reader.scan(values=False))


def test_a_handle_that_is_behind_a_compaction_begins_anew(tmp_path: Path) -> None:
    """What it did not hear of is that keys were deleted: the deletions are gone, with what they deleted."""
    with opened(tmp_path / "kv") as kv:
        kv.update(START)
    reader = opened(tmp_path / "kv", "r")
    assert len(list(reader.scan())) == COUNT
    with opened(tmp_path / "kv") as kv:
        for key in list(START)[5:]:
            del kv[key]
        for number in range(3000):
            kv[b"filler"] = b"%d" % number
        left = dict(kv.items())
    with Log.open(tmp_path / "kv", flush_policy=MANUAL, segment_bytes=SEGMENT) as log:
        deleted = range(5, 2 * COUNT - 5)
        assert log.compact(lambda entry: entry.seq not in deleted).records_removed == len(deleted)
    assert list(reader.scan(values=False)) == sorted(left)
    reader.close()


def test_keys_whose_bringing_up_was_interrupted_are_read_anew(
    kv: KVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of it leaves a list that is not to be trusted; scans at work need theirs."""
    list(kv.scan())
    scan = kv.scan(values=False)
    kv[b"new"] = b"x"
    del kv[b"00000"]
    keys = kv._ordered._keys

    def torn(fresh: list[bytes]) -> None:
        keys._lists.clear()
        raise KeyboardInterrupt

    monkeypatch.setattr(keys, "update", torn)
    with pytest.raises(KeyboardInterrupt):
        kv.scan()
    assert list(scan) == sorted(START)
    assert list(kv.scan(values=False)) == [*sorted(START)[1:], b"new"]


@pytest.mark.parametrize("values", [True, False])
def test_closing_ends_a_scan_with_an_error(kv: KVStore, values: bool) -> None:
    scan = kv.scan() if values else kv.scan(values=False)
    next(scan)
    kv.close()
    with pytest.raises(Closed):
        next(scan)
    with pytest.raises(Closed):
        kv.scan()


def test_an_empty_store(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as kv:
        assert list(kv.scan()) == list(kv.scan(reverse=True)) == list(kv.scan(values=False)) == []
        kv[b"a"] = b"1"
        kv.clear()
        assert list(kv.scan()) == []


def test_a_store_that_cannot_be_read_is_not_left_open(tmp_path: Path) -> None:
    """The lock goes with the handle."""
    with opened(tmp_path / "kv") as kv:
        kv[b"key"] = b"value" * 100
    segment = next((tmp_path / "kv").glob("*.seg"))
    raw = bytearray(segment.read_bytes())
    at = raw.index(b"value" * 100)
    raw[at] ^= 1
    segment.write_bytes(raw)
    with pytest.raises(OSError, match="damaged"):
        KVStore.open(tmp_path / "kv", flush_policy=MANUAL, ordered=True)
    KVStore.open(tmp_path / "kv", flush_policy=MANUAL).close()


def test_what_a_compaction_removed_is_read_anew_only_for_deletions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Superseded values are no loss; it was sorted anew for those, too."""
    built: list[int] = []
    build = OrderedKeys._build

    def counted(self: OrderedKeys, store: KVStore, log: Log, stop: int) -> None:
        built.append(stop)
        build(self, store, log, stop)

    monkeypatch.setattr(OrderedKeys, "_build", counted)
    with opened(tmp_path / "kv") as kv, opened(tmp_path / "kv", "r") as reader:
        model = {b"%d" % number: b"1" for number in range(20)}
        kv.update(model)
        assert list(reader.scan()) == sorted(model.items())
        for turn in range(3):
            for number in range(10, 30):
                model[b"%d" % number] = kv[b"%d" % number] = bytes(SEGMENT // 8) + b"%d" % turn
        assert kv.compact().records_removed
        assert list(reader.scan()) == sorted(model.items())
        assert len(built) == 1
        del kv[b"5"], model[b"5"]
        kv.compact()
        assert list(reader.scan()) == sorted(model.items())
        assert len(built) == 2


@pytest.mark.parametrize("left", [True, False])
def test_what_is_cleared_while_the_keys_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    """And taken off the beginning of the log, some of it or all that there was. The scan begins anyhow."""
    real, cleared = note_presence, []

    def meanwhile(*arguments: Any) -> Any:
        if not cleared:
            kv.clear()
            kv[b"new"] = b"v" * 60_000
            kv[b"newer"] = b"v" * 60_000
            kv.flush()
            kv.compact()
            cleared.append(kv._log.first_seq)
        return real(*arguments)

    with opened(tmp_path / "kv") as kv:
        for number in range(300):
            kv[b"%d" % number] = b"v" * 1_000
        if left:
            kv.clear()
            kv[b"after"] = b"v"
        with monkeypatch.context() as patched, opened(tmp_path / "kv", "r") as reader:
            patched.setattr("mmapkv.ordered.note_presence", meanwhile)
            assert list(reader.scan(values=False)) == [b"new", b"newer"]
        assert cleared[0] > 200
