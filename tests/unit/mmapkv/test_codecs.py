"""The codecs: what they take, what comes back, what they refuse; and that none of them runs code."""

from __future__ import annotations

import copy
import datetime
import importlib
import io
import math
import pickle
import zlib
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest

from mmapkv import codecs
from mmapkv.codecs import Bytes, Codec, Compressed, Json, Msgpack, Numpy, Text
from tests.unit.mmapkv.stores import opened

np = pytest.importorskip("numpy", reason="numpy is not installed: its codec is NOT TESTED")
msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed: its codec is NOT TESTED")

WEST = datetime.timezone(datetime.timedelta(hours=-1))
"""Where the last year that a datetime can say is over an hour after it is in UTC."""

CODECS: list[Codec[Any]] = [
    Bytes(),
    Text(),
    Json(),
    Msgpack(),
    Numpy(),
    Compressed(Json()),
    Compressed(Compressed(Numpy()), 0),
]
OBJECTS: list[Any] = [
    None,
    True,
    0,
    -(2**63),
    1.5,
    "",
    "grüße \U0001f600",
    [],
    [1, [2, None]],
    {},
    {"a": {"b": [1]}},
]


def through(codec: Codec[Any], value: Any) -> Any:
    """The value, encoded and decoded by way of bytes."""
    return codec.decode(bytes(memoryview(codec.encode(value))))


@pytest.mark.parametrize("codec", [Json(), Msgpack(), Compressed(Json()), Compressed(Msgpack(), 9)], ids=repr)
@pytest.mark.parametrize("value", OBJECTS, ids=repr)
def test_objects_come_back(codec: Codec[Any], value: Any) -> None:
    """Equal and of the same type."""
    found = through(codec, value)
    assert found == value
    assert type(found) is type(value)


def test_bytes_and_text_come_back() -> None:
    """Bytes take what a store takes; text takes str alone."""
    for value in (b"", b"\x00\xff", bytearray(b"a"), memoryview(b"ab")):
        assert through(Bytes(), value) == bytes(value)
        assert type(through(Bytes(), value)) is bytes
    assert through(Bytes(), "ü") == "ü".encode()
    for text in ("", "grüße \U0001f600"):
        assert through(Text(), text) == through(Compressed(Text()), text) == text


def test_what_messagepack_has_and_json_has_not() -> None:
    """Bytes, numbers as keys, and moments."""
    now = datetime.datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=datetime.UTC)
    for value in (b"\xff", {1: b"a"}, 2**64 - 1, math.inf, now):
        assert through(Msgpack(), value) == value


@pytest.mark.parametrize(
    ("codec", "value", "error"),
    [
        (Bytes(), 5, TypeError),
        (Bytes(), None, TypeError),
        (Text(), b"a", TypeError),
        (Text(), "\ud800", UnicodeEncodeError),
        (Json(), b"a", TypeError),
        (Json(), {1, 2}, TypeError),
        (Json(), math.nan, ValueError),
        (Json(), [math.inf], ValueError),
        (Msgpack(), {1, 2}, TypeError),
        (Msgpack(), 2**64, OverflowError),
        (Msgpack(), msgpack.Timestamp(2**60), ValueError),
        (Msgpack(), [{"at": (msgpack.Timestamp(-(2**60)),)}], ValueError),
        (Msgpack(), msgpack.Timestamp(1, 1), ValueError),
        (Msgpack(), datetime.datetime.max.replace(tzinfo=WEST), ValueError),
        (Msgpack(), datetime.datetime(2024, 1, 1), (TypeError, ValueError)),
        (Numpy(), [1, 2], TypeError),
        (Numpy(), np.float64(1), TypeError),
        (Numpy(), np.array([{}]), TypeError),
        (Numpy(), np.zeros(2, [("a", "i4"), ("b", "O")]), TypeError),
        (Numpy(), np.ma.masked_array([1, 2], [True, False]), TypeError),
        (Compressed(Text()), 5, TypeError),
    ],
    ids=repr,
)
def test_what_a_codec_cannot_say_it_refuses(codec: Codec[Any], value: Any, error: Any) -> None:
    """By its own kind of error."""
    with pytest.raises(error):
        codec.encode(value)


@pytest.mark.parametrize("value", [{(1, 2): 3}, [{"a": ({(): 1},)}], OrderedDict({(1,): 2})], ids=repr)
def test_messagepack_refuses_a_key_that_would_not_come_back(tmp_path: Path, value: Any) -> None:
    """A tuple comes back as a list, which is no key: it was stored, and could not be read any more."""
    with opened(tmp_path / "kv") as kv:
        objects = kv.typed(Msgpack())
        with pytest.raises(TypeError, match="a key of a dict would not come back"):
            objects["k"] = value
        assert not objects


def test_messagepack_takes_tuples_and_subclasses_as_before() -> None:
    """Where they are no keys."""
    moment = datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC)
    assert through(Msgpack(), {"a": (1, (b"x",)), "b": ()}) == {"a": [1, [b"x"]], "b": []}
    assert through(Msgpack(), OrderedDict({1: Counter("a"), None: True})) == {1: {"a": 1}, None: True}
    # Bytes that look as a time does, and one that a datetime says as well.
    value = [b"\xd6\xff\xd7\xff\xc7\x0c\xff", msgpack.Timestamp(5, 1000)]
    later = datetime.datetime(1970, 1, 1, 0, 0, 5, 1, tzinfo=datetime.UTC)
    assert through(Msgpack(), value) == [value[0], later]
    keys = {"a": 1, b"a": 2, 3: 3, 0.5: 4, False: 5, None: 6, moment: 7}
    assert through(Msgpack(), keys) == keys
    assert through(Msgpack(), [keys, ()]) == [keys, []]


GOOD_ARRAY = Numpy().encode(np.arange(6, dtype="<i4").reshape(2, 3))
PICKLED = io.BytesIO()
np.save(PICKLED, np.array([{}]), allow_pickle=True)


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (Text(), b"\xff"),
        (Json(), b""),
        (Json(), b"{"),
        (Json(), b"\xff"),
        (Json(), pickle.dumps([1])),
        pytest.param(Json(), b"[" * 100_000, id="Json(), nested"),
        (Msgpack(), b""),
        (Msgpack(), b"\x93\x01"),
        (Msgpack(), b"\x01\x02"),
        (Msgpack(), msgpack.packb({(1, 2): 3})),
        (Msgpack(), msgpack.packb(msgpack.Timestamp(2**60))),
        (Numpy(), b""),
        (Numpy(), b"\x93NUMPY\x01\x00"),
        (Numpy(), b"\x93NUMPY\x01\x00\xff\xff"),
        (Numpy(), b"\x93NUMPY\x02\x00" + GOOD_ARRAY[8:]),
        (Numpy(), GOOD_ARRAY[:-1]),
        (Numpy(), GOOD_ARRAY[:-4]),
        (Numpy(), GOOD_ARRAY + b"0000"),
        (Numpy(), GOOD_ARRAY.replace(b"(2, 3)", b"(2,-3)")),
        (Numpy(), GOOD_ARRAY.replace(b"'<i4'", b"exit()")[: len(GOOD_ARRAY)]),
        (Numpy(), PICKLED.getvalue()),
        (Compressed(Text()), zlib.compress(b"\xff")),
    ],
    ids=repr,
)
def test_damaged_bytes_are_a_value_error(codec: Codec[Any], data: bytes) -> None:
    """Whatever is stored; a JSONDecodeError and a UnicodeDecodeError are ones, too."""
    with pytest.raises(ValueError):
        codec.decode(data)


@pytest.mark.parametrize("data", [b"", b"x", zlib.compress(b"abc")[:-1]], ids=repr)
def test_what_was_not_compressed(data: bytes) -> None:
    """zlib's own error."""
    with pytest.raises(zlib.error):
        Compressed(Bytes()).decode(data)


class Tripwire:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("tripped"),)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_nothing_is_unpickled(codec: Codec[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a pickle nor an array of objects, which numpy keeps as one, runs code."""
    monkeypatch.chdir(tmp_path)
    array = np.empty(1, dtype=object)
    array[0] = Tripwire()
    saved = io.BytesIO()
    np.save(saved, array, allow_pickle=True)
    for data in (pickle.dumps(Tripwire()), saved.getvalue()):
        for wrapped in (data, zlib.compress(data), zlib.compress(zlib.compress(data))):
            try:
                codec.decode(wrapped)
            except (ValueError, zlib.error):
                continue
    assert not Path("tripped").exists()
    pickle.loads(pickle.dumps(Tripwire()))
    assert Path("tripped").exists()


def test_no_codec_imports_pickle() -> None:
    """The module itself knows nothing of it."""
    assert "import pickle" not in Path(codecs.__file__).read_text()


ARRAYS = {
    "numbers": np.arange(12, dtype="<i4").reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": np.arange(24).reshape(4, 6)[::2, ::3],
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    "reversed": np.arange(5)[::-1],
    "broadcast": np.broadcast_to(np.arange(3), (2, 3)),
    "no dimension": np.array(5.5),
    "empty": np.zeros((0, 3), dtype="c16"),
    "empty in the middle": np.zeros((2, 0, 3)),
    "one": np.ones((1, 1, 1), dtype="?"),
    "big endian": np.arange(5, dtype=">f8"),
    "half": np.arange(5, dtype="f2"),
    "moments": np.array(["2024-02-29", "NaT"], dtype="M8[ns]"),
    "spans": np.array([1, 2], dtype="m8[s]"),
    "text": np.array(["ä", "abc"]),
    "bytes": np.array([b"a", b"abc"]),
    "void": np.zeros(2, dtype="V5"),
    "fields": np.array([(1, 2.5, b"a"), (3, 4.5, b"b")], dtype=[("a", "<i2"), ("b", "<f8"), ("c", "S3")]),
    "subarrays": np.zeros(2, dtype=[("a", "<i2", (2, 2))]),
    "large": np.arange(100_000),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_arrays_come_back(array: Any) -> None:
    """Elements, shape, dtype and order; what is stored is an .npy file, as numpy reads it."""
    data = Numpy().encode(array)
    found = Numpy().decode(data)
    loaded = np.load(io.BytesIO(data), allow_pickle=False)
    for each in (found, loaded):
        assert each.dtype == array.dtype
        assert each.shape == array.shape
        assert each.tobytes() == array.tobytes()
    assert found.flags.c_contiguous or array.flags.f_contiguous
    assert not found.flags.writeable
    assert found.flags.aligned


def test_an_array_lies_in_the_bytes_that_were_read() -> None:
    """Decoding copies nothing, and what it gives can be copied to be changed."""
    data = Numpy().encode(np.arange(1000.0))
    found = Numpy().decode(data)
    assert np.shares_memory(found, np.frombuffer(data, dtype="u1"))
    with pytest.raises(ValueError):
        found[0] = 1
    changed = found.copy()
    changed[0] = 7
    assert found[0] == 0


def test_arrays_in_a_store(tmp_path: Path) -> None:
    """They outlive its handle."""
    with opened(tmp_path / "kv") as kv:
        arrays = kv.typed(Numpy(), keys=str)
        arrays["a"] = np.arange(5)
        found = arrays["a"]
    assert found.tolist() == [0, 1, 2, 3, 4]


def test_codecs_are_values() -> None:
    """Equal, hashable, pickled and copied, and they say what they are."""
    assert len({*CODECS, *copy.deepcopy(CODECS)}) == len(CODECS)
    for codec in CODECS:
        assert pickle.loads(pickle.dumps(codec)) == codec == copy.copy(codec)
        assert eval(repr(codec), vars(codecs)) == codec
    assert Compressed(Text(), 1) != Compressed(Text(), 2)


@pytest.mark.parametrize("level", [-2, 10, 100])
def test_a_level_that_zlib_has_not(level: int) -> None:
    """When the codec is made, not at the first value."""
    with pytest.raises(ValueError, match=str(level)):
        Compressed(Text(), level)
    with pytest.raises(TypeError, match="encode and decode"):
        Compressed("text")  # type: ignore[arg-type]


@pytest.mark.parametrize(("codec", "name"), [(Numpy, "numpy"), (Msgpack, "msgpack")])
def test_an_extra_that_is_missing(codec: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install, when the codec is made."""
    real = importlib.import_module

    def absent(wanted: str) -> Any:
        if wanted == name:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(wanted)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=rf"pip install mmapkv\[{name}\]"):
        codec()
