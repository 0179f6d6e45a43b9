"""What must be true of a log after a power cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Record(NamedTuple):
    """What was appended. Records of one batch have its number, others None."""

    payload: bytes
    batch: int | None


@dataclass(frozen=True)
class Expected:
    """One of the states that a log may be in: a prefix of `records`, numbered from 0, of at least `floor`.

    It begins with one of the numbers `firsts`. Those in `removable` may be missing within, those in `removed`
    must.
    """

    records: tuple[Record, ...] = ()
    floor: int = 0
    firsts: frozenset[int] = frozenset({0})
    removable: frozenset[int] = frozenset()
    removed: frozenset[int] = frozenset()

    def complaints(self, first: int, committed: int, found: dict[int, bytes]) -> list[str]:
        """What keeps a log that was found from being this one."""
        wrong = []
        if first not in self.firsts:
            wrong.append(f"the log begins with {first}, should with {sorted(self.firsts)}")
        if committed < self.floor:
            wrong.append(f"the log ends before {committed}, but what is below {self.floor} was durable")
        if committed > len(self.records):
            wrong.append(f"the log ends before {committed}, but {len(self.records)} were submitted")
        for seq in range(first, min(committed, len(self.records))):
            payload = found.get(seq)
            if payload is None:
                if seq not in self.removable and seq not in self.removed:
                    wrong.append(f"record {seq} is missing")
            elif seq in self.removed:
                wrong.append(f"record {seq} is there, and had been removed")
            elif payload != self.records[seq].payload:
                wrong.append(f"record {seq} is {_short(payload)}, not {_short(self.records[seq].payload)}")
        if 0 < committed < len(self.records):
            batch = self.records[committed - 1].batch
            if batch is not None and self.records[committed].batch == batch and first < committed:
                wrong.append(f"the log ends before {committed}, within a batch")
        return wrong


Alternatives = tuple[Expected, ...]


def complaints(alternatives: Alternatives, first: int, committed: int, found: dict[int, bytes]) -> list[str]:
    """What keeps a log from being any of these: what is wrong with it as the best fitting one."""
    judged = [each.complaints(first, committed, found) for each in alternatives]
    best = min(judged, key=len)
    return best[:5]


def _short(payload: bytes) -> str:
    return repr(payload) if len(payload) <= 32 else f"{payload[:32]!r}... ({len(payload)} bytes)"
