"""A mapped file as a file object, for code that reads files."""

from __future__ import annotations

import errno
import io
import operator
from typing import TYPE_CHECKING, Any

from mmapio.errors import OutOfBounds

if TYPE_CHECKING:
    from mmapio.file import MemoryMappedFile

__all__ = ["Reader"]


class Reader(io.RawIOBase):
    """A cursor over a mapped file. Made by :meth:`MemoryMappedFile.reader`.

    Any number may be open, each with its own position; ``io.BufferedReader(m.reader())`` adds ``peek``.
    Reading costs one copy and no system call. It sees the length that the handle knows, and closing it leaves
    the file mapped.
    """

    def __init__(self, file: MemoryMappedFile) -> None:
        super().__init__()
        len(file)  # raises Closed
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def write(self, data: Any, /) -> int:
        """Not supported: a reader only reads."""
        raise io.UnsupportedOperation("a reader of a mapped file cannot write; use update_region")

    def readinto(self, buffer: Any, /) -> int:
        """Fill a writable buffer as far as there are bytes;

        how many that were. Raises Closed, MappingFault, ValueError once closed.
        """
        self._check()
        with memoryview(buffer) as view, view.cast("B") as target:
            if target.readonly:
                raise TypeError("a writable buffer is needed")
            count = min(len(target), max(len(self._file) - self._at, 0))
            if count:
                self._file.read_into(self._at, target[:count])
        self._at += count
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, all that are left when it is negative or None; fewer only at the end."""
        self._check()
        left = max(len(self._file) - self._at, 0)
        count = left if size is None or size < 0 else min(size, left)
        data = self._file.read_bytes(self._at, count) if count else b""
        self._at += count
        return data

    def readall(self) -> bytes:
        """All bytes that are left."""
        return self.read()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Set the position, from the start, the position or the end;

        beyond the end there is nothing to read. OutOfBounds below 0.
        """
        self._check()
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._file)}
        if whence not in bases:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        position = bases[whence] + operator.index(offset)
        if position < 0:
            raise OutOfBounds(errno.EINVAL, f"the position cannot be {position}", self._file.path)
        self._at = position
        return position

    def tell(self) -> int:
        """The position in bytes."""
        self._check()
        return self._at

    def _check(self) -> None:
        if self.closed:
            raise ValueError("the reader is closed")
