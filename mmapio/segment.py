"""Ranges of a mapped file that are looked up again at each use, so that they survive a resize."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, SupportsIndex

from mmapio.errors import Closed, MappingFault, OutOfBounds
from mmapio.options import MmapMode

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from mmapio.file import MemoryMappedFile
    from mmapio.mutable import MappedSliceMut
    from mmapio.view import MappedSlice

__all__ = ["Segment", "SegmentMut"]


class Segment:
    """A range of a mapped file, by offset and length. It holds the file, no address, and nothing that a
    resize waits for.

    Raises OutOfBounds when the range does not lie inside the file: here, or later, at a use, when the file
    was cut.
    """

    __slots__ = ("_length", "_offset", "_parent")

    def __init__(self, parent: MemoryMappedFile, offset: SupportsIndex, length: SupportsIndex) -> None:
        self._offset, self._length = parent._locate(offset, length)
        self._parent = parent

    @property
    def parent(self) -> MemoryMappedFile:
        """The file."""
        return self._parent

    @property
    def offset(self) -> int:
        """Where the range begins, in bytes."""
        return self._offset

    def __len__(self) -> int:
        return self._length

    def is_empty(self) -> bool:
        """Whether the range has no bytes."""
        return self._length == 0

    def is_valid(self) -> bool:
        """Whether the range lies inside the file now, and the file is open and whole."""
        try:
            self._parent._locate(self._offset, self._length)
        except (OutOfBounds, Closed, MappingFault):
            return False
        return True

    def as_slice(self) -> MappedSlice:
        """A zero-copy view of the range as it is now. Raises OutOfBounds, Closed, MappingFault."""
        return self._parent.as_slice(self._offset, self._length)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._length} bytes at offset {self._offset} of {self._parent!r}>"


class SegmentMut(Segment):
    """A range of a mapped file that can be written. Raises InvalidMode on a read-only mapping."""

    __slots__ = ()

    def __init__(self, parent: MemoryMappedFile, offset: SupportsIndex, length: SupportsIndex) -> None:
        super().__init__(parent, offset, length)
        if parent.mode is MmapMode.READ_ONLY:
            parent._check_writable()

    def as_slice_mut(self) -> MappedSliceMut:
        """A writable view of the range. Raises OutOfBounds, Closed, MappingFault."""
        return self._parent.as_slice_mut(self._offset, self._length)

    def write(self, data: Buffer) -> None:
        """Write `data` at the beginning of the range.

        Raises OutOfBounds when it is longer than the range, Closed, MappingFault.
        """
        # The buffer that was measured is the one that is written.
        with memoryview(data) as view:
            if view.nbytes > self._length:
                text = f"{view.nbytes} bytes do not fit into a segment of {self._length}"
                raise OutOfBounds(errno.EINVAL, text, self._parent.path)
            self._parent._locate(self._offset, self._length)
            self._parent.update_region(self._offset, view)
