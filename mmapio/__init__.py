"""Memory-mapped files: zero-copy views, growth in place, durable flush.

The lowest of three layers and useful alone: :class:`MemoryMappedFile` maps a file that several
processes read and write as memory. Nothing here knows of the log or the store built on it.
"""

from mmapio._os import PAGE_SIZE
from mmapio.errors import (
    AdviceFailed,
    Closed,
    FlushFailed,
    InvalidMode,
    LockFailed,
    MappingFault,
    Misaligned,
    MmapIoError,
    OutOfBounds,
    ResizeFailed,
    UnlockFailed,
    WatchFailed,
)
from mmapio.mapping import MemoryMappedFile
from mmapio.options import FlushPolicy, MmapMode
from mmapio.view import MappedSlice

__all__ = [
    "PAGE_SIZE",
    "AdviceFailed",
    "Closed",
    "FlushFailed",
    "FlushPolicy",
    "InvalidMode",
    "LockFailed",
    "MappedSlice",
    "MappingFault",
    "MemoryMappedFile",
    "Misaligned",
    "MmapIoError",
    "MmapMode",
    "OutOfBounds",
    "ResizeFailed",
    "UnlockFailed",
    "WatchFailed",
]
