"""Files of framed records: a buffered Python file, and what `os` offers without a buffer."""

from __future__ import annotations

import itertools
import os
import platform
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from zlib import crc32

from .log_peer import (
    LAST_WORDS,
    ONE_DURABLE,
    LogPeer,
    LogStage,
    is_durable,
    is_filled,
    records_of,
    size_note,
)
from .other_process import killed
from .peer import Statements, Task

HEADER = struct.Struct("<II")
"""Length and checksum."""

WRITTEN_BEFORE_BYTES = 8 << 20


def framed(record: bytes) -> bytes:
    """The record as it is in the file."""
    return HEADER.pack(len(record), crc32(record)) + record


def frames(path: Path) -> Iterator[bytes]:
    """The records of a file, which is read at once; to the first header of zeros. Raises ValueError."""
    data = path.read_bytes()
    unpack, start = HEADER.unpack_from, HEADER.size
    end = len(data)
    while start <= end:
        length, checksum = unpack(data, start - HEADER.size)
        if not length:
            return
        record = data[start : start + length]
        if crc32(record) != checksum:
            raise ValueError(f"the record at {start} has another checksum than its header says")
        yield record
        start += length + HEADER.size


def unframed(frame: bytes) -> bytes:
    """The record of one frame. Raises ValueError."""
    length, checksum = HEADER.unpack_from(frame)
    record = frame[HEADER.size : HEADER.size + length]
    if crc32(record) != checksum:
        raise ValueError("the record has another checksum than its header says")
    return record


class BufferedFile(LogPeer):
    """A Python file as `open(path, "ab")` gives it, each record behind its length and its CRC-32.

    Whoever opens it after a crash has to read all of it to find where it ends.
    """

    name = "buffered-file"
    settings = "open(path, 'ab'), struct and zlib.crc32; where durable, flush and os.fdatasync"
    statements: ClassVar[Statements] = {
        "append": (
            "for r in records: file.write(pack(len(r), crc32(r)) + r)",
            "for r in records: file.write(pack(len(r), crc32(r))); file.write(r)",
        ),
        "append-many": ("file.write(b''.join([pack(len(r), crc32(r)) + r for r in records]))",),
        "replay": ("for record in frames(path): pass",),
        **dict.fromkeys(ONE_DURABLE, ("file.write(framed(next(record))); file.flush(); fdatasync(fd)",)),
        "group": (
            "[file.write(pack(len(r), crc32(r)) + r) for r in next(group)]; file.flush(); fdatasync(fd)",
        ),
        "reopen": ("opened.append(last_of(frames(path)))",),
    }

    @classmethod
    def version(cls) -> str:
        return f"{platform.python_implementation()} {platform.python_version()}"

    @contextmanager
    def scene(self, task: Task) -> Iterator[LogStage]:
        path = task.path / "records"
        with path.open("ab") as file:
            if is_filled(task):
                file.write(b"".join(map(framed, records_of(task))))
                file.flush()
            names: dict[str, object] = {
                "file": file,
                "fd": file.fileno(),
                "fdatasync": os.fdatasync,
                "pack": HEADER.pack,
                "crc32": crc32,
                "framed": framed,
                "frames": frames,
                "path": path,
                "last_of": last_of,
            }

            def read_back() -> Iterator[bytes]:
                file.flush()
                return frames(path)

            yield LogStage(
                names,
                read_back=read_back,
                crash=partial(killed, _append_and_die, path),
                note=partial(size_note, task, path),
            )


class Pwrite(LogPeer):
    """The same frames without a buffer.

    Where durable, the main form writes to a file whose blocks were all written and synced before, so that
    the device is given the data and nothing else; the other appends to a file that grows.
    """

    name = "pwrite"
    settings = "os.write; where durable, os.pwrite and os.fdatasync, all blocks written before"
    statements: ClassVar[Statements] = {
        "append": ("for r in records: write(grown, pack(len(r), crc32(r)) + r)",),
        "append-many": ("write(grown, b''.join([pack(len(r), crc32(r)) + r for r in records]))",),
        "look-up": ("for n in numbers: unframed(pread(grown, size, size * n))",),
        **dict.fromkeys(
            ONE_DURABLE,
            (
                "pwrite(fd, framed(next(record)), next(at)); fdatasync(fd)",
                "write(grown, framed(next(record))); fdatasync(grown)",
            ),
        ),
        "group": (
            "[pwrite(fd, framed(r), next(at)) for r in next(group)]; fdatasync(fd)",
            "f = b''.join(map(framed, next(group))); pwrite(fd, f, next(at_group)); fdatasync(fd)",
        ),
        "threads": tuple(f"in_threads({count}, durably)" for count in (8, 1)),
    }

    @classmethod
    def version(cls) -> str:
        return BufferedFile.version()

    @contextmanager
    def scene(self, task: Task) -> Iterator[LogStage]:
        path, grown_path = task.path / "records", task.path / "grown"
        size = HEADER.size + int(str(task.operands["record_bytes"]))
        with path.open("w+b", buffering=0) as file, grown_path.open("a+b", buffering=0) as grown:
            fd = file.fileno()
            if is_durable(task):
                file.write(bytes(WRITTEN_BEFORE_BYTES))
                os.fsync(fd)
            if is_filled(task):
                grown.write(b"".join(map(framed, records_of(task))))
            at = itertools.count(0, size)
            lock = threading.Lock()

            def durably(record: bytes) -> None:
                with lock:
                    offset = next(at)
                os.pwrite(fd, framed(record), offset)
                os.fdatasync(fd)

            group_size = task.operands.get("group_size", 1)
            assert isinstance(group_size, int)
            names: dict[str, object] = {
                **{each.__name__: each for each in (os.write, os.pwrite, os.pread, os.fdatasync, crc32)},
                "framed": framed,
                "unframed": unframed,
                "pack": HEADER.pack,
                "durably": durably,
                "fd": fd,
                "grown": grown.fileno(),
                "size": size,
                "at": at,
                "at_group": itertools.count(0, size * group_size),
            }
            yield LogStage(
                names,
                read_back=lambda: frames(grown_path if grown_path.stat().st_size else path),
            )


def last_of(records: Iterator[Any]) -> Any:
    """The last that an iterator gives."""
    last = None
    for last in records:  # noqa: B007
        pass
    return last


def _append_and_die(ready: Callable[[], None], path: Path) -> None:
    """What the process does that is killed."""
    with path.open("ab") as file:
        file.write(framed(LAST_WORDS))
        file.flush()
        ready()
