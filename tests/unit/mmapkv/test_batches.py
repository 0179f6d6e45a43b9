"""Batches: every reader in every process sees all of one or nothing, and so does who opens after a crash."""

from __future__ import annotations

import gc
import logging
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmapkv import KVStore, RecordTooLarge, StoreError
from tests.support.plain_reader import check_store
from tests.unit.mmapio.processes import in_child, killed_after, run_python
from tests.unit.mmapio.volume import fill, small_volume  # noqa: F401
from tests.unit.mmapkv.colliding_keys import HashInverter, seed_of
from tests.unit.mmapkv.stores import SEGMENT, agreeing, contents, lose, opened
from tests.unit.mmapkv.test_threads import COMMON

# The state of the index: `turn`, then two pairs of a number and a count.
_STATE = struct.Struct("<5Q")
_STATE_OFFSET = 4096


def publish(path: Path, seq: int, count: int) -> None:
    """Have the index say that it holds the records below `seq`: the middle of a commit, or its end."""
    with (path / "INDEX").open("r+b") as file:
        file.seek(_STATE_OFFSET)
        turn, *_ = _STATE.unpack(file.read(_STATE.size))
        file.seek(_STATE_OFFSET)
        file.write(_STATE.pack(turn, seq, count, seq, count))


@pytest.mark.parametrize("size", [1, 2, 100, 3000])
def test_a_store_in_batches_is_a_dict(tmp_path: Path, size: int) -> None:
    """Splits, rolled segments and repeated keys, in batches of puts and of deletions."""
    rng = random.Random(size)
    path = tmp_path / "kv"
    model: dict[bytes, bytes] = {}
    with opened(path) as kv:
        for _ in range(max(3, 60 // size)):
            pairs = [(b"%d" % rng.randrange(4 * size), rng.randbytes(rng.randrange(40))) for _ in range(size)]
            kv.put_many(rng.choice((list, iter, dict))(pairs))
            model.update(pairs)
            gone = [b"%d" % rng.randrange(4 * size) for _ in range(size // 2)]
            assert kv.delete_many(gone) == len(set(gone) & set(model))
            for key in gone:
                model.pop(key, None)
            assert agreeing(kv) == model
            assert check_store(path) == model
    assert contents(path) == model
    lose(path, "INDEX", "CONTROL")
    assert contents(path, "w") == model


def test_many_splits_in_one_batch(tmp_path: Path) -> None:
    """All of them before the log is written: 40,000 keys into an index of one segment."""
    path = tmp_path / "kv"
    model = {b"%d" % number: b"%d" % -number for number in range(40_000)}
    with opened(path) as kv:
        kv.put_many(model)
        assert kv.stats()["index_segments"] > 10
        assert agreeing(kv) == model
        assert check_store(path) == model


def test_known_keys_in_a_batch_with_splits(tmp_path: Path) -> None:
    """Their entries are copied while room for the others is made; among them deletions and repeated keys."""
    path = tmp_path / "kv"
    rng = random.Random(1)
    model = {b"%d" % number: b"before" for number in range(3_000)}
    with opened(path) as kv:
        kv.put_many(model)
        before = kv.stats()["index_segments"]
        with kv.batch() as batch:
            for _ in range(40_000):
                key = b"%d" % rng.randrange(50_000)
                if rng.random() < 0.2:
                    batch.delete(key)
                    model.pop(key, None)
                else:
                    batch[key] = model[key] = rng.randbytes(3)
        assert kv.stats()["index_segments"] >= 8 * before
        assert agreeing(kv) == model
        assert check_store(path) == model
        assert kv.delete_many(list(model)) == len(model)
        assert agreeing(kv) == {}


@pytest.mark.parametrize("count", [7, 8, 40, 63, 64, 200])
def test_keys_of_one_bucket(tmp_path: Path, count: int) -> None:
    """A chain, splits that do not part them, and beyond 63 a new seed; with some of them there before."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        twins = list(HashInverter(seed_of(path)).twins(3, 24, 9, count))
        model = {key: b"%d" % number for number, key in enumerate(twins)}
        for key in twins[: count // 3]:
            kv[key] = b"before"
        kv.put_many(model)
        assert agreeing(kv) == model
        assert check_store(path) == model


def test_overflow_lines_of_one_segment(tmp_path: Path) -> None:
    """63 of them are for all its buckets, and one batch wants more."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        inverter = HashInverter(seed_of(path))
        model = {key: b"1" for bucket in range(70) for key in inverter.twins(3, 24, bucket, 9)}
        kv.put_many(model)
        assert agreeing(kv) == model
        assert check_store(path) == model


def test_a_block_commits_at_its_end(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as kv:
        kv["old"] = "1"
        with kv.batch(durable=True) as batch:
            batch.put("a", "1")
            batch["b"] = bytearray(b"2")
            batch.delete("old")
            del batch["absent"]
            batch["a"] = "3"
            assert len(batch) == 5
            assert dict(kv) == {b"old": b"1"}
        assert dict(kv) == {b"a": b"3", b"b": b"2"}
        assert kv.stats()["durable"] == kv.stats()["records"] == 4
        for late in (batch.__enter__, lambda: batch.put("c", "1"), lambda: batch.delete("a")):
            with pytest.raises(StoreError, match="the batch has ended"):
                late()


def test_an_exception_drops_all(tmp_path: Path) -> None:
    def pairs() -> Iterator[tuple[str, str]]:
        yield "a", "2"
        raise ZeroDivisionError

    uses: list[Callable[[], object]] = [
        lambda: kv.put_many(pairs()),
        lambda: kv.put_many([("a", "2"), ("b", 5)]),  # type: ignore[list-item]
        lambda: kv.put_many([("a", "2"), ("", "")]),
        lambda: kv.delete_many(["a", None]),  # type: ignore[list-item]
    ]
    with opened(tmp_path / "kv") as kv:
        kv["a"] = "1"
        with pytest.raises(ZeroDivisionError), kv.batch() as batch:
            batch["a"] = "2"
            raise ZeroDivisionError
        for use in uses:
            with pytest.raises((ZeroDivisionError, TypeError, ValueError)):
                use()
        assert kv.stats()["records"] == 1
        assert dict(kv) == {b"a": b"1"}


def test_one_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """Of the same value over and over, which takes no memory."""
    value = bytes(60 << 20)
    with opened(tmp_path / "kv") as kv:
        with pytest.raises(
            RecordTooLarge, match=r"9 records of 566231328 bytes in all are more than the 536866816"
        ):
            kv.put_many([(str(number), value) for number in range(9)])
        assert kv.stats()["records"] == 0
        kv["a"] = "1"
        assert dict(kv) == {b"a": b"1"}


def test_a_batch_larger_than_a_segment(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    model = {b"%d" % number: bytes([number]) * 9000 for number in range(200)}
    with opened(path) as kv:
        kv["before"] = "1"
        kv.put_many(model)
        kv["after"] = "1"
    assert check_store(path) == contents(path) == {b"before": b"1", **model, b"after": b"1"}


@pytest.mark.parametrize("compacted", [False, True], ids=["opened", "compacted"])
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_a_first_batch_larger_than_a_segment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shared: bool, compacted: bool
) -> None:
    """The segment that was to be the first has no record, and goes; the index does not know it any more."""
    path = tmp_path / "kv"
    model = {b"%d" % number: bytes([number]) * 9000 for number in range(200)}
    with caplog.at_level(logging.WARNING, "mmapkv"):
        with KVStore.open(path, segment_bytes=SEGMENT, compaction=False, shared=shared) as kv:
            kv.put_many(model)
            if compacted:
                del kv[b"7"], model[b"7"]
                assert kv.compact().records_removed == 2
                assert agreeing(kv) == model
        assert contents(path, "w") == model
    assert not caplog.records


@pytest.mark.parametrize("keeps", [False, True], ids=["new keys", "known keys"])
def test_a_full_disk_writes_nothing(small_volume: Path, keeps: bool) -> None:  # noqa: F811
    """Log or index: whatever is out of space, it is so before anything is written."""
    path = small_volume / "kv"
    number = 0
    with opened(path) as kv:
        ballast = fill(small_volume, leaving=1_500_000)
        while True:
            pairs = {
                b"%d" % (number % 3000 if keeps else number + at): b"x" * (500 if keeps else 20)
                for at in range(2000)
            }
            before = len(kv)
            try:
                kv.put_many(pairs)
            except OSError as error:
                assert "No space left" in str(error)
                break
            number += 2000
        assert len(kv) == before
        assert check_store(path) == agreeing(kv)
        ballast.unlink()
        kv.put_many(pairs)
        assert check_store(path) == agreeing(kv)


def half_way(path: Path, kv: KVStore) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """Commit a batch, and take back the store that makes it visible. What was before and what comes."""
    kv.put_many({"changed": "1", "deleted": "1", "kept": "1"})
    before, seq, count = dict(kv), kv.stats()["committed"], len(kv)
    with kv.batch() as batch:
        batch["changed"] = "2"
        batch["new"] = "2"
        batch.delete("deleted")
    after = dict(kv)
    publish(path, seq, count)
    return before, after


def test_readers_see_none_of_what_is_not_complete(tmp_path: Path) -> None:
    """The entries are there, the log has all, but `applied` is not published: they step down from each."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        before, after = half_way(path, kv)
        with opened(path, "r") as reader:
            assert agreeing(reader) == before
            assert reader.snapshot() == before
            assert reader.get("new") is None
            assert in_child(lambda: contents(path)) == before
            publish(path, 6, 3)
            assert agreeing(reader) == after
            assert in_child(lambda: contents(path)) == after


@pytest.mark.parametrize("entries", ["all", "none", "some"])
def test_a_writer_killed_in_the_middle_of_one(tmp_path: Path, entries: str) -> None:
    """What was committed to the log is entered by the next, whatever the index had of it."""
    path = tmp_path / "kv"

    def write() -> KVStore:
        kv = opened(path)
        kv.put_many({"changed": "1", "deleted": "1", "kept": "1"})
        shutil.copyfile(path / "INDEX", tmp_path / "before")
        with kv.batch() as batch:
            batch["changed"] = "2"
            batch["new"] = "2"
            batch.delete("deleted")
        return kv

    killed_after(write)
    whole, before = (path / "INDEX").read_bytes(), (tmp_path / "before").read_bytes()
    differing = [at for at in range(204_800, len(whole), 8) if whole[at : at + 8] != before[at : at + 8]]
    assert len(differing) == 3
    taken = {"all": differing, "none": [], "some": differing[1:2]}[entries]
    data = bytearray(before)
    for at in taken:
        data[at : at + 8] = whole[at : at + 8]
    with (path / "INDEX").open("r+b") as file:
        file.write(data)
    expected = {b"changed": b"2", b"kept": b"1", b"new": b"2"}
    assert check_store(path) == expected
    assert contents(path, "w") == expected
    assert check_store(path) == expected


def test_readers_of_other_processes_see_whole_batches(tmp_path: Path) -> None:
    """While one is committed after the other without a pause: keys have one value, and come together."""
    program = COMMON + (
        "import os\n"
        "kv = open_store()\n"
        "names = [b'key-%d' % number for number in range(20)]\n"
        "kv.put_many(dict.fromkeys(names, b'0'))\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    with KVStore.open(path, 'r') as reader:\n"
        "        seen = 0\n"
        "        while seen < 1500:\n"
        "            values = [reader.get(name) for name in names]\n"
        "            numbers = [int(value) for value in values if value is not None]\n"
        "            if numbers != sorted(numbers): os._exit(1)\n"
        "            if len(set(dict(reader.items()).values())) > 1: os._exit(2)\n"
        "            if len(reader) not in (0, 20) or len(list(reader)) not in (0, 20): os._exit(3)\n"
        "            seen = max(numbers, default=seen)\n"
        "    os._exit(0)\n"
        "for number in range(1, 1501):\n"
        "    if number % 3 == 0: kv.delete_many(names)\n"
        "    kv.put_many(dict.fromkeys(names, b'%d' % number))\n"
        "answer(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert run_python(program, str(tmp_path / "kv"), "FlushPolicy.NEVER") == 0


def test_threads_with_batches(tmp_path: Path) -> None:
    """Of several writers, with single puts between, and readers that must see each as a whole."""
    program = COMMON + (
        "kv = open_store()\n"
        "names = [b'key-%d' % number for number in range(50)]\n"
        "def write():\n"
        "    for number in range(120):\n"
        "        kv.put_many(dict.fromkeys(names, b'%d-%d' % (threading.get_ident(), number) * 20))\n"
        "        kv[b'%d-%d' % (threading.get_ident(), number)] = b'x' * 100\n"
        "def read():\n"
        "    for number in range(200):\n"
        "        found = dict(kv.snapshot())\n"
        "        assert len({found.get(name) for name in names}) == 1\n"
        "errors = together(write, write, write, read, read)\n"
        "answer([repr(errors), len(kv), len({kv[name] for name in names})])\n"
    )
    assert run_python(program, str(tmp_path / "kv"), "FlushPolicy.NEVER") == ["[]", 410, 1]


def test_a_thread_reads_while_a_large_batch_is_planned(tmp_path: Path) -> None:
    """Which lets it run in the middle: of two keys the one that is read later is never the older one."""
    program = COMMON + (
        "kv = open_store()\n"
        "names = [b'key-%d' % number for number in range(30_000)]\n"
        "kv.put_many(dict.fromkeys(names, b'0'))\n"
        "def write():\n"
        "    for number in range(1, 8):\n"
        "        others = [b'%d-%d' % (number, at) for at in range(9000)]\n"
        "        kv.put_many(dict.fromkeys(names + others, b'%d' % number))\n"
        "def read():\n"
        "    while int(kv[names[7]]) < 7:\n"
        "        first, last = int(kv[names[0]]), int(kv[names[-1]])\n"
        "        assert first <= last <= int(kv[names[0]])\n"
        "        count = len(kv)\n"
        "        assert count % 9000 == 3000, count\n"
        "errors = together(write, read)\n"
        "answer([repr(errors), len(kv)])\n"
    )
    assert run_python(program, str(tmp_path / "kv"), "FlushPolicy.NEVER") == ["[]", 93_000]


def test_a_destructor_that_writes_between(tmp_path: Path) -> None:
    """Objects die while a batch is made and committed; what they do to the store is no part of it."""
    path = tmp_path / "kv"
    written = []

    class Dying:
        def __init__(self, kv: KVStore, number: int) -> None:
            self.kv, self.number = kv, number
            self.cycle = self

        def __del__(self) -> None:
            self.kv[b"died-%d" % self.number] = b"1"
            written.append(self.number)

    def pairs(kv: KVStore) -> Iterator[tuple[bytes, bytes]]:
        for number in range(3000):
            Dying(kv, number)
            yield b"%d" % number, b"x"

    with opened(path) as kv:
        kv.put_many(pairs(kv))
        gc.collect()
        model = agreeing(kv)
        assert {key for key in model if key.startswith(b"died")} == {
            b"died-%d" % number for number in written
        }
        assert sum(not key.startswith(b"died") for key in model) == 3000
        assert check_store(path) == model


def test_nothing_is_added_to_a_batch_that_is_being_committed(tmp_path: Path) -> None:
    """Another thread may be about to; a commit lets go of the GIL."""
    with opened(tmp_path / "kv") as kv:
        batch = kv.batch()
        batch["a"] = "1"
        kv._commit(batch)
        with pytest.raises(StoreError, match="the batch has ended"):
            batch["b"] = "2"
        assert dict(kv) == {b"a": b"1"}


def test_one_key_is_not_many(tmp_path: Path) -> None:
    """Its characters would be deleted, and bytes are refused by what they are made of."""
    with opened(tmp_path / "kv") as kv:
        kv.update({"a": "1", "b": "2", "ab": "3"})
        with pytest.raises(TypeError, match=r"pass \['ab'\]"):
            kv.delete_many("ab")
        assert len(kv) == 3
