"""Ways to spoil a log's directory, and what opening it then has to say."""

from __future__ import annotations

import os
import shutil
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from tests.unit.mmaplog.segment_file import (
    CHECKSUM_AT,
    INCOMPATIBLE_AT,
    VERSION_AT,
    SegmentFile,
    segment_paths,
)


@dataclass(frozen=True)
class Damage:
    """What is done to a directory, the error that it must lead to, and a word that the message must hold."""

    name: str
    inflict: Callable[[Path], object]
    error: str
    word: str


def first(directory: Path) -> Path:
    """The first segment."""
    return segment_paths(directory)[0]


def last(directory: Path) -> Path:
    """The last segment."""
    return segment_paths(directory)[-1]


def overwrite(path: Path, data: bytes, offset: int = 0) -> None:
    """Change bytes of a file, keeping its inode and length.

    What is random there may be just `data`: then something else is written.
    """
    with path.open("r+b") as file:
        file.seek(offset)
        if file.read(len(data)) == data:
            data = bytes([data[0] ^ 1]) + data[1:]
        file.seek(offset)
        file.write(data)


def patch_segment(path: Path, offset: int, form: str, value: object, *, seal: bool = True) -> None:
    """Change a field of a segment's header; the checksum is made right unless `seal` is false."""
    segment = SegmentFile(path)
    if seal:
        segment.patch_header(offset, form, value)
    else:
        struct.pack_into(form, segment.data, offset, value)
    segment.save()


def rewrite_manifest(directory: Path, change: Callable[[bytes], bytes], *, version: bytes = b"1") -> None:
    """Change the manifest's body, or its version, and make its checksum right again."""
    path = directory / "MANIFEST"
    magic, _, _ = path.read_bytes().split(b"\n")[0].split(b" ")
    body = change(path.read_bytes().split(b"\n")[1])
    overwrite_whole(path, b"%s %s %016x\n%s\n" % (magic, version, xxhash.xxh3_64_intdigest(body), body))


def overwrite_whole(path: Path, data: bytes) -> None:
    """Give a file other content, keeping its inode."""
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(data)


def replace_by_directory(path: Path) -> None:
    """A directory where a file should be."""
    path.unlink()
    path.mkdir()


def replace_by_fifo(path: Path) -> None:
    """A FIFO where a file should be; whoever opens it for reading waits for ever."""
    path.unlink()
    os.mkfifo(path)


def replace_by_symlink(path: Path) -> None:
    """A symbolic link to the file, which is kept elsewhere: following it may lead out of the store."""
    elsewhere = path.parent.parent / f"{path.name}.elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


#: Of files that every opening must read: the manifest and, when CONTROL cannot be believed, the segments.
DAMAGES = [
    Damage(
        "manifest of another kind",
        lambda d: overwrite_whole(d / "MANIFEST", b"include *.txt\n"),
        "FormatError",
        "not a log",
    ),
    Damage("manifest empty", lambda d: os.truncate(d / "MANIFEST", 0), "FormatError", "not a log"),
    Damage("manifest cut after 1 byte", lambda d: os.truncate(d / "MANIFEST", 1), "FormatError", "not a log"),
    Damage(
        "manifest cut after 20 bytes", lambda d: os.truncate(d / "MANIFEST", 20), "CorruptionError", "backup"
    ),
    Damage(
        "manifest cut after 60 bytes", lambda d: os.truncate(d / "MANIFEST", 60), "CorruptionError", "backup"
    ),
    Damage(
        "manifest without its last two bytes",
        lambda d: os.truncate(d / "MANIFEST", (d / "MANIFEST").stat().st_size - 2),
        "CorruptionError",
        "backup",
    ),
    Damage(
        "manifest with a flipped bit",
        lambda d: overwrite(d / "MANIFEST", b"\x00", 60),
        "CorruptionError",
        "checksum",
    ),
    Damage("manifest newer", lambda d: rewrite_manifest(d, bytes, version=b"2"), "FormatError", "upgrade"),
    Damage(
        "manifest newer, of another shape",
        lambda d: overwrite_whole(d / "MANIFEST", b"mmaplog-manifest 2 abc def\n{}\n{}\nmore\n"),
        "FormatError",
        "upgrade",
    ),
    Damage(
        "manifest that makes no sense",
        lambda d: rewrite_manifest(d, lambda _: b"[]"),
        "FormatError",
        "understood",
    ),
    Damage(
        "manifest too large", lambda d: os.truncate(d / "MANIFEST", (16 << 20) + 1), "FormatError", "at most"
    ),
    Damage(
        "manifest a directory",
        lambda d: replace_by_directory(d / "MANIFEST"),
        "IsADirectoryError",
        "directory",
    ),
    Damage("manifest a FIFO", lambda d: replace_by_fifo(d / "MANIFEST"), "OSError", "regular file"),
    Damage("manifest a link", lambda d: replace_by_symlink(d / "MANIFEST"), "OSError", "symbolic"),
    Damage("lock a directory", lambda d: replace_by_directory(d / "LOCK"), "IsADirectoryError", "directory"),
    Damage("lock a FIFO", lambda d: replace_by_fifo(d / "LOCK"), "OSError", "regular file"),
    Damage("lock a link", lambda d: replace_by_symlink(d / "LOCK"), "OSError", "symbolic"),
]


#: Of the last segment, which every opening must read.
SEGMENT_DAMAGES = [
    Damage(
        "segment of another kind",
        lambda d: overwrite(last(d), b"\x7fELF\2\1\1\0"),
        "FormatError",
        "not a segment",
    ),
    Damage("segment newer", lambda d: patch_segment(last(d), VERSION_AT, "<I", 2), "FormatError", "upgrade"),
    Damage(
        "segment newer, with a checksum unknown to us",
        lambda d: (
            patch_segment(last(d), VERSION_AT, "<I", 2, seal=False),
            overwrite(last(d), bytes(8), CHECKSUM_AT),
        ),
        "FormatError",
        "upgrade",
    ),
    Damage(
        "segment whose version is damaged",
        lambda d: patch_segment(last(d), VERSION_AT, "<I", 2, seal=False),
        "CorruptionError",
        "version in the header",
    ),
    Damage(
        "segment with an unknown feature",
        lambda d: patch_segment(last(d), INCOMPATIBLE_AT, "<I", 0x10),
        "FormatError",
        "upgrade",
    ),
    Damage(
        "segment with a flipped bit", lambda d: overwrite(last(d), b"\x55", 50), "CorruptionError", "checksum"
    ),
    Damage(
        "segment of another log",
        lambda d: patch_segment(last(d), 24, "<16s", uuid.uuid4().bytes),
        "FormatError",
        "another log",
    ),
    Damage("segment empty", lambda d: os.truncate(last(d), 0), "CorruptionError", "too few"),
    Damage("segment cut after 1 byte", lambda d: os.truncate(last(d), 1), "CorruptionError", "too few"),
    Damage(
        "segment cut within its header", lambda d: os.truncate(last(d), 4095), "CorruptionError", "too few"
    ),
    Damage(
        "segment cut after its header", lambda d: os.truncate(last(d), 4096), "CorruptionError", "durable"
    ),
    Damage(
        "segment cut within a record",
        lambda d: os.truncate(last(d), 4096 + 1000),
        "CorruptionError",
        "durable",
    ),
    Damage(
        "segment renamed",
        lambda d: last(d).rename(d / f"{7:020}-{int(last(d).name[21:37], 16):016x}.seg"),
        "CorruptionError",
        "missing",
    ),
    Damage("segment a directory", lambda d: replace_by_directory(last(d)), "IsADirectoryError", "directory"),
    Damage("segment a FIFO", lambda d: replace_by_fifo(last(d)), "OSError", "regular file"),
    Damage("segment a link", lambda d: replace_by_symlink(last(d)), "OSError", "symbolic"),
]
