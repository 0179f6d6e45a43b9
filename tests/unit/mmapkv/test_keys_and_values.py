"""What may be a key or a value, and what is refused before anything is written."""

from __future__ import annotations

import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmapio import MemoryMappedFile, MmapIoError
from mmapkv import InvalidKey, KVStore, StoreError, ValueTooLarge
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapkv.stores import agreeing, contents, opened

KEY_MAX = 65_535
VALUE_MAX = (4 << 30) - (1 << 20)


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[KVStore]:
    """An empty store."""
    with opened(tmp_path / "kv") as made:
        yield made


FORMS = [
    ("bytes", lambda data: data),
    ("bytearray", bytearray),
    ("memoryview", memoryview),
    ("part of a memoryview", lambda data: memoryview(b"<" + data + b">")[1:-1]),
    ("array", lambda data: array.array("B", data)),
    ("words", lambda data: memoryview(data).cast("H")),
    ("str", lambda data: data.decode()),
    ("subclass of bytes", type("Bytes", (bytes,), {})),
    ("subclass of str", lambda data: type("Str", (str,), {})(data.decode())),
]


@pytest.mark.parametrize("form", [form for _, form in FORMS], ids=[name for name, _ in FORMS])
def test_every_buffer_and_str_is_taken_and_comes_back_as_bytes(kv: KVStore, form: object) -> None:
    """All forms of the same bytes are the same key."""
    key, value = "clé-x".encode(), b"value!"
    kv[form(key)] = form(value)  # type: ignore[operator]
    assert agreeing(kv) == {key: value}
    for _, other in FORMS:
        assert kv[other(key)] == kv.get(other(key)) == value
        assert other(key) in kv
        assert type(kv[other(key)]) is bytes
    assert kv.pop(form(key)) == value  # type: ignore[operator]
    assert len(kv) == 0


def test_what_is_stored_is_a_copy(kv: KVStore) -> None:
    """Changing a buffer afterwards must not change the store, nor its index."""
    key, value = bytearray(b"key"), bytearray(b"value")
    kv[key] = value
    key[:], value[:] = b"yek", b"eulav"
    assert agreeing(kv) == {b"key": b"value"}


def test_a_mapped_slice_is_a_buffer_too(tmp_path: Path, kv: KVStore) -> None:
    """A value may come straight from another file."""
    with MemoryMappedFile.create_rw(tmp_path / "file", 100) as mapped:
        mapped.update_region(0, b"key value")
        kv[mapped.as_slice(0, 3)] = mapped.as_slice(4, 5)
    assert kv[b"key"] == b"value"


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 16, 255, 256, 4096, KEY_MAX - 1, KEY_MAX])
def test_keys_of_every_length(tmp_path: Path, kv: KVStore, size: int) -> None:
    """Up to the largest; keys that differ only in their last byte are two."""
    one, two = b"k" * size, b"k" * (size - 1) + b"l"
    kv[one], kv[two] = b"1", b"2"
    kv[one] = b"3"
    assert agreeing(kv) == {one: b"3", two: b"2"}
    del kv[two]
    kv.close()
    assert contents(tmp_path / "kv") == {one: b"3"}


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 4095, 65_536, 1_000_000])
def test_values_of_every_length(tmp_path: Path, kv: KVStore, size: int) -> None:
    """Empty ones too, which are not the same as none, and ones larger than a segment."""
    for key in (b"k", b"keykey12", b"x" * 1000):
        value = (key * (size // len(key) + 1))[:size]
        kv[key] = value
        kv[key] = value
        assert kv[key] == value
    expected = agreeing(kv)
    kv.close()
    assert contents(tmp_path / "kv") == expected
    (tmp_path / "kv" / "INDEX").unlink()
    assert contents(tmp_path / "kv") == expected


@pytest.mark.parametrize("key", [b"", bytearray(), "", b"k" * (KEY_MAX + 1), "é" * 32_768, b"k" * 1_000_000])
def test_a_key_of_a_wrong_length_is_refused(tmp_path: Path, kv: KVStore, key: bytes) -> None:
    """The message gives the limit and the length."""
    kv[b"there"] = b"1"
    with unchanged(tmp_path):
        for change in (
            lambda: kv.__setitem__(key, b"x"), lambda: kv.put(key, b"x", durable=True),
            lambda: kv.update([(key, b"x")]), lambda: kv.setdefault(key, b"x"),
        ):  # fmt: skip
            with pytest.raises(InvalidKey, match=r"1 to 65535 bytes, this one has \d+") as raised:
                change()
            assert isinstance(raised.value, StoreError)
            assert isinstance(raised.value, MmapIoError)
            assert isinstance(raised.value, ValueError)
            assert raised.value.filename == kv.path
    assert key not in kv
    assert kv.get(key) is None
    assert kv.pop(key, 5) == 5
    with pytest.raises(KeyError):
        kv[key]
    assert agreeing(kv) == {b"there": b"1"}


def test_a_value_that_is_too_large_is_refused_unread(
    tmp_path: Path, kv: KVStore, huge_buffer: memoryview
) -> None:
    """Its length field would wrap; checking must cost neither memory nor disk."""
    kv[b"there"] = b"1"
    with unchanged(tmp_path):
        for too_large in (huge_buffer[: VALUE_MAX + 1], huge_buffer):
            for key in (b"there", b"new"):
                with pytest.raises(ValueTooLarge, match=f"{VALUE_MAX} bytes") as raised:
                    kv[key] = too_large
                assert isinstance(raised.value, StoreError)
                assert isinstance(raised.value, ValueError)
            too_large.release() if too_large is not huge_buffer else None
    assert agreeing(kv) == {b"there": b"1"}


@pytest.mark.parametrize("wrong", [5, 1.5, None, [b"a"], (b"a",), {b"a"}, object(), True])
def test_what_is_neither_buffer_nor_str_is_a_type_error(tmp_path: Path, kv: KVStore, wrong: object) -> None:
    """Turning a number into a key by its looks would find it again only by luck."""
    kv[b"there"] = b"1"
    name = type(wrong).__name__
    with unchanged(tmp_path):
        for use in (
            lambda: kv.__setitem__(wrong, b"x"), lambda: kv.put(wrong, b"x"), lambda: kv.__getitem__(wrong),
            lambda: kv.get(wrong), lambda: kv.get(wrong, 5), lambda: kv.__delitem__(wrong),
            lambda: wrong in kv, lambda: kv.pop(wrong, 5),
        ):  # fmt: skip
            with pytest.raises(
                TypeError, match=f"a key is bytes, another contiguous buffer or str, not {name}"
            ):
                use()
        for use in (lambda: kv.__setitem__(b"k", wrong), lambda: kv.put(b"there", wrong)):
            with pytest.raises(
                TypeError, match=f"a value is bytes, another contiguous buffer or str, not {name}"
            ):
                use()
    assert agreeing(kv) == {b"there": b"1"}


def test_a_buffer_with_holes_is_refused(tmp_path: Path, kv: KVStore) -> None:
    """Its bytes do not lie in a row; the message says which kind of buffer is taken."""
    holes = memoryview(b"abcdef")[::2]
    with unchanged(tmp_path):
        for use in (
            lambda: kv.__setitem__(holes, b"x"),
            lambda: kv.__setitem__(b"k", holes),
            lambda: kv.get(holes),
        ):
            with pytest.raises((TypeError, BufferError), match="contiguous"):
                use()
    assert len(kv) == 0


def test_a_str_that_is_no_unicode_is_refused(tmp_path: Path, kv: KVStore) -> None:
    """Half a surrogate pair has no UTF-8."""
    with unchanged(tmp_path):
        for use in (
            lambda: kv.__setitem__("\ud800", b"x"),
            lambda: kv.__setitem__(b"k", "\udfff"),
            lambda: kv.get("\ud800"),
        ):
            with pytest.raises(UnicodeEncodeError):
                use()
    assert len(kv) == 0


def test_a_value_from_the_store_itself(kv: KVStore) -> None:
    """Copying a pair to another key, with the store growing meanwhile."""
    kv[b"0"] = b"v" * 30_000
    for number in range(20):
        kv[b"%d" % (number + 1)] = kv[b"%d" % number]
    assert set(kv.values()) == {b"v" * 30_000}


def test_wrong_arguments_of_put(kv: KVStore) -> None:
    """`durable` is by name only, so that a third value is not taken for it."""
    with pytest.raises(TypeError):
        kv.put(b"k", b"v", True)  # type: ignore[misc]
    with pytest.raises(TypeError):
        kv.put(b"k")  # type: ignore[call-arg]
    kv.put(b"k", b"v", durable=True)
    assert kv.stats()["durable"] == 1
