"""A program that uses the three packages in every way that is right. It is both type-checked and run."""

from __future__ import annotations

import array
from collections.abc import ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from pathlib import Path
from typing import assert_type

from mmapio import FlushPolicy, MappedSlice, MemoryMappedFile, MmapMode
from mmapkv import KVStore
from mmaplog import Entry, Log

__all__ = ["use_file", "use_log", "use_store"]


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
        _take_away(kv)
        assert_type(kv.stats(), dict[str, int])
        kv.flush()
        kv.sync()
    assert_type(kv.closed, bool)


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


def _read(kv: KVStore) -> None:
    assert assert_type(kv["bytes"], bytes) == b"1"
    assert assert_type(kv[memoryview(b"str")], bytes) == b"2"
    assert assert_type(kv.get("bytearray"), bytes | None) == b"3"
    assert assert_type(kv.get(b"absent", None), bytes | None) is None
    assert assert_type(kv.get(b"absent", b""), bytes) == b""
    assert assert_type(kv.get("absent", 0), bytes | int) == 0
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
