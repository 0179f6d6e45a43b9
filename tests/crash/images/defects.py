"""Planted defects, which the images must catch: syncs that are not made, and a recovery that believes.

The first ones are left out of the recording, as if the log had not made the call. The others do to an image
what a reader would take from it that does not ask for checksums or for the end of a batch.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import xxhash

from mmaplog import recovery
from mmaplog.recovery import Tail
from mmaplog.segment import Segment
from mmaplog.segment_set import SegmentSet
from tests.crash.images.choices import Image
from tests.crash.images.disk import Disk
from tests.crash.images.recording import Event, Step
from tests.crash.images.unfinished import DURABLE_OFFSET, slot, word
from tests.crash.wreck import SEGMENT_HEADER_SIZE, SEGMENT_NAME

DROPPED_SYNC = "dropped-sync"
DROPPED_HEADER_SYNC = "dropped-header-sync"
DROPPED_DIRECTORY_SYNC = "dropped-directory-sync"
EARLY_ACKNOWLEDGEMENT = "early-acknowledgement"
KEPT_TORN_RECORD = "kept-torn-record"
BATCH_WITHOUT_END = "batch-without-end"
NO_BOUNDARY = "no-boundary"

DEFECTS = (
    DROPPED_SYNC,
    DROPPED_HEADER_SYNC,
    DROPPED_DIRECTORY_SYNC,
    EARLY_ACKNOWLEDGEMENT,
    KEPT_TORN_RECORD,
    BATCH_WITHOUT_END,
    NO_BOUNDARY,
)

_HEADER = struct.Struct("<LLLBBH")
_BATCH, _BATCH_END = 0x10, 0x20


def is_dropped(defect: str | None, disk: Disk, step: Step) -> bool:
    """Whether a defect consists in not making the sync of this step."""
    if step.event is not Event.SYNCED:
        return False
    if step.file is None:
        return defect == DROPPED_DIRECTORY_SYNC
    name = next((name for name, file in disk.names.items() if file == step.file), "")
    if name.endswith(".seg.tmp"):
        return defect == DROPPED_HEADER_SYNC
    return defect == DROPPED_SYNC and name.endswith(".seg")


def said_durable(defect: str | None, step: Step) -> int:
    """The number below which CONTROL says that all is durable, at this moment."""
    control = step.look.get("CONTROL", (0, b""))[1]
    if defect == EARLY_ACKNOWLEDGEMENT and step.event is Event.SYNC_BEGINS:
        return slot(control)[0]
    return word(control, DURABLE_OFFSET)


def spoil(defect: str | None, image: Image) -> Image:
    """An image as the recovery of a defect sees it."""
    if defect == KEPT_TORN_RECORD:
        return {name: _change(name, content, _seal_what_follows) for name, content in image.items()}
    if defect == BATCH_WITHOUT_END:
        return {name: _change(name, content, _end_the_last_batch) for name, content in image.items()}
    return image


def plant(defect: str | None) -> None:
    """Plant what lives in this process."""
    if defect == NO_BOUNDARY:
        vars(recovery)["settle"] = _append_over


def _append_over(segments: SegmentSet, tail: Tail, *_: object) -> tuple[Segment, int]:
    # What is torn, without a new segment.
    segments.relist()
    return tail.segment, tail.end


def _change(name: str, content: bytes, change: Callable[[bytearray, int], None]) -> bytes:
    match = SEGMENT_NAME.fullmatch(name)
    if match is None:
        return content
    made = bytearray(content)
    change(made, int(match[2], 16))
    return bytes(made)


def _records(segment: bytearray, segment_id: int) -> Iterator[tuple[int, int, bool]]:
    # (offset, size, whether the checksum fits) of each record, to the first that is none, which is the last.
    offset = SEGMENT_HEADER_SIZE
    while offset + _HEADER.size <= len(segment):
        length, checksum, *_ = _HEADER.unpack_from(segment, offset)
        size = 8 * length
        if not _HEADER.size <= size <= len(segment) - offset:
            return
        verifies = _checksum(segment, segment_id, offset, length) == checksum
        yield offset, size, verifies
        if not verifies:
            return
        offset += size


def _checksum(segment: bytearray, segment_id: int, offset: int, length: int) -> int:
    seed = segment_id ^ (length | offset // 8 << 32)
    return xxhash.xxh3_64_intdigest(segment[offset + 8 : offset + 8 * length], seed) & 0xFFFFFFFF


def _seal(segment: bytearray, segment_id: int, offset: int) -> None:
    (length,) = struct.unpack_from("<L", segment, offset)
    struct.pack_into("<L", segment, offset + 4, _checksum(segment, segment_id, offset, length))


def _seal_what_follows(segment: bytearray, segment_id: int) -> None:
    for offset, _, verifies in list(_records(segment, segment_id)):
        if not verifies:
            _seal(segment, segment_id, offset)


def _end_the_last_batch(segment: bytearray, segment_id: int) -> None:
    whole = [offset for offset, _, verifies in _records(segment, segment_id) if verifies]
    if whole and segment[whole[-1] + 13] & (_BATCH | _BATCH_END) == _BATCH:
        segment[whole[-1] + 13] |= _BATCH_END
        _seal(segment, segment_id, whole[-1])
