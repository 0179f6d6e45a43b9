from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from mmaplog.log import Log
from mmaplog.segment_set import SegmentSet

_Progress: TypeAlias = Callable[[int, int], object]

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

def verify_log(log: Log, progress: _Progress | None = None) -> Verified: ...
def verify(
    segments: SegmentSet, first: int, committed: int, progress: _Progress | None = None
) -> Verified: ...
