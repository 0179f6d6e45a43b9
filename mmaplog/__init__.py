"""An append-only log of records in memory-mapped segment files.

The middle of three layers and useful alone: :class:`Log` appends, replays and recovers. It knows the mapping
layer below and nothing of the store above.
"""

from mmapio.options import FlushPolicy
from mmaplog.backup import Backup
from mmaplog.batch import Batch
from mmaplog.compaction import Compaction
from mmaplog.errors import CorruptionError, FormatError, Locked, LogError, Poisoned, RecordTooLarge, TooOld
from mmaplog.follow import Follower
from mmaplog.log import Log
from mmaplog.repair import Lost, Repaired, repair
from mmaplog.replay import Entry
from mmaplog.reservation import Reservation
from mmaplog.verify import Damage, Verified

__all__ = [
    "Backup",
    "Batch",
    "Compaction",
    "CorruptionError",
    "Damage",
    "Entry",
    "FlushPolicy",
    "Follower",
    "FormatError",
    "Locked",
    "Log",
    "LogError",
    "Lost",
    "Poisoned",
    "RecordTooLarge",
    "Repaired",
    "Reservation",
    "TooOld",
    "Verified",
    "repair",
]
