"""A hash-indexed key-value store on a memory-mapped log.

The highest of three layers: :class:`KVStore` is a mapping from bytes to bytes that many processes read while
one writes. The log below it is the truth; the index can always be derived from it.
"""

from mmapio.options import FlushPolicy
from mmapkv.errors import InvalidKey, SnapshotTooOld, StoreError, ValueTooLarge
from mmapkv.store import KVStore
from mmaplog.compaction import Compaction
from mmaplog.errors import CorruptionError, FormatError, Locked, Poisoned

__all__ = [
    "Compaction",
    "CorruptionError",
    "FlushPolicy",
    "FormatError",
    "InvalidKey",
    "KVStore",
    "Locked",
    "Poisoned",
    "SnapshotTooOld",
    "StoreError",
    "ValueTooLarge",
]
