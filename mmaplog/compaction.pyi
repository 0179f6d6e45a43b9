from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from mmaplog.draft import Draft
from mmaplog.log import Log
from mmaplog.manifest import Compacted
from mmaplog.replay import Entry
from mmaplog.segment import Segment

@dataclass(frozen=True, slots=True)
class Compaction:
    segments_replaced: int
    segments_written: int
    records_removed: int
    bytes_freed: int

@dataclass
class Group:
    segments: list[Segment]
    kept: list[Any]
    size: int
    records: int
    removed: int
    stop: int
    swept: int = 0
    trims: bool = False

def compact(
    log: Log, keep: Callable[[Entry], object] | None, key: Callable[[Entry], Hashable | None] | None
) -> Compaction: ...
def rewrite(
    log: Log,
    group: Group,
    counts: list[int],
    copy: Callable[[Segment, Any, Draft], None] | None = None,
    replace: Callable[[Draft, Compacted, list[Segment], int], None] | None = None,
) -> None: ...
def copy_records(source: Segment, offsets: Any, target: Draft) -> None: ...
def fits(group: Group, segment: Segment, stop: int, size: int, segment_bytes: int) -> bool: ...
def sealed_segments(log: Log) -> list[Segment]: ...
