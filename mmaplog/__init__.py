"""An append-only log of records in memory-mapped segment files.

The middle of three layers and useful alone: :class:`Log` appends, replays and recovers. It knows the mapping
layer below and nothing of the store above.
"""

from mmapio.options import FlushPolicy
from mmaplog.backup import Backup
from mmaplog.batch import Batch
from mmaplog.compaction import Compaction
from mmaplog.consumer import Consumer, ConsumerInfo
from mmaplog.errors import CorruptionError, FormatError, Locked, LogError, Poisoned, RecordTooLarge, TooOld
from mmaplog.follow import Follower
from mmaplog.group import GroupMember
from mmaplog.log import Log
from mmaplog.repair import Lost, Repaired, repair
from mmaplog.replay import Entry
from mmaplog.reservation import Reservation
from mmaplog.segment_watch import SegmentChange
from mmaplog.verify import Damage, Verified

__all__ = [
    "Backup",
    "Batch",
    "Compaction",
    "Consumer",
    "ConsumerInfo",
    "CorruptionError",
    "Damage",
    "Entry",
    "FlushPolicy",
    "Follower",
    "FormatError",
    "GroupMember",
    "Locked",
    "Log",
    "LogError",
    "Lost",
    "Poisoned",
    "RecordTooLarge",
    "Repaired",
    "Reservation",
    "SegmentChange",
    "TooOld",
    "Verified",
    "repair",
]
