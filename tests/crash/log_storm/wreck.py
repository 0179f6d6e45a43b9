"""What a kill left, read from the raw files before anything opens the log.

Written from docs/format-log.md; it shares no code with the log.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from tests.crash.wreck import HOT_OFFSET, SEGMENT_NAME

# turn; twice (seq, segment, end, last); in_flight; durable
_HOT = struct.Struct("<Q QQLL QQLL QQ")

TAIL = "bytes of an append behind the tail"
ROLL = "a segment that the log does not know of"
TEMPORARY = "a segment without its name"
MANIFEST = "a manifest without its name"
UNSYNCED = "records that were not durable"
CLEAN = "nothing of these"


@dataclass(frozen=True)
class Wreck:
    """The words that tell. `end`, `last` and `in_flight` are offsets in bytes in the segment `segment_id`."""

    seq: int
    segment_id: int
    end: int
    last: int
    in_flight: int
    durable: int
    names: frozenset[str]

    @property
    def traces(self) -> list[str]:
        """What the kill left behind, of what an opener has to deal with."""
        found = []
        if self.in_flight > self.end:
            found.append(TAIL)
        for name in self.names:
            match = SEGMENT_NAME.fullmatch(name)
            if match and int(match[1]) >= self.seq and int(match[2], 16) != self.segment_id:
                found.append(ROLL)
            elif name.endswith(".seg.tmp"):
                found.append(TEMPORARY)
            elif name == "MANIFEST.tmp":
                found.append(MANIFEST)
        if self.durable < self.seq:
            found.append(UNSYNCED)
        return sorted(set(found)) or [CLEAN]


def inspect(directory: Path) -> Wreck:
    """Read the words. CONTROL must be there."""
    with (directory / "CONTROL").open("rb") as file:
        file.seek(HOT_OFFSET)
        turn, *slots, in_flight, durable = _HOT.unpack(file.read(_HOT.size))
    seq, segment_id, end, last = slots[4:] if turn & 1 else slots[:4]
    names = frozenset(entry.name for entry in directory.iterdir())
    return Wreck(seq, segment_id, end * 8, last * 8, in_flight, durable, names)


def segment_path(directory: Path, segment_id: int) -> Path:
    """The file of a segment."""
    return next(directory.glob(f"*-{segment_id:016x}.seg"))
