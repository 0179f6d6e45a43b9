"""Records as a stream of bytes that needs no log to be read: written to a file, and read back."""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from mmapio import _os
from mmaplog._command import in_short
from mmaplog.replay import Entry

__all__ = ["FORMATS", "MalformedLine", "as_json", "from_json", "written_whole"]

# So much is gathered before it is written.
_PIECE = 1 << 20
_LENGTH = struct.Struct("<I")


class MalformedLine(ValueError):
    """A line of the input is not a record."""


def as_json(entry: Entry) -> bytes:
    """A line with a JSON object: `seq`, `timestamp`, and `payload` in base64."""
    told = {
        "seq": entry.seq,
        "timestamp": entry.timestamp,
        "payload": base64.b64encode(entry.payload).decode(),
    }
    return json.dumps(told).encode() + b"\n"


def _as_binary(entry: Entry) -> bytes:
    # A record has fewer than 2^32 bytes.
    payload = bytes(entry.payload)
    return _LENGTH.pack(len(payload)) + payload


def _as_line(entry: Entry) -> bytes:
    return bytes(entry.payload) + b"\n"


FORMATS: dict[str, Callable[[Entry], bytes]] = {"json": as_json, "binary": _as_binary, "lines": _as_line}
"""What a record may become: a JSON object on a line; its length in 4 bytes, little-endian, and its payload;
its payload and a line end."""


def from_json(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The number and payload of each record in lines as :func:`as_json` makes them. Raises MalformedLine."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            seq, payload = told["seq"], base64.b64decode(told["payload"], validate=True)
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
            raise MalformedLine(f"line {number} is not a record: {in_short(error)}") from None
        if type(seq) is not int:
            raise MalformedLine(f"line {number} is not a record: its number is {seq!r}")
        yield seq, payload


_Write: TypeAlias = Callable[[bytes], None]


@contextlib.contextmanager
def written_whole(path: str, source: str) -> Iterator[_Write]:
    """A function that writes to the file `path`: whole and durable when the block ends, or as it was before.

    Raises IsADirectoryError and OSError for what cannot be replaced by a file, or is one of the directory
    `source`, which is read.
    """
    _os.check_replaceable(path)
    target = Path(path).absolute()
    if target.parent.exists() and target.parent.samefile(source):
        raise OSError(errno.EINVAL, "would be among the files that are read; name one elsewhere", path)
    directory = _os.open_directory(str(target.parent))
    temporary = f"{target.name}.{os.urandom(8).hex()}.tmp"
    opened = _os.open_file(temporary, True, create=True, exclusive=True, follow=False, directory=directory)
    pending = bytearray()
    offset = 0

    def put_out() -> None:
        nonlocal offset
        _os.write_at(opened, bytes(pending), offset)
        offset += len(pending)
        pending.clear()

    def write(data: bytes) -> None:
        pending.extend(data)
        if len(pending) >= _PIECE:
            put_out()

    try:
        yield write
        put_out()
        _os.sync(opened, metadata=True)
        _os.replace_file(directory, temporary, target.name)
    except BaseException:
        with contextlib.suppress(OSError):
            _os.remove_file(directory, temporary)
        raise
    _os.sync(directory)
