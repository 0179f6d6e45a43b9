"""An append-only log of records in memory-mapped segment files.

The middle of three layers and useful alone: :class:`Log` appends, replays and recovers. It knows the mapping
layer below and nothing of the store above.
"""

from mmapio.options import FlushPolicy
from mmaplog.errors import CorruptionError, FormatError, Locked, LogError, Poisoned, RecordTooLarge
from mmaplog.log import Log
from mmaplog.replay import Entry

__all__ = [
    "CorruptionError",
    "Entry",
    "FlushPolicy",
    "FormatError",
    "Locked",
    "Log",
    "LogError",
    "Poisoned",
    "RecordTooLarge",
]
