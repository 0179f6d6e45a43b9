"""What a log must hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from tests.crash.log_storm.places import is_kept, key_of, place
from tests.crash.log_storm.plan import Call, Kind
from tests.crash.log_storm.records import Origin, payload_of, shown, shown_origin

# Beyond so many records that other writers may have appended, a number is none that the log gave out.
SEQ_SLACK = 1 << 22


class Pending(NamedTuple):
    """A call in flight when its writer was killed."""

    round: int
    writer: int
    number: int
    call: Call

    @property
    def origins(self) -> list[Origin]:
        """The records that it would append."""
        count = len(self.call.sizes)
        return [
            Origin(self.round, self.writer, self.number, index, count, size)
            for index, size in enumerate(self.call.sizes)
        ]


@dataclass
class Model:
    """The records by number, and which numbers have been taken out from between them."""

    first: int = 0
    end: int = 0
    records: dict[int, Origin] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    is_shared: bool = False
    """Several writers: how far a truncation reaches depends on what the others had appended by then."""
    removable: set[int] = field(default_factory=set)
    """What a compaction of this round did not keep; where it did not reach, it is still there."""

    def apply(self, made: Pending, seq: int) -> list[str]:
        """A call that has returned `seq`. What is wrong with that number."""
        kind = made.call.kind
        numbered = kind.appends or kind in (Kind.TRUNCATE_BEFORE, Kind.RETAIN)
        if numbered and seq > self.end + SEQ_SLACK:
            # Acknowledged before it was done, so that there is no number yet.
            return [f"{kind.name} is said to have returned {seq}"]
        if kind.appends:
            return self._append(made, seq)
        if kind in (Kind.TRUNCATE_BEFORE, Kind.RETAIN):
            limit = self.limit(made.call)
            wrong = [] if self.first <= seq <= limit else [f"{kind.name} left {seq}, should be up to {limit}"]
            if kind is Kind.TRUNCATE_BEFORE and seq != limit and not self.is_shared:
                wrong = [f"TRUNCATE_BEFORE({limit}) left {seq}"]
            self.drop_before(seq)
            return wrong
        if kind is Kind.TRUNCATE_AFTER:
            self.drop_after(self.limit(made.call))
        elif kind in (Kind.COMPACT, Kind.COMPACT_BY_KEY):
            self.removable |= self.not_kept(made.call)
        return []

    def limit(self, call: Call) -> int:
        """How far a call reaches that drops records at either end, or at the most may reach."""
        if self.is_shared:
            return self.end
        if call.kind is Kind.RETAIN:
            return self.end - place(0, self.end - self.first, call.share)
        return place(self.first, self.end, call.share)

    def drop_before(self, seq: int) -> None:
        """The log begins with `seq` now."""
        for number in range(self.first, seq):
            self._forget(number)
        self.first = max(self.first, seq)

    def drop_after(self, seq: int) -> None:
        """The next number is `seq` now."""
        for number in range(seq, self.end):
            self._forget(number)
        self.end = seq

    def not_kept(self, call: Call) -> set[int]:
        """The records that a compaction takes out of the segments that it reaches."""
        if call.kind is Kind.COMPACT:
            return {seq for seq in self.records if not is_kept(seq, call.share)}
        newest = {key_of(seq, call.share): seq for seq in sorted(self.records)}
        return self.records.keys() - newest.values()

    def take_out(self, found: dict[int, bytes]) -> None:
        """Of what the compactions of a round did not keep, that is gone which is not found."""
        for number in self.removable - found.keys():
            self.records.pop(number, None)
            self.removed.add(number)
        self.removable.clear()

    def resolve(self, pending: list[Pending], found: dict[int, bytes], committed: int) -> list[str]:
        """Which of the records in flight have come to be there: all of them, or some first ones.

        What is there and in nobody's flight is said to be wrong, and believed from here on.
        """
        wrong = []
        begun: dict[Pending, list[int]] = {made: [] for made in pending if made.call.kind.appends}
        for seq in self._unknown(committed):
            payload = found.get(seq)
            if payload is None:
                wrong.append(f"record {seq} is missing, though {committed} are committed")
                continue
            for made, numbers in begun.items():
                index = len(numbers)
                if index < len(made.call.sizes) and payload == payload_of(made.origins[index]):
                    numbers.append(seq)
                    self.records[seq] = made.origins[index]
                    break
            else:
                wrong.append(f"record {seq} is {shown(payload)}, which nobody was appending")
                self.records[seq] = Origin(0, 0, 0, 0, 0, len(payload))
        self.end = max(self.end, committed)
        for made, numbers in begun.items():
            whole = list(range(numbers[0], numbers[0] + len(made.call.sizes))) if numbers else []
            if made.call.kind is Kind.BATCH and numbers != whole:
                wrong.append(f"of the batch of {shown_origin(made.origins[0])} there are {numbers}")
        return wrong

    def _forget(self, number: int) -> None:
        self.records.pop(number, None)
        self.removed.discard(number)
        self.removable.discard(number)

    def _unknown(self, committed: int) -> list[int]:
        # Numbers that nobody was told of. With several writers some may be below the last one that was.
        start = self.end if len(self.records) + len(self.removed) == self.end - self.first else self.first
        numbers = range(start, max(committed, self.end))
        return [seq for seq in numbers if seq not in self.records and seq not in self.removed]

    def _append(self, made: Pending, seq: int) -> list[str]:
        wrong = []
        for number, origin in enumerate(made.origins, start=seq):
            if number < self.first:
                continue
            if number in self.records:
                wrong.append(
                    f"{shown_origin(origin)} and {shown_origin(self.records[number])} were both acknowledged "
                    f"as record {number}"
                )
            self.records[number] = origin
        self.end = max(self.end, seq + len(made.call.sizes))
        return wrong
