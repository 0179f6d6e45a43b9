"""A hash-indexed key-value store on a memory-mapped log.

The highest of three layers: :class:`KVStore` is a mapping from bytes to bytes that many processes read while
one writes. The log below it is the truth; the index can always be derived from it.
"""

from mmapio.options import FlushPolicy
from mmapkv.errors import BufferTooSmall, InvalidKey, StoreError, ValueTooLarge
from mmapkv.repair import StoreRepaired, repair
from mmapkv.store import KVStore
from mmapkv.verify import StoreDamage, StoreVerified, verify
from mmaplog.errors import CorruptionError, FormatError, Locked, Poisoned

__all__ = [
    "BufferTooSmall",
    "CorruptionError",
    "FlushPolicy",
    "FormatError",
    "InvalidKey",
    "KVStore",
    "Locked",
    "Poisoned",
    "StoreDamage",
    "StoreError",
    "StoreRepaired",
    "StoreVerified",
    "ValueTooLarge",
    "repair",
    "verify",
]
