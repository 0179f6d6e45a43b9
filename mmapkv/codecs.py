"""Codecs: how the values of a :class:`mmapkv.TypedStore` become bytes, and values again.

A codec is any object with two methods, `encode` and `decode`. Those here:

    Bytes           bytes, as they are
    Text            str, as UTF-8
    Json            what JSON can say
    Msgpack         what MessagePack can say; needs ``pip install mmapkv[msgpack]``
    Numpy           arrays, as the content of an .npy file; needs ``pip install mmapkv[numpy]``
    Compressed      another codec's bytes, deflated by zlib

None of them is pickle, and none will be: to unpickle bytes is to run the code that they name, and the bytes
of a store come from whoever could write to its directory, or to a backup of it. Decoding one of these gives
data, or raises. Codecs are values: equal when they do the same, hashable, and cheap to pickle.
"""

from __future__ import annotations

import importlib
import json
import zlib
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

__all__ = ["Bytes", "Codec", "Compressed", "Json", "Msgpack", "Numpy", "Text"]

T = TypeVar("T")

# How a timestamp begins that takes 4, 8 and 12 bytes. What begins so need not be one.
_TIMESTAMPS = (b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")

# Different dtypes and shapes whose .npy headers are remembered: most stores have a handful.
HEADERS_MAX = 256


class Codec(Protocol[T]):
    """What turns a value into bytes and back.

    `encode` returns any contiguous buffer, `decode` is given bytes. Either may raise, and may use the
    store: it is called before anything is written or removed.
    """

    def encode(self, value: T, /) -> Buffer:
        """The bytes to store."""

    def decode(self, data: bytes, /) -> T:
        """The value of which `data` are the bytes."""


def checked(codec: Codec[T]) -> Codec[T]:
    """The codec, if it is one. Raises TypeError."""
    methods = (getattr(codec, name, None) for name in ("encode", "decode"))
    if isinstance(codec, type) or not all(map(callable, methods)):
        raise TypeError(
            f"a codec is an object that can encode and decode, such as mmapkv.codecs.Json(), not {codec!r}"
        )
    return codec


@dataclass(frozen=True)
class Bytes(Codec[bytes]):
    """Values are bytes, as in a store without a codec. Any buffer, or str as UTF-8, is taken for them."""

    def encode(self, value: str | Buffer, /) -> Buffer:
        """The value itself. Raises TypeError when it is neither a buffer nor str."""
        return value.encode() if isinstance(value, str) else memoryview(value)

    def decode(self, data: bytes, /) -> bytes:
        """The bytes themselves."""
        return data


@dataclass(frozen=True)
class Text(Codec[str]):
    """Values are str, stored as UTF-8."""

    def encode(self, value: str, /) -> bytes:
        """UTF-8. Raises TypeError for what is not str, UnicodeEncodeError for half a surrogate pair."""
        if not isinstance(value, str):
            raise TypeError(f"a text value is str, not {type(value).__name__}")
        return value.encode()

    def decode(self, data: bytes, /) -> str:
        """The text. Raises UnicodeDecodeError."""
        return data.decode()


@dataclass(frozen=True)
class Json(Codec[Any]):
    """Values are what JSON can say: dict, list, str, int, float, bool, None.

    As with :mod:`json`, a tuple comes back as a list, and a key of a dict as str.

    >>> Json().encode({"n": [1, None]})
    b'{"n":[1,null]}'
    """

    def encode(self, value: Any, /) -> bytes:
        """UTF-8 without blanks.

        Raises TypeError for what JSON cannot say, ValueError for infinities, NaN, and what contains itself.
        """
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

    def decode(self, data: bytes, /) -> Any:
        """The value. Raises ValueError (json.JSONDecodeError, UnicodeDecodeError; nested too deeply)."""
        try:
            return json.loads(data)
        except RecursionError as error:
            raise ValueError(f"the JSON of {len(data)} bytes is nested too deeply") from error


@dataclass(frozen=True)
class Msgpack(Codec[Any]):
    """Values are what MessagePack can say: as JSON, and bytes, and datetimes that have a time zone.

    A tuple comes back as a list, and is no key of a dict therefore; a ``msgpack.Timestamp`` comes back as a
    datetime, and is refused where that cannot say as much. Values with tuples, with instances of subclasses,
    or with times cost some three times as much to encode. Raises ImportError when the package msgpack is not
    installed.

    >>> Msgpack().encode({(1, 2): 3})
    Traceback (most recent call last):
    TypeError: a key of a dict would not come back from MessagePack: unhashable type: 'list'
    """

    def __post_init__(self) -> None:
        _msgpack()

    def encode(self, value: Any, /) -> bytes:
        """MessagePack. Raises TypeError, ValueError, OverflowError for what that cannot say, or give back."""
        msgpack = _msgpack()
        try:
            packed: bytes = msgpack.packb(value, datetime=True, strict_types=True, default=_refuse_inexact)
        except _InexactError:
            packed = msgpack.packb(value, datetime=True)
            # Nothing else that is packed may be a key that is a list, or a dict, when it is unpacked.
            try:
                _unpacked(packed)
            except TypeError as error:
                raise TypeError(f"a key of a dict would not come back from MessagePack: {error}") from None
            except OverflowError:
                # Of a time, which is looked at below.
                pass
        if any(each in packed for each in _TIMESTAMPS) and not _keeps_times(packed):
            raise ValueError(
                "a time would not come back from MessagePack: it is unpacked as a datetime, in UTC, of the "
                "years 1 to 9999 and to the microsecond"
            )
        return packed

    def decode(self, data: bytes, /) -> Any:
        """The value. Raises ValueError."""
        try:
            return _unpacked(data)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"the MessagePack of {len(data)} bytes is no value: {error}") from error


@dataclass(frozen=True)
class Numpy(Codec["NDArray[Any]"]):
    """Values are numpy arrays of any dtype but object; a value is the content of an .npy file, version 1.0.

    A decoded array is read-only and lies in the bytes that were read, which costs no further copy: `copy()`
    gives one that can be changed. Order in memory is kept, C or Fortran; another layout becomes C. Encoding
    costs a copy of the array, decoding a few microseconds once a dtype and shape is known. Raises
    ImportError when numpy is not installed.
    """

    def __post_init__(self) -> None:
        _numpy()

    def encode(self, value: NDArray[Any], /) -> bytes:
        """Header and elements.

        Raises TypeError for what is not an array, a masked one, and elements that only pickle could store.
        """
        numpy = _numpy()
        if not isinstance(value, numpy.ndarray) or isinstance(value, numpy.ma.MaskedArray):
            raise TypeError(f"a value is a numpy.ndarray without a mask, not {type(value).__name__}")
        if value.dtype.hasobject:
            raise TypeError("an array of Python objects cannot be stored: only pickle could, which is unsafe")
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        elements: bytes = value.tobytes("F" if fortran else "C")
        return _npy_header(value.dtype, value.shape, fortran) + elements

    def decode(self, data: bytes, /) -> NDArray[Any]:
        """The array, read-only. Raises ValueError."""
        numpy = _numpy()
        # As far as the version says; the rest of an .npy header is as long as it says itself.
        start = 10 + int.from_bytes(data[8:10], "little")
        if data[:8] != b"\x93NUMPY\x01\x00" or start > len(data):
            raise ValueError(f"{data[:10]!r}... is no array in .npy format 1.0")
        dtype, shape, fortran = _npy_parsed(data[:start])
        flat = numpy.frombuffer(data, dtype, offset=start) if len(data) > start else numpy.empty(0, dtype)
        if not flat.size:
            flat.flags.writeable = False
        return flat.reshape(shape, order="F" if fortran else "C")  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Compressed(Codec[T]):
    """Values of another codec, compressed by zlib at a `level` from 0 to 9, or -1 for zlib's own choice.

    Worth it for values of a few hundred bytes and more. How large a value becomes in memory is said by its
    bytes alone, up to a thousand times their number: as with any compression, decode only what you trust to
    fit.

    >>> codec = Compressed(Text())
    >>> len(codec.encode("again and " * 100)) < 50
    True
    """

    codec: Codec[T]
    level: int = -1

    def __post_init__(self) -> None:
        checked(self.codec)
        if not -1 <= self.level <= 9:
            raise ValueError(f"a level of compression is from 0 to 9, or -1, not {self.level}")

    def encode(self, value: T, /) -> bytes:
        """A zlib stream. Raises what the inner codec raises."""
        return zlib.compress(self.codec.encode(value), self.level)

    def decode(self, data: bytes, /) -> T:
        """The value. Raises zlib.error, and what the inner codec raises."""
        return self.codec.decode(zlib.decompress(data))


def _numpy() -> Any:
    try:
        return importlib.import_module("numpy")
    except ImportError as error:
        raise ImportError(f"Numpy needs the package numpy: pip install mmapkv[numpy] ({error})") from error


def _msgpack() -> Any:
    try:
        return importlib.import_module("msgpack")
    except ImportError as error:
        raise ImportError(
            f"Msgpack needs the package msgpack: pip install mmapkv[msgpack] ({error})"
        ) from error


class _InexactError(Exception):
    """Something is to be packed that does not come back as what it is, such as a tuple."""


def _refuse_inexact(value: object) -> Any:
    raise _InexactError


def _unpacked(data: bytes) -> Any:
    # 3: a timestamp is a datetime, as it was given.
    return _msgpack().unpackb(data, timestamp=3, strict_map_key=False)


def _keeps_times(packed: bytes) -> bool:
    try:
        again: bytes = _msgpack().packb(_unpacked(packed), datetime=True)
    except (OverflowError, ValueError):
        return False
    return again == packed


def _make_npy_header(dtype: Any, shape: tuple[int, ...], fortran: bool) -> bytes:
    layout = _numpy().lib.format
    header = BytesIO()
    described = {"descr": layout.dtype_to_descr(dtype), "fortran_order": fortran, "shape": shape}
    layout.write_array_header_1_0(header, described)
    return header.getvalue()


def _parse_npy_header(header: bytes) -> tuple[Any, tuple[int, ...], bool]:
    layout = _numpy().lib.format
    file = BytesIO(header)
    layout.read_magic(file)
    shape, fortran, dtype = layout.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("an array of Python objects is not decoded: only pickle could, which is unsafe")
    if min(shape, default=0) < 0:
        raise ValueError(f"an array has no shape {shape}")
    return dtype, shape, fortran


# Each takes some 20 us.
_npy_header = lru_cache(HEADERS_MAX)(_make_npy_header)
_npy_parsed = lru_cache(HEADERS_MAX)(_parse_npy_header)
