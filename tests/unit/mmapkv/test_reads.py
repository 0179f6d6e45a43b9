"""The ways of reading a value: copied, as a view, into a buffer, with its version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mmapio import MappedSlice, MemoryMappedFile
from mmapkv import BufferTooSmall, CorruptionError, KVStore, StoreError
from tests.unit.mmapkv.stores import opened
from tests.unit.mmaplog.damage import overwrite
from tests.unit.mmaplog.segment_file import segment_paths

LARGE = bytes(range(256)) * 2048  # 512 KiB, copied without the GIL
VALUES = {b"empty": b"", b"short": b"value", b"k" * 300: b"long key", b"large": LARGE}


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[KVStore]:
    """A store with values of every size."""
    with opened(tmp_path / "kv") as made:
        made.update(VALUES)
        made[b"gone"] = b"x"
        del made[b"gone"]
        yield made


@pytest.mark.parametrize("key", VALUES, ids=len)
def test_every_way_gives_the_same_value(kv: KVStore, key: bytes) -> None:
    """For bytes, and for the same key as another buffer."""
    value = VALUES[key]
    for wanted in (key, bytearray(key), memoryview(key), key.decode()):
        buffer = bytearray(len(value) + 3)
        assert kv[wanted] == kv.get(wanted) == value
        view = kv.get_view(wanted)
        assert isinstance(view, MappedSlice)
        assert view == value
        assert kv.get_into(wanted, buffer) == len(value)
        assert buffer == value + bytes(3)
        versioned = kv.get_versioned(wanted)
        assert versioned is not None
        assert versioned[0] == value


def test_keys_of_every_size(tmp_path: Path) -> None:
    """They are compared by words, of which the last two may overlap."""
    keys = [bytes(range(size)) for size in range(1, 130)] + [
        bytes(range(1, size + 1)) for size in range(1, 130)
    ]
    with opened(tmp_path / "kv") as kv:
        for number, key in enumerate(keys):
            kv[key] = b"%d" % number
        assert len(kv) == len(keys)
        assert [kv[key] for key in keys] == kv.get_many(keys) == [b"%d" % at for at in range(len(keys))]
        assert kv.get_many([key + b"\xff" for key in keys]) == [None] * len(keys)


@pytest.mark.parametrize("key", [b"missing", b"gone", b"", b"k" * 65_536, "missing"], ids=len)
def test_what_is_absent(kv: KVStore, key: bytes) -> None:
    """A default if there is a place for one; a buffer stays as it is."""
    marker = object()
    buffer = bytearray(b"as it was")
    assert kv.get(key) is kv.get_view(key) is kv.get_versioned(key) is kv.get_into(key, buffer) is None
    assert kv.get(key, marker) is kv.get_view(key, marker) is kv.get_versioned(key, marker) is marker
    assert buffer == b"as it was"


@pytest.mark.parametrize("method", ["get", "get_view", "get_versioned"])
def test_a_key_is_bytes_a_buffer_or_text(kv: KVStore, method: str) -> None:
    """Anything else is an error that says so."""
    with pytest.raises(TypeError, match="a key is bytes, another contiguous buffer or str, not int"):
        getattr(kv, method)(5)
    with pytest.raises(TypeError, match="not int"):
        kv.get_into(5, bytearray(5))  # type: ignore[arg-type]


def test_a_view_outlives_everything(tmp_path: Path) -> None:
    """Its value is changed and deleted, the writer rolls on, the store is closed and its files are gone."""
    kv = opened(tmp_path / "kv")
    kv[b"a"] = b"first"
    kv[b"b"] = b"second"
    views = [kv.get_view(b"a"), kv.get_view(b"b")]
    kv[b"a"] = b"other"
    del kv[b"b"]
    for number in range(300):
        kv[b"%d" % number] = bytes(1000)
    assert views == [b"first", b"second"]
    kv.close()
    for file in (tmp_path / "kv").iterdir():
        file.unlink()
    assert views == [b"first", b"second"]
    assert views[0] is not None
    assert memoryview(views[0]).tobytes() == b"first"


def test_a_view_cannot_be_written(kv: KVStore) -> None:
    """It is the log itself."""
    view = kv.get_view(b"short")
    assert view is not None
    memory = memoryview(view)
    assert memory.readonly
    with pytest.raises(TypeError):
        memory[0] = 1


@pytest.mark.parametrize("room", [0, 1, 4])
def test_a_buffer_that_is_too_small_stays_as_it_was(kv: KVStore, room: int) -> None:
    """The error says how much is needed."""
    buffer = bytearray(b"x" * room)
    with pytest.raises(BufferTooSmall, match=f"the value has 5 bytes, the buffer {room}") as raised:
        kv.get_into(b"short", buffer)
    assert isinstance(raised.value, StoreError)
    assert isinstance(raised.value, ValueError)
    assert buffer == b"x" * room


def test_get_into_fills_exactly(kv: KVStore) -> None:
    """A buffer of the very size, none for an empty value, a part of one."""
    exact = bytearray(5)
    assert kv.get_into(b"short", exact) == 5
    assert exact == b"value"
    assert kv.get_into(b"empty", bytearray()) == 0
    whole = bytearray(b"x" * 9)
    assert kv.get_into(b"short", memoryview(whole)[2:]) == 5
    assert whole == b"xxvaluexx"


@pytest.mark.parametrize(
    "buffer", [b"bytes", memoryview(b"bytes"), memoryview(bytearray(10))[::2], "text", None]
)
def test_get_into_wants_a_writable_contiguous_buffer(kv: KVStore, buffer: object) -> None:
    """Whether the key is there or not: a mistake does not wait for data to show."""
    for key in (b"short", b"missing"):
        with pytest.raises((TypeError, BufferError)):
            kv.get_into(key, buffer)  # type: ignore[arg-type]


def test_get_into_a_mapped_file(kv: KVStore, tmp_path: Path) -> None:
    """From one file to another without an object in between."""
    with MemoryMappedFile.create_rw(tmp_path / "target", 1 << 20) as target:
        with target.as_slice_mut(0, 1 << 20) as view:
            assert kv.get_into(b"large", view) == len(LARGE)
        assert target.read_bytes(0, len(LARGE)) == LARGE


def test_versions_grow_with_every_write(kv: KVStore) -> None:
    """Of whatever key; and each reader sees the same ones."""
    seen = []
    for key, value in [(b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"a", b"3")]:
        kv[key] = value
        found = kv.get_versioned(key)
        assert found is not None
        assert found[0] == value
        seen.append(found[1])
    assert seen == sorted(set(seen))
    del kv[b"a"]
    kv[b"a"] = b"back"
    back = kv.get_versioned(b"a")
    assert back is not None
    assert back[1] > seen[-1] + 1
    with opened(Path(kv.path), "r") as reader:
        assert reader.get_versioned(b"a") == back
        assert reader.get_versioned(b"b") == (b"2", seen[1])


def spoilt(path: Path) -> None:
    """Flip a byte of the only value in a closed store."""
    (segment,) = segment_paths(path)
    at = segment.read_bytes().index(b"precious")
    overwrite(segment, b"P", at)


@pytest.mark.parametrize(
    "read",
    [
        lambda kv: kv[b"a"],
        lambda kv: kv.get(b"a"),
        lambda kv: kv.get_view(b"a"),
        lambda kv: kv.get_into(b"a", bytearray(20)),
        lambda kv: kv.get_versioned(b"a"),
        lambda kv: kv.get_many([b"b", b"a"]),
        lambda kv: kv.get_many([b"a"], view=True),
        lambda kv: kv.get_many_into([b"a"], bytearray(20)),
    ],
)
def test_damage_is_found_by_every_way_of_reading(tmp_path: Path, read) -> None:  # type: ignore[no-untyped-def]
    """Unless the store was opened without verification."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"a"] = b"precious"
    spoilt(path)
    with opened(path, "r") as kv, pytest.raises(CorruptionError, match="does not match its checksum"):
        read(kv)
    with KVStore.open(path, "r", verify=False) as kv:
        assert kv[b"a"] == kv.get_view(b"a") == kv.get_many([b"a"])[0] == b"Precious"
        read(kv)
