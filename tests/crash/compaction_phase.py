"""How far a compaction of a store had come, from what is in its directory. Written from docs/format-kv.md."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from enum import StrEnum

MOVING_OFFSET = 4096 + 80
"""In INDEX: the id of the segment that entries are being led to."""
_NAME = re.compile(r"(\d{20})-([0-9a-f]{16})(\.compact)?\.seg")


class Phase(StrEnum):
    """In their order."""

    COPYING = "copying what stays"
    LISTING = "replacing MANIFEST"
    LEADING = "leading entries to the copies"
    REMOVING = "removing what was replaced"


def phase_of(names: Collection[str], index: bytes, manifest: bytes) -> Phase | None:
    """The phase, by the names in the directory, INDEX from its start to its State, and MANIFEST.

    None when it has not begun to write, or has ended, or never was.
    """
    if any(name.endswith(".compact.seg.tmp") for name in names):
        return Phase.COPYING
    _, _, body = manifest.partition(b"\n")
    compacted = json.loads(body).get("compacted", []) if body else []
    listed = [(int(segment_id, 16), start, stop) for segment_id, start, stop, _ in compacted]
    moving = int.from_bytes(index[MOVING_OFFSET : MOVING_OFFSET + 8], "little")
    if moving:
        return Phase.LEADING if any(segment_id == moving for segment_id, _, _ in listed) else Phase.LISTING
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        base_seq, segment_id = int(match[1]), int(match[2], 16)
        if match[3] and all(segment_id != each for each, _, _ in listed):
            return Phase.LISTING
        if any(start <= base_seq < stop and segment_id != each for each, start, stop in listed):
            return Phase.REMOVING
    return None
