"""MANIFEST: what a log is, in two lines of text.

The first line holds magic, version and the XXH3-64 of the second; the second is one JSON object. It is
replaced as a whole: temporary file, sync, rename, sync of the directory.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass

from mmapio import _os
from mmaplog.checksum import xxh3_64
from mmaplog.errors import CorruptionError, FormatError

NAME = "MANIFEST"
MAGIC = "mmaplog-manifest"
VERSION = 1
SIZE_MAX = 16 << 20
TEMPORARY_SUFFIX = ".tmp"


@dataclass(frozen=True)
class Manifest:
    """What every process that opens the log must know before it reads anything else."""

    log_uuid: uuid.UUID
    segment_bytes: int
    first_seq: int


def write(directory: int, manifest: Manifest) -> None:
    """Write the manifest of an open directory durably. Costs two syncs; OSError leaves the old one in place."""
    body = json.dumps(
        {
            "first_seq": manifest.first_seq,
            "log_uuid": str(manifest.log_uuid),
            "segment_bytes": manifest.segment_bytes,
        }
    )
    digest = xxh3_64(body.encode())
    temporary = NAME + TEMPORARY_SUFFIX
    opened = _os.open_file(temporary, True, create=True, follow=False, dir_fd=directory)
    _os.set_size(opened.fd, 0)
    _os.write_at(opened.fd, f"{MAGIC} {VERSION} {digest:016x}\n{body}\n".encode(), 0)
    _os.sync(opened.fd, temporary)
    _os.replace_file(directory, temporary, NAME)
    _os.sync(directory)


def read(directory: int, path: str) -> Manifest:
    """Read and check the manifest of an open directory. FileNotFoundError, FormatError or CorruptionError."""
    opened = _os.open_file(NAME, False, follow=False, dir_fd=directory)
    size = _os.file_size(opened.fd)
    if size > SIZE_MAX:
        raise FormatError(f"a manifest of {size} bytes is none of ours (at most {SIZE_MAX})", path)
    lines = _os.read_at(opened.fd, size, 0).split(b"\n")
    fields = lines[0].split(b" ")
    if fields[0] != MAGIC.encode():
        raise FormatError(f"not a log: the manifest begins with {lines[0][:24]!r} instead of {MAGIC!r}", path)
    if len(fields) != 3 or len(lines) != 3:
        raise CorruptionError("the manifest is cut short; restore it from a backup", path)
    if fields[1] != str(VERSION).encode():
        raise FormatError(
            f"the manifest has version {fields[1].decode(errors='replace')}, this code knows {VERSION}; upgrade mmapkv", path
        )
    if fields[2] != f"{xxh3_64(lines[1]):016x}".encode():
        raise CorruptionError("the manifest does not match its checksum; restore it from a backup", path)
    try:
        body = json.loads(lines[1])
        return Manifest(uuid.UUID(body["log_uuid"]), int(body["segment_bytes"]), int(body["first_seq"]))
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"the manifest verifies but cannot be understood: {error!r}", path) from error
