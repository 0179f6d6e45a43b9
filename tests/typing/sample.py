"""A program that uses the three packages in every way that is right. It is both type-checked and run."""

from __future__ import annotations

import array
from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from datetime import timedelta
from pathlib import Path
from typing import Any, assert_type

import mmapio
from mmapio import (
    AtomicU64,
    Builder,
    ChangeEvent,
    FlushPolicy,
    MappedSlice,
    MappedSliceMut,
    MemoryMappedFile,
    MmapAdvice,
    MmapMode,
    Ordering,
    Segment,
    SegmentMut,
    SharedMutex,
    TouchHint,
)
from mmapkv import Batch, KVStore, Namespace, Snapshot, Transaction, TypedStore, dbm
from mmapkv.codecs import Bytes, Compressed, Json, Text
from mmaplog import Consumer, ConsumerInfo, Entry, GroupMember, Log
from mmaplog.consumer import slowest

__all__ = ["use_file", "use_log", "use_mapping", "use_store"]


def use_store(directory: Path) -> None:
    """Open a store by each kind of path, and read and write it by each kind of key and value."""
    KVStore.open(str(directory), "n").close()
    KVStore.open(bytes(directory), "w", flush_policy=FlushPolicy.ALWAYS, segment_bytes=1 << 20).close()
    with KVStore.open(directory, flush_policy=FlushPolicy.every_millis(100), verify=False) as kv:
        assert_type(kv, KVStore)
        assert_type(kv.path, str)
        _write(kv)
        _read(kv)
        _as_mapping(kv)
        _in_parts(kv)
        _take_away(kv)
        _change(kv)
        assert_type(kv.stats(), dict[str, int])
        kv.flush()
        kv.sync()
    assert_type(kv.closed, bool)
    with KVStore.open(directory, "w", codec=Compressed(Text(), 9)) as texts:
        assert_type(texts, TypedStore[bytes, str])
        texts["a"] = "text"
        assert assert_type(texts.get(b"a", None), str | None) == "text"
        assert assert_type(texts.store, KVStore)[b"a"] != b"text"
    with dbm.open(directory, "n") as db:
        assert_type(db, dbm.Database)
        db["a"] = "b"
        assert assert_type(db.keys(), list[bytes]) == [assert_type(db.firstkey(), bytes | None)]
        assert assert_type(db.get("a"), bytes | None) == b"b"
    assert assert_type(dbm.whichdb(directory), str | None) == "mmapkv.dbm"


def _write(kv: KVStore) -> None:
    kv[b"bytes"] = b"1"
    kv["str"] = "2"
    kv[bytearray(b"bytearray")] = memoryview(b"3")
    kv[memoryview(b"memoryview")] = array.array("B", b"4")
    kv.put("put", bytearray(b"5"))
    kv.put(b"durable", "6", durable=True)
    kv.update({"a": b"7", "b": b"8"}, c="9")
    kv.update({b"d": bytearray(b"10")})
    kv.update([("e", b"11"), (b"f", "12")])
    kv.update(g=b"13")
    assert_type(kv.setdefault(b"h", b"14"), bytes)


def _change(kv: KVStore) -> None:
    kv.put("expiring", b"6", ttl=5)
    kv.put("expiring", b"6", ttl=timedelta(hours=1), durable=True)
    assert_type(kv.add("added", b"1", ttl=0.5), bool)
    assert_type(kv.replace("added", bytearray(b"2")), bool)
    assert_type(kv.append("added", memoryview(b"3")), int)
    assert_type(kv.incr("count", 2, initial=5), int)
    assert_type(kv.compare_and_set("added", "4", expected=None), bool)
    assert_type(kv.compare_and_set("added", None, version=5), bool)
    assert_type(kv.touch("added", timedelta(1)), bool)
    assert_type(kv.ttl("added"), float | None)
    assert_type(kv.sweep(), int)
    kv.put_many({"a": b"1", "b": b"2"}, ttl=5, durable=True)
    kv.put_many([("a", b"1"), (b"b", bytearray(b"2"))])
    assert_type(kv.delete_many(["never", b"neither"]), int)
    with kv.batch(durable=True) as batch:
        assert_type(batch, Batch)
        batch.put("a", b"7", ttl=None)
        batch["b"] = "8"
        batch.delete("never")
    with kv.transaction() as tx:
        assert_type(tx, Transaction)
        assert_type(tx["a"], bytes)
        assert_type(tx.get("b", 5), bytes | int)
        assert_type(tx.get("b", default=None), bytes | None)
        assert_type(tx.get_many(["a", b"b"]), list[bytes | None])
        assert_type(tx.get_many(["a"], default=b""), list[bytes])
        assert_type(tx.incr("count", 2), int)
        assert_type(tx.append("text", b"x"), int)
        assert_type(tx.delete_many(["never"]), int)
        tx.put_many({"c": "1"}, ttl=5)
        tx.update({"c": b"1"}, d="2")
        tx["b"] = tx["a"]
    assert_type(kv.retry(lambda tx: len(tx)), int)
    with kv.snapshot() as snapshot:
        assert_type(snapshot, Snapshot)
        assert_type(snapshot.get("a"), bytes | None)
        assert_type(snapshot.get("a", default=5), bytes | int)
        assert_type(snapshot.get_many(["a"], 5), list[bytes | int])
        assert_type(dict(snapshot), dict[bytes, bytes])


def _read(kv: KVStore) -> None:
    assert assert_type(kv["bytes"], bytes) == b"1"
    assert assert_type(kv[memoryview(b"str")], bytes) == b"2"
    assert assert_type(kv.get("bytearray"), bytes | None) == b"3"
    assert assert_type(kv.get(b"absent", None), bytes | None) is None
    assert assert_type(kv.get(b"absent", b""), bytes) == b""
    assert assert_type(kv.get("absent", 0), bytes | int) == 0
    assert assert_type(kv.get("absent", default=0), bytes | int) == 0
    assert assert_type(bytearray(b"memoryview") in kv, bool)
    assert assert_type(len(kv), int) == 14
    assert kv["c"] + kv["d"] == b"910"


def _as_mapping(kv: KVStore) -> None:
    mutable: MutableMapping[bytes, bytes] = kv
    mapping: Mapping[bytes, bytes] = mutable
    assert dict(mapping) == dict(assert_type(kv.items(), ItemsView[bytes, bytes]))
    assert_type(iter(kv), Iterator[bytes])
    assert_type(kv.keys(), KeysView[bytes])
    assert_type(kv.values(), ValuesView[bytes])
    assert all(key.isascii() and value.isdigit() for key, value in kv.items())
    assert assert_type(sorted(kv)[0], bytes) == b"a"


def _in_parts(kv: KVStore) -> None:
    part = kv.namespace("part/")
    assert_type(part, Namespace[bytes, bytes])
    part["a"] = b"text"
    part.namespace(b"in it/").put(bytearray(b"k"), b"v", durable=True)
    files: MutableMapping[str, bytes] = part.typed(Bytes(), keys=str)
    assert files == {"a": b"text", "in it/k": b"v"}
    objects = kv.typed(Json(), keys=str)
    assert_type(objects, TypedStore[str, Any])
    texts = part.typed(Text())
    assert_type(texts, Namespace[bytes, str])
    assert assert_type(texts.pop("a"), str) == "text"
    assert assert_type(texts.popitem(), tuple[bytes, str]) == (b"in it/k", "v")
    for key, value in assert_type(texts.items(), ItemsView[bytes, str]):
        print(key, value)


def _take_away(kv: KVStore) -> None:
    del kv["a"], kv[bytearray(b"b")]
    assert assert_type(kv.pop("c"), bytes) == b"9"
    assert assert_type(kv.pop(bytearray(b"c"), b"none"), bytes) == b"none"
    assert assert_type(kv.pop("c", None), bytes | None) is None
    assert assert_type(kv.popitem(), tuple[bytes, bytes]) == (b"bytes", b"1")
    kv.clear()
    assert not kv


def use_log(directory: Path) -> None:
    """Append to a log, replay it, read what it tells of itself."""
    with Log.open(directory, "c", flush_policy=FlushPolicy.MANUAL, timestamps=True) as log:
        assert_type(log, Log)
        assert assert_type(log.append(b"first"), int) == 0
        assert log.append(memoryview(b"second"), durable=True) == 1
        assert assert_type(log.committed, int) == assert_type(log.durable, int) == len(log)
        for entry in log.replay(0, 2, verify=False):
            assert_type(entry, Entry)
            assert_type(entry.seq, int)
            assert_type(entry.timestamp, int | None)
            assert_type(entry.payload, MappedSlice)
        assert [bytes(each.payload) for each in log.replay()] == [b"first", b"second"]
        assert assert_type(log.path, str) == str(directory)
        _consume(log)


def _consume(log: Log) -> None:
    with log.consumer("c", start=1, auto_commit=True, too_old="skip", timeout=0, verify=False) as consumer:
        assert_type(consumer, Consumer)
        assert [assert_type(entry, Entry).seq for entry in consumer] == [1]
        assert assert_type(consumer.poll(), Entry | None) is None
        assert not assert_type(consumer.wait(0), bool)
        consumer.commit(2, durable=True)
        assert assert_type(consumer.position, int) == assert_type(consumer.committed, int) == 2
        consumer.seek(0)
        assert assert_type(consumer.lag(), int) == 0
    with log.group("g", batch=1) as member:
        assert_type(member, GroupMember)
        member.poll()
        assert assert_type(member.claims, list[range]) == [range(1)]
        member.commit()
        assert assert_type(member.committed, int) == 1
    assert assert_type(log.consumers(), list[ConsumerInfo])[0].committed == 2
    assert_type(slowest(log), int | None)
    log.remove_consumer("c")


def use_file(path: Path) -> None:
    """Map a file, write and view it."""
    with MemoryMappedFile.create_rw(path, 4096) as mapped:
        assert_type(mapped, MemoryMappedFile)
        assert_type(mapped.mode, MmapMode)
        mapped.update_region(0, bytearray(b"hello"))
        view = mapped.as_slice(0, 5)
        assert assert_type(view[0], int) == ord("h")
        assert assert_type(view[1:3], MappedSlice) == b"el"
        assert memoryview(view)[4] == assert_type(view.tobytes(), bytes)[4]
        assert assert_type(mapped.read_bytes(0, 5), bytes) == view
        mapped.resize(2 * len(mapped))
        mapped.flush()
    MemoryMappedFile.open_ro(str(path), reserve=1 << 20).close()


def use_mapping(path: Path) -> None:
    """The rest of what a mapped file can do."""
    builder = MemoryMappedFile.builder(path).mode(MmapMode.READ_WRITE).size(1 << 16).huge_pages()
    assert_type(builder, Builder[MemoryMappedFile])
    with builder.touch_hint(TouchHint.EAGER).flush_policy(FlushPolicy.every_writes(3)).create() as mapped:
        _in_pieces(mapped)
        _words(mapped)
        _pages(mapped)
    with mmapio.load_mmap(path) as mapped, mapped.reader() as reader:
        assert assert_type(reader.read(1), bytes) == b"\x07"
    with MemoryMappedFile.open_cow(path) as mapped:
        mapped[0:2] = b"ab"
        assert assert_type(mapped[0], int) == ord("a")
    mmapio.write_mmap(path, 0, b"x")
    assert_type(mmapio.copy_mmap(path, path.with_suffix(".copy")), str)
    with MemoryMappedFile.open_or_create(path, 1).unmap() as file:
        assert file.read(1) == b"x"
        with MemoryMappedFile.from_file(file, MmapMode.READ_ONLY) as mapped:
            assert assert_type(mapped[:1], bytes) == b"x"
    mmapio.delete_mmap(path)
    assert_type(mmapio.features(), dict[str, object])
    assert mmapio.align_up(1, mmapio.page_size()) == mmapio.PAGE_SIZE


def _in_pieces(mapped: MemoryMappedFile) -> None:
    with mapped.as_slice_mut(0, 2) as view:
        assert_type(view, MappedSliceMut)
        view[0] = 7
        view[1:2] = bytearray(b"\x08")
    for chunk in mapped.chunks(4096):
        assert_type(chunk, MappedSlice)
    for copy in mapped.pages_owned():
        assert_type(copy, bytes)
    mapped.chunks_mut(4096).for_each_mut(lambda offset, view: assert_type(view, MappedSliceMut).tobytes())
    segment = Segment(mapped, 0, 16)
    assert assert_type(segment.as_slice(), MappedSlice)[0] == 7
    SegmentMut(mapped, 16, 16).write(memoryview(b"written"))
    assert assert_type(mapped.read_into(0, bytearray(4)), int) == 4


def _words(mapped: MemoryMappedFile) -> None:
    word = mapped.atomic_u64(64)
    assert_type(word, AtomicU64)
    assert assert_type(word.fetch_add(1, Ordering.RELAXED), int) == 0
    assert assert_type(word.compare_exchange(1, 2), tuple[bool, int]) == (True, 1)
    assert assert_type(word.wait(1, timeout=0.1), bool)
    assert_type(word.notify(), int)
    assert [each.load() for each in mapped.atomic_u32_slice(64, 2)] == [2, 0]
    with SharedMutex(mapped, 128) as mutex:
        assert assert_type(mutex.owner_died, bool) is False


def _pages(mapped: MemoryMappedFile) -> None:
    mapped.advise(0, None, MmapAdvice.RANDOM)
    mapped.prefetch_range(0, 4096)
    assert assert_type(mapped.resident(), int) >= 0
    mapped.punch_hole(4096, 4096)
    assert_type(mapped.huge_pages, mmapio.HugePages)
    assert assert_type(mapped.pending_bytes, int) >= 0
    seen: list[ChangeEvent] = []
    with mapped.watch(seen.append) as handle:
        assert_type(handle.is_active, bool)
