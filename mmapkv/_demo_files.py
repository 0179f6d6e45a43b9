"""The files that the demo loads: finding them, reading them, remembering what they held."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmaplog._command import named

__all__ = ["Listing", "Loaded", "SkippedFileError", "list_files", "read_file"]

CONTENT_IN_MEMORY_BYTES_MAX = 512 << 20
BLOCK_BYTES = 64 << 10


class SkippedFileError(Exception):
    """A file is not loaded, and why."""


@dataclass
class Listing:
    """What lies below a directory."""

    keys: list[bytes] = field(default_factory=list)
    """Paths relative to the directory, sorted, of everything that is not itself a directory. They
    are bytes, as the file system keeps them: a name need not be text."""

    unreadable: list[str] = field(default_factory=list)
    """A message for each directory that could not be listed."""


def list_files(root: Path, leave_out: frozenset[str] = frozenset()) -> Listing:
    """The files below `root`. Directories named in `leave_out` are not entered.

    Links to directories are listed and not followed, so a loop of links ends. Raises OSError when
    `root` itself cannot be listed; what fails below it is reported in the result.
    """
    listing = Listing()
    waiting = [""]
    while waiting:
        directory = waiting.pop()
        try:
            with os.scandir(root / directory) as entries:
                for entry in entries:
                    path = f"{directory}{entry.name}"
                    if not entry.is_dir(follow_symlinks=False):
                        listing.keys.append(os.fsencode(path))
                    elif entry.name not in leave_out:
                        waiting.append(f"{path}/")
        except OSError as error:
            if not directory:
                raise
            listing.unreadable.append(f"{named(root / directory)}: {error.strerror}")
    listing.keys.sort()
    return listing


def read_file(path: Path, size_max: int) -> bytes:
    """The whole content of one regular file, or SkippedFileError when it has none, is larger than
    `size_max` bytes or cannot be read.
    """
    try:
        status = path.stat()
        # Opening a pipe or a device can block, or do something to it.
        if not stat.S_ISREG(status.st_mode):
            kind = "a link to a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise SkippedFileError(f"{named(path)}: {kind}")
        if status.st_size > size_max:
            raise SkippedFileError(_too_large(path, status.st_size, size_max))
        return _read_up_to(path, status.st_size, size_max)
    except OSError as error:
        raise SkippedFileError(f"{named(path)}: {error.strerror}") from error


def _read_up_to(path: Path, size_expected: int, size_max: int) -> bytes:
    chunks = []
    size = 0
    with path.open("rb", buffering=0) as file:
        # What stat said is only what to expect: a file may grow while it is read.
        while chunk := file.read(max(size_expected - size, BLOCK_BYTES)):
            chunks.append(chunk)
            size += len(chunk)
            if size > size_max:
                raise SkippedFileError(_too_large(path, size, size_max))
    return b"".join(chunks)


def _too_large(path: Path, size: int, size_max: int) -> str:
    return f"{named(path)}: {size:,} bytes, and the demo loads up to {size_max:,}"


@dataclass(frozen=True, slots=True)
class _Digest:
    size: int
    blake2b: bytes

    @classmethod
    def of(cls, content: bytes) -> _Digest:
        return cls(len(content), hashlib.blake2b(content).digest())


class Loaded:
    """What was put into the store under each key, to compare with what comes back.

    Contents are kept up to a total of `memory_bytes_max`; of one that does not fit any more, its size
    and a BLAKE2b digest, so that a directory larger than the memory can be loaded.
    """

    def __init__(self, memory_bytes_max: int = CONTENT_IN_MEMORY_BYTES_MAX) -> None:
        self.content_bytes = 0
        self._memory_bytes_left = memory_bytes_max
        self._contents: dict[bytes, bytes | _Digest] = {}

    def add(self, key: bytes, content: bytes) -> None:
        """Remember that `content` was put under `key`, a key that was not there before."""
        assert key not in self._contents
        self.content_bytes += len(content)
        if len(content) <= self._memory_bytes_left:
            self._memory_bytes_left -= len(content)
            self._contents[key] = content
        else:
            self._contents[key] = _Digest.of(content)

    def difference(self, key: bytes, value: bytes) -> str | None:
        """How `value` differs from what was put under `key`, or None when every byte is the same."""
        content = self._contents[key]
        if isinstance(content, bytes):
            return None if value == content else _first_difference(content, value)
        if len(value) != content.size:
            return f"{len(value):,} bytes instead of {content.size:,}"
        return None if _Digest.of(value) == content else "another digest than the file had"

    def __contains__(self, key: object) -> bool:
        return key in self._contents

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._contents)

    def __len__(self) -> int:
        return len(self._contents)


def _first_difference(content: bytes, value: bytes) -> str:
    if len(content) != len(value):
        return f"{len(value):,} bytes instead of {len(content):,}"
    start = 0
    while content[start : start + BLOCK_BYTES] == value[start : start + BLOCK_BYTES]:
        start += BLOCK_BYTES
    offset = next(at for at in range(start, len(content)) if content[at] != value[at])
    return f"byte {offset:,} of {len(content):,} is {value[offset]:#04x} instead of {content[offset]:#04x}"
