from dataclasses import dataclass

from mmaplog.log import Log
from mmaplog.segment_set import SegmentSet

@dataclass(frozen=True, slots=True)
class Damage:
    path: str
    seq: int
    offset: int
    reason: str

@dataclass(frozen=True, slots=True)
class Verified:
    segments: int
    records: int
    record_bytes: int
    damages: tuple[Damage, ...]

def verify_log(log: Log) -> Verified: ...
def verify(segments: SegmentSet, first: int, committed: int) -> Verified: ...
