"""A hash-indexed key-value store on a memory-mapped log.

The highest of three layers: :class:`KVStore` is a mapping from bytes to bytes that many processes read while
one writes. The log below it is the truth; the index can always be derived from it.
"""

from mmapio.options import FlushPolicy
from mmapkv.batch import Batch
from mmapkv.errors import BufferTooSmall, Conflict, InvalidKey, StoreError, ValueTooLarge
from mmapkv.snapshot import Snapshot
from mmapkv.store import KVStore
from mmapkv.transaction import Transaction
from mmaplog.errors import CorruptionError, FormatError, Locked, Poisoned, RecordTooLarge

__all__ = [
    "Batch",
    "BufferTooSmall",
    "Conflict",
    "CorruptionError",
    "FlushPolicy",
    "FormatError",
    "InvalidKey",
    "KVStore",
    "Locked",
    "Poisoned",
    "RecordTooLarge",
    "Snapshot",
    "StoreError",
    "Transaction",
    "ValueTooLarge",
]
