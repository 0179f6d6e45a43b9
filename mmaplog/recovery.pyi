from collections.abc import Iterable
from dataclasses import dataclass
from logging import Logger
from typing import Final

from mmapio._os import Descriptor
from mmaplog.control import Control
from mmaplog.manifest import Manifest
from mmaplog.segment import Segment
from mmaplog.segment_set import SegmentSet

BAD_SUFFIX: Final = ".bad"
logger: Logger

@dataclass
class Tail:
    segment: Segment
    seq: int
    end: int
    last: int
    known_durable: int
    leftover: bool
    dropped: list[Segment]

def find_tail(segments: SegmentSet, floor: int) -> Tail: ...
def confirm(segments: SegmentSet, control: Control) -> bool: ...
def repeat_sync(segments: SegmentSet, control: Control, which: int) -> None: ...
def cleanse(segments: SegmentSet, control: Control, temporaries: Iterable[str]) -> None: ...
def announce(directory: Descriptor, manifest: Manifest, tail: Tail) -> None: ...
def settle(
    segments: SegmentSet, tail: Tail, segment_bytes: int, step: int, again: bool
) -> tuple[Segment, int]: ...
def salvage(segments: SegmentSet, tail: Tail, durable: int, segment_bytes: int) -> Tail: ...
