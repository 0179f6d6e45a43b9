"""What a directory holds, byte for byte: to show that a refused operation changed nothing."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def footprint(directory: Path, *, ignoring: tuple[str, ...] = ()) -> dict[str, tuple[object, ...]]:
    """For each name below `directory`: kind, inode, size, time of change, and a digest of its bytes."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(directory.rglob("*")):
        if path.name in ignoring:
            continue
        about = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(about.st_mode) else ""
        found[str(path.relative_to(directory))] = (
            stat.S_IFMT(about.st_mode),
            about.st_ino,
            about.st_size,
            about.st_mtime_ns,
            digest,
        )
    return found


@contextmanager
def unchanged(directory: Path, *, ignoring: tuple[str, ...] = ()) -> Iterator[None]:
    """Fail when the block changes anything below `directory`, but for files named in `ignoring`."""
    before = footprint(directory, ignoring=ignoring)
    yield
    assert footprint(directory, ignoring=ignoring) == before
