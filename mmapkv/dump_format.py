"""Pairs as a stream of bytes that needs no store to be read: written, and read back."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from mmapkv.load_source import EXPIRES_NS_MAX, Entry
from mmaplog._command import in_short

__all__ = ["FORMATS", "TIMELESS", "MalformedDump", "as_json", "read_dump"]

# Of JSON lines. Version 1 has no line that says so, and no times.
_VERSION = 2


class MalformedDump(ValueError):
    """The input is not what a dump looks like; the message says where."""


# JSON lines: {"mmapkv_dump": 2}, then {"key": TEXT, "value": TEXT}, and what is not UTF-8 as
# {"base64": TEXT}; of what expires with "expires_ns" besides, in nanoseconds since 1970.


def _as_text(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _from_text(told: object) -> bytes:
    if isinstance(told, str):
        return told.encode()
    if isinstance(told, dict) and set(told) == {"base64"} and isinstance(told["base64"], str):
        return base64.b64decode(told["base64"], validate=True)
    raise ValueError(f"{str(told)[:40]!r} is neither a string nor an object with base64")


def as_json(expires_ns: int | None = None, **parts: bytes) -> str:
    r"""An object on a line: bytes as text where they are UTF-8, as {"base64": ...} where they are not.

    With `expires_ns`, if that is not None.

    >>> print(as_json(key=b"apple", value=b"\xff"))
    {"key": "apple", "value": {"base64": "/w=="}}
    """
    told: dict[str, Any] = {name: _as_text(data) for name, data in parts.items()}
    if expires_ns is not None:
        told["expires_ns"] = expires_ns
    return json.dumps(told, ensure_ascii=False)


def _write_json(entries: Iterable[Entry], size: int) -> Iterator[bytes]:
    yield b'{"mmapkv_dump": %d}\n' % _VERSION
    for key, value, expires_ns in entries:
        yield as_json(expires_ns, key=key, value=value).encode() + b"\n"


def _read_json(first: bytes, stream: BinaryIO) -> Iterator[Entry]:
    for number, line in enumerate(_lines(first, stream), start=1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            if "mmapkv_dump" in told and "key" not in told:
                _check_version(number, told["mmapkv_dump"])
                continue
            yield _from_text(told["key"]), _from_text(told["value"]), _expiry(told.get("expires_ns"))
        except MalformedDump:
            raise
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
            raise MalformedDump(f"line {number} is no pair: {in_short(error)}") from None


def _check_version(number: int, version: object) -> None:
    if type(version) is not int or not 1 <= version <= _VERSION:
        raise MalformedDump(
            f"line {number} begins a dump of version {version!r:.40}; known are 1 and {_VERSION}: "
            "load it with a newer mmapkv"
        )


def _expiry(told: object) -> int | None:
    if told is None:
        return None
    if type(told) is not int or not 0 < told <= EXPIRES_NS_MAX:
        raise ValueError(
            f"expires_ns is {told!r:.40}, and not a whole number from 1 to {EXPIRES_NS_MAX}, "
            "nanoseconds since 1970"
        )
    return told


# What mdb_dump and db_dump write, and mdb_load and db_load read.


def _write_mdb(entries: Iterable[Entry], size: int) -> Iterator[bytes]:
    # mdb_load makes a file of 1 MiB unless it is told otherwise.
    map_bytes = max(1 << 20, (4 * size + 4095) // 4096 * 4096)
    yield b"VERSION=3\nformat=bytevalue\ntype=btree\nmapsize=%d\nHEADER=END\n" % map_bytes
    for key, value, _ in entries:
        yield b" %s\n %s\n" % (binascii.hexlify(key), binascii.hexlify(value))
    yield b"DATA=END\n"


def _read_mdb(first: bytes, stream: BinaryIO) -> Iterator[Entry]:
    lines = enumerate(_lines(first, stream), start=1)
    header: dict[bytes, bytes] = {}
    for number, line in lines:
        name, equals, value = line.rstrip(b"\r\n").partition(b"=")
        if not equals:
            raise MalformedDump(f"line {number} is no line of a header: {line[:40]!r}")
        if name == b"HEADER":
            break
        header[name] = value
    if header.get(b"VERSION") != b"3" or header.get(b"format") not in (b"bytevalue", b"print"):
        raise MalformedDump(f"not a dump of version 3 in format bytevalue or print: {header}")
    if b"1" in (header.get(b"duplicates"), header.get(b"dupsort")):
        raise MalformedDump("the dump has several values for a key, which a store cannot hold")
    decode = binascii.unhexlify if header[b"format"] == b"bytevalue" else _unescape
    key: bytes | None = None
    for number, line in lines:
        if line.rstrip(b"\r\n") == b"DATA=END":
            break
        if not line.startswith(b" ") or not line.endswith(b"\n"):
            raise MalformedDump(f"line {number} begins with no space, or is cut: {line[:40]!r}")
        try:
            data = decode(line[1:].rstrip(b"\r\n"))
        except binascii.Error as error:
            raise MalformedDump(f"line {number}: {error}") from None
        if key is None:
            key = data
        else:
            yield key, data, None
            key = None
    else:
        raise MalformedDump("the dump is cut: it does not end with DATA=END")
    if key is not None:
        raise MalformedDump("the last key has no value")
    for number, line in lines:
        if line.strip():
            raise MalformedDump(f"a second database begins in line {number}; load each by itself")


_ESCAPE = re.compile(rb"\\(?:(\\)|([0-9A-Fa-f]{2})|)")


def _unescape(data: bytes) -> bytes:
    def replaced(match: re.Match[bytes]) -> bytes:
        if match[1]:
            return b"\\"
        if not match[2]:
            raise binascii.Error(f"{data[match.start() : match.start() + 3]!r} is no escape")
        return binascii.unhexlify(match[2])

    return _ESCAPE.sub(replaced, data)


# What cdbmake reads: +klen,dlen:key->data, and an empty line at the end.


def _write_cdb(entries: Iterable[Entry], size: int) -> Iterator[bytes]:
    for key, value, _ in entries:
        yield b"+%d,%d:%s->%s\n" % (len(key), len(value), key, value)
    yield b"\n"


_CDB_HEAD = re.compile(rb"\+([0-9]{1,10}),([0-9]{1,10}):")
_CDB_HEAD_MAX = 24


def _read_cdb(first: bytes, stream: BinaryIO) -> Iterator[Entry]:
    pending, number = first, 0
    while pending != b"\n":
        number += 1
        # Byte by byte as far as the colon: no more may be taken than is there.
        while not pending.endswith(b":"):
            byte = stream.read(1)
            if not byte or len(pending) > _CDB_HEAD_MAX:
                raise MalformedDump(f"pair {number} is cut, or does not begin with its lengths: {pending!r}")
            pending += byte
        head = _CDB_HEAD.fullmatch(pending)
        if head is None:
            raise MalformedDump(f"pair {number} does not begin with its lengths: {pending!r}")
        key_size, value_size = int(head[1]), int(head[2])
        key, arrow, value, end = (_exactly(stream, each) for each in (key_size, 2, value_size, 1))
        if arrow != b"->" or end != b"\n":
            raise MalformedDump(f"the lengths of pair {number} do not add up")
        yield key, value, None
        pending = stream.read(1)
        if not pending:
            raise MalformedDump("the dump is cut: it does not end with an empty line")


def _exactly(stream: BinaryIO, size: int) -> bytes:
    # In pieces: a length that lies must not cost the memory that it claims.
    pieces = []
    while size:
        piece = stream.read(min(size, 1 << 20))
        if not piece:
            raise MalformedDump("the dump is cut in the middle of a pair")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _lines(first: bytes, stream: BinaryIO) -> Iterator[bytes]:
    yield first if first.endswith(b"\n") else first + stream.readline()
    yield from stream


#: How pairs are written; the number is about how many bytes there are in all.
FORMATS: dict[str, Callable[[Iterable[Entry], int], Iterator[bytes]]] = {
    "jsonl": _write_json,
    "mdb": _write_mdb,
    "cdbmake": _write_cdb,
}

#: Those that cannot say when a value expires.
TIMELESS = frozenset({"mdb", "cdbmake"})


def read_dump(stream: BinaryIO) -> Iterator[Entry]:
    """What a dump in any of `FORMATS` holds, which its first byte tells. Raises MalformedDump."""
    first = stream.read(1)
    if not first:
        return
    if first == b"V":
        yield from _read_mdb(first, stream)
    elif first in (b"+", b"\n"):
        yield from _read_cdb(first, stream)
    elif first in (b"{", b" "):
        yield from _read_json(first, stream)
    else:
        raise MalformedDump(
            f"no dump in a known format begins with {first!r}; known are {', '.join(FORMATS)}"
        )
