"""What a kill left, read from the raw files before anything opens the store: where in a write it struck.

Written from docs/format-log.md and docs/format-kv.md; it shares no code with the store.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from zlib import crc32

from tests.crash.compaction_phase import Phase, phase_of

PAGE = 4096
SEGMENT_HEADER_SIZE = 4096
HOT_OFFSET = 4096
STATE_OFFSET = 4096
SLOT_TABLE_OFFSET = 8192
SEGMENT_NAME = re.compile(r"(\d{20})-([0-9a-f]{16})\.seg")

# turn; twice (seq, segment, end, last); in_flight; durable
_HOT = struct.Struct("<Q QQLL QQLL QQ")
# turn; twice (seq, count)
_APPLIED = struct.Struct("<Q QQ QQ")
# root, clean; incarnation, end, spare, generation, slots_used, segments; split_old
_ROOT = struct.Struct("<QQ")
_SPLITS = struct.Struct("<QQQQQQ")
_SPLIT_OLD_OFFSET = STATE_OFFSET + 192
_INDEX_SEGMENT_SIZE = 9 * 4096


class Inside(StrEnum):
    """Where a kill struck."""

    SURVEY = "inside a compaction, before it writes (looking at what stays, flushing)"
    COPY = "inside a compaction, copying what stays"
    LISTING = "inside a compaction, replacing MANIFEST"
    LEADING = "inside a compaction, leading entries to the copies"
    REMOVAL = "inside a compaction, removing what was replaced"

    APPEND = "inside an append (bytes behind the tail)"
    UNINDEXED = "between commit and index"
    SPLIT_COPY = "inside a split, copying"
    SPLIT = "inside a split, publishing"
    ROLL = "inside a roll"
    RETURNING = "inside a call, its record committed (syncing)"
    OTHER = "inside a call, before its record (making room, flush, close, open)"
    BETWEEN = "between two calls"


COUNTED = (Inside.APPEND, Inside.UNINDEXED, Inside.SPLIT_COPY, Inside.SPLIT, Inside.ROLL)
"""The places that are a write, roll or split."""
COMPACTION = {
    Phase.COPYING: Inside.COPY,
    Phase.LISTING: Inside.LISTING,
    Phase.LEADING: Inside.LEADING,
    Phase.REMOVING: Inside.REMOVAL,
}
COMPACTING = (Inside.SURVEY, *COMPACTION.values())
"""The places that are a compaction."""


@dataclass(frozen=True)
class Wreck:
    """The words that tell. `end`, `last` and `in_flight` are offsets in bytes in the segment `segment_id`."""

    seq: int
    segment_id: int
    end: int
    last: int
    in_flight: int
    applied: int
    index_end: int
    split_old: int
    beyond: int
    """Checksum of the index behind its end, where splits are prepared."""
    unfinished: frozenset[str]
    """Temporary files, and segments that the log does not know of."""
    phase: Phase | None
    """Of a compaction."""

    def place(
        self, before: Wreck, in_call: bool, acknowledged: int, *, in_compaction: bool = False
    ) -> Inside:
        """Where the kill struck, given the state before the round and the number of acknowledged records.

        And whether the call that it was in, if any, was a compaction.
        """
        if self.phase is not None:
            return COMPACTION[self.phase]
        if self.split_old:
            return Inside.SPLIT
        if any(".seg" in name for name in self.unfinished) or self.in_flight < self.end:
            return Inside.ROLL
        if self.end == SEGMENT_HEADER_SIZE and in_call and self.segment_id != before.segment_id:
            return Inside.ROLL
        if self.in_flight > self.end:
            return Inside.APPEND
        if self.applied < self.seq:
            return Inside.UNINDEXED
        if in_call and (self.index_end, self.beyond) != (before.index_end, before.beyond) and self.beyond:
            return Inside.SPLIT_COPY
        if in_call and in_compaction:
            return Inside.SURVEY
        if in_call:
            return Inside.RETURNING if self.seq > acknowledged else Inside.OTHER
        return Inside.BETWEEN


def inspect(store: Path) -> Wreck:
    """Read the words. CONTROL, INDEX and MANIFEST must be there."""
    with (store / "CONTROL").open("rb") as file:
        file.seek(HOT_OFFSET)
        turn, *slots, in_flight, _durable = _HOT.unpack(file.read(_HOT.size))
    seq, segment_id, end, last = slots[4:] if turn & 1 else slots[:4]
    with (store / "INDEX").open("rb") as file:
        head = file.read(STATE_OFFSET + PAGE)
        file.seek(STATE_OFFSET)
        turn, *pairs = _APPLIED.unpack(file.read(_APPLIED.size))
        file.seek(STATE_OFFSET + 64)
        root, _clean = _ROOT.unpack(file.read(_ROOT.size))
        file.seek(STATE_OFFSET + 128)
        _incarnation, index_end, *_ = _SPLITS.unpack(file.read(_SPLITS.size))
        file.seek(_SPLIT_OLD_OFFSET)
        (split_old,) = struct.unpack("<Q", file.read(8))
        file.seek(index_end)
        beyond = file.read(2 * _INDEX_SEGMENT_SIZE + (16 << (root & 0x7F)))
    return Wreck(
        seq=seq,
        segment_id=segment_id,
        end=end * 8,
        last=last * 8,
        in_flight=in_flight,
        applied=pairs[2 * (turn & 1)],
        index_end=index_end,
        split_old=split_old,
        beyond=crc32(beyond) if any(beyond) else 0,
        unfinished=frozenset(_unfinished(store, seq, segment_id)),
        phase=phase_of([entry.name for entry in store.iterdir()], head, (store / "MANIFEST").read_bytes()),
    )


def segment_path(store: Path, segment_id: int) -> Path:
    """The file of a segment."""
    return next(store.glob(f"*-{segment_id:016x}.seg"))


def _unfinished(store: Path, seq: int, segment_id: int) -> list[str]:
    found = []
    for entry in store.iterdir():
        match = SEGMENT_NAME.fullmatch(entry.name)
        if entry.name.endswith(".tmp") or (
            match and int(match[1]) >= seq and int(match[2], 16) != segment_id
        ):
            found.append(entry.name)
    return found
