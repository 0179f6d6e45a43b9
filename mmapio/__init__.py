"""Memory-mapped files: zero-copy views, growth in place, durable flush, atomics across processes.

The lowest of three layers and useful alone: :class:`MemoryMappedFile` maps a file that several
processes read and write as memory. Nothing here knows of the log or the store built on it.
"""

from mmapio._vm import PAGE_SIZE
from mmapio.aio import (
    AsyncWatch,
    copy_mmap_async,
    create_mmap_async,
    delete_mmap_async,
    load_mmap_async,
    wait_async,
    write_mmap_async,
)
from mmapio.atomic import AtomicSliceU32, AtomicSliceU64, AtomicU32, AtomicU64
from mmapio.builder import Builder
from mmapio.errors import (
    AdviceFailed,
    Closed,
    FlushFailed,
    InvalidMode,
    InvalidSize,
    LockFailed,
    MappingFault,
    Misaligned,
    MmapIoError,
    OutOfBounds,
    ResizeFailed,
    UnlockFailed,
    Unsupported,
    WatchFailed,
)
from mmapio.features import features
from mmapio.file import ChunksMut, MemoryMappedFile
from mmapio.manager import (
    align_up,
    copy_mmap,
    create_mmap,
    delete_mmap,
    flush,
    load_mmap,
    page_size,
    update_region,
    write_mmap,
)
from mmapio.memory import HugePages
from mmapio.mutable import MappedSliceMut
from mmapio.options import FlushPolicy, MmapAdvice, MmapMode, Ordering, TouchHint
from mmapio.reader import Reader
from mmapio.segment import Segment, SegmentMut
from mmapio.sync import SharedMutex
from mmapio.view import MappedSlice
from mmapio.watch import ChangeEvent, ChangeKind, WatchHandle

__all__ = [
    "PAGE_SIZE",
    "AdviceFailed",
    "AsyncWatch",
    "AtomicSliceU32",
    "AtomicSliceU64",
    "AtomicU32",
    "AtomicU64",
    "Builder",
    "ChangeEvent",
    "ChangeKind",
    "ChunksMut",
    "Closed",
    "FlushFailed",
    "FlushPolicy",
    "HugePages",
    "InvalidMode",
    "InvalidSize",
    "LockFailed",
    "MappedSlice",
    "MappedSliceMut",
    "MappingFault",
    "MemoryMappedFile",
    "Misaligned",
    "MmapAdvice",
    "MmapIoError",
    "MmapMode",
    "Ordering",
    "OutOfBounds",
    "Reader",
    "ResizeFailed",
    "Segment",
    "SegmentMut",
    "SharedMutex",
    "TouchHint",
    "UnlockFailed",
    "Unsupported",
    "WatchFailed",
    "WatchHandle",
    "align_up",
    "copy_mmap",
    "copy_mmap_async",
    "create_mmap",
    "create_mmap_async",
    "delete_mmap",
    "delete_mmap_async",
    "features",
    "flush",
    "load_mmap",
    "load_mmap_async",
    "page_size",
    "update_region",
    "wait_async",
    "write_mmap",
    "write_mmap_async",
]
