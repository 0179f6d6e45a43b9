from typing import Final

from mmapio._os import Descriptor
from mmaplog.control import Control
from mmaplog.manifest import Manifest
from mmaplog.segment import Segment
from mmaplog.segment_set import SegmentSet

FIRST_ALLOCATION: Final = 65536

def finish_cut(
    segments: SegmentSet, manifest: Manifest, control: Control | None, successor: Segment | None = None
) -> tuple[Segment, Control]: ...
def find_successor(directory: Descriptor, manifest: Manifest) -> Segment | None: ...
