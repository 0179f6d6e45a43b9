"""MANIFEST from the segments: it was lost, or the log was being made and there was none yet."""

from __future__ import annotations

import uuid

from mmapio import _os
from mmaplog.manifest import (
    COMPACTED_SUFFIX,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    SEQ_MAX,
    Compacted,
    Cut,
    Manifest,
    with_begun,
)
from mmaplog.segment import open_segment


def derive_manifest(directory: _os.Descriptor, names: list[tuple[int, int, str]]) -> Manifest:
    """What the segments of an open directory tell, given as (base_seq, id, name), in order; at least one.

    What MANIFEST alone knew is forgotten: that a truncation dropped the first records of a segment.
    Costs a look at every segment. Raises FormatError, CorruptionError.
    """
    first = _os.open_file(names[0][2], False, follow=False, directory=directory)
    log_uuid = uuid.UUID(bytes=_os.read_at(first, 40, 0)[24:].ljust(16, b"\0"))
    segments = [open_segment(directory, name, log_uuid, False) for _, _, name in names]
    present = {segment.id for segment in segments}
    plain = [segment.capacity for segment in segments if not segment.name.endswith(COMPACTED_SUFFIX)]
    compacted: list[Compacted] = []
    for segment in segments:
        footer = segment.footer()
        # What it replaces is removed only after it counts, the first one first.
        if not segment.sparse or footer is None or segment.replaces in present:
            continue
        stop, records = footer
        # A truncation since then ended it earlier: there the numbers began anew.
        newer = [
            other.base_seq
            for other in segments
            if segment.base_seq < other.base_seq < stop and other.epoch > segment.epoch
        ]
        if newer:
            stop = min(newer)
            records = segment.count_below(stop)
        # One that begins within another is what that one replaced.
        if not compacted or segment.base_seq >= compacted[-1].stop:
            compacted.append(Compacted(segment.id, segment.base_seq, stop, records))
    newest = max(segments, key=lambda segment: segment.epoch)
    cut = None
    alone = sum(segment.epoch == newest.epoch for segment in segments) == 1
    behind = any(segment.base_seq >= newest.base_seq for segment in segments if segment is not newest)
    if alone and behind and newest.count_below(SEQ_MAX) == 0:
        # A truncation of the end makes the segment where the log goes on before it removes what it drops.
        cut = Cut(newest.base_seq, newest.epoch)
    capacity = plain[0] if plain else SEGMENT_BYTES_MIN
    # Whatever is not there may have been swept, and the epoch of the first segment may have begun there.
    began = with_begun((), [(0, segments[0].epoch)]) if names[0][0] else ()
    swept = max([names[0][0], *(each.stop for each in compacted)])
    return Manifest(
        log_uuid,
        min(max(capacity, SEGMENT_BYTES_MIN), SEGMENT_BYTES_MAX),
        names[0][0],
        compacted=tuple(compacted),
        cut=cut,
        swept=swept,
        sweeps=swept,
        began=began,
    )
