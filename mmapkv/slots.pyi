from typing import Self

from mmaplog.segment_set import SegmentSet

class SlotMap:
    def __new__(cls, source: SegmentSet) -> Self: ...
