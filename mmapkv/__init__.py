"""A hash-indexed key-value store on a memory-mapped log.

The highest of three layers: :class:`KVStore` is a mapping from bytes to bytes that many processes read while
one writes. The log below it is the truth; the index can always be derived from it.
"""

from mmapio.options import FlushPolicy
from mmapkv.aio import AsyncChanges, AsyncKVStore
from mmapkv.batch import Batch
from mmapkv.changes import Change, Changes
from mmapkv.errors import BufferTooSmall, Conflict, InvalidKey, SnapshotTooOld, StoreError, ValueTooLarge
from mmapkv.namespace import Namespace
from mmapkv.repair import StoreRepaired, repair
from mmapkv.snapshot import Snapshot
from mmapkv.store import KVStore
from mmapkv.transaction import Transaction
from mmapkv.typed import TypedStore
from mmapkv.verify import StoreDamage, StoreVerified, verify
from mmaplog.compaction import Compaction
from mmaplog.errors import CorruptionError, FormatError, Locked, Poisoned, RecordTooLarge, TooOld

__all__ = [
    "AsyncChanges",
    "AsyncKVStore",
    "Batch",
    "BufferTooSmall",
    "Change",
    "Changes",
    "Compaction",
    "Conflict",
    "CorruptionError",
    "FlushPolicy",
    "FormatError",
    "InvalidKey",
    "KVStore",
    "Locked",
    "Namespace",
    "Poisoned",
    "RecordTooLarge",
    "Snapshot",
    "SnapshotTooOld",
    "StoreDamage",
    "StoreError",
    "StoreRepaired",
    "StoreVerified",
    "TooOld",
    "Transaction",
    "TypedStore",
    "ValueTooLarge",
    "repair",
    "verify",
]
