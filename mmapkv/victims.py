"""Which segments are worth a compaction, and how much dead weight is borne before there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: A store is kept in about so many segments, of no less than the second and no more than its
#: `segment_bytes`. Besides its records it takes two of them: the end of the log, and what is being made.
SEGMENTS = 64
SEGMENT_BYTES_MIN = 2 << 20
#: A segment is rewritten when this part of it would go.
SHARE = 0.2
#: And when it is less, where all dead bytes together are more than this part of the live ones, and half of
#: the least segment.
SHARE_LEAST = 0.03
DEAD_AIM = 0.04
#: From here on, and the least segment, who writes waits.
DEAD_MAX = 0.055
#: Neighbours of what is rewritten come along when less than this part of a segment is live in them.
SMALL = 0.5
#: Tombstones are swept out, by a pass from the first segment on, when they are this part of the log.
SWEPT = 0.1
#: More segments than would do, by so many, are merged.
SPARE_SEGMENTS = 16


class Sealed(NamedTuple):
    """A segment that is not written to any more."""

    base: int
    stop: int
    id: int
    size: int
    dead: int


class Choice(NamedTuple):
    """Neighbours that are to become one segment: as :func:`mmapkv.compaction.step` takes it."""

    segments: list[int]
    wanted: int
    sweepable: int
    bytes_least: int
    size_max: int


class Stuck(NamedTuple):
    """Dead bytes that a compaction found in a segment and had to leave."""

    dead: int
    #: Some of them until nobody looks at the store as it was below this number; 0: tombstones alone.
    needed: int


class Limits:
    """How large segments are to be, and how many dead bytes there may be, by how many are live."""

    def __init__(self, live: int, segment_bytes: int) -> None:
        self.segment_bytes = min(max(SEGMENT_BYTES_MIN, live // SEGMENTS), segment_bytes)
        self.dead_aim = int(DEAD_AIM * live) + SEGMENT_BYTES_MIN // 2
        self.dead_max = int(DEAD_MAX * live) + SEGMENT_BYTES_MIN


class Planner:
    """Chooses, and remembers what came of it. For one thread.

    A tombstone may go when no earlier segment holds a record of its key, or an index built from the log
    would bring that back. What the tombstones below some number hide was dead before they were written. So a
    pass from the first segment on, which leaves nothing dead behind it, sees to it, whatever dies meanwhile.
    """

    def __init__(self) -> None:
        self._stuck: dict[int, Stuck] = {}
        # No segment before `_swept` holds what a tombstone below `_sweepable` hides.
        self._swept = 0
        self._sweepable = 0
        self._sweeping = False
        self._swept_last = False
        # Of so many bytes of tombstones a sweep would find no more to go than the last one.
        self._in_vain = 0
        self._unmergeable: set[int] = set()

    def choose(self, found: Sequence[Sealed], needed: int, limits: Limits) -> Choice | None:
        """The segments to rewrite next, of all that are sealed, or None when nothing is worth it.

        Somebody may need what was current at `needed` or later; whatever is below it was in the index before
        `found` was.
        """
        self._forget(found, needed)
        self._learn_clean(found, needed)
        removable = [max(each.dead - self._left_in(each), 0) for each in found]
        least = SHARE if sum(each.dead for each in found) <= limits.dead_aim else SHARE_LEAST
        shares = [part / max(each.size, 1) for part, each in zip(removable, found, strict=True)]
        best = max(range(len(found)), key=shares.__getitem__, default=0)
        worth = bool(found) and shares[best] >= least
        at = self._next_to_sweep(found, needed, limits)
        if at is not None and not (worth and self._swept_last):
            self._swept_last = True
            return self._choice(found, [each.dead for each in found], at, 0, limits)
        self._swept_last = False
        if worth:
            return self._choice(found, removable, best, int(least / 2 * found[best].size), limits)
        at = self._first_to_merge(found, removable, limits.segment_bytes)
        if at is not None:
            return Choice([found[at].id, found[at + 1].id], found[at].id, 0, 0, limits.segment_bytes)
        return None

    def learn(
        self,
        choice: Choice,
        found: Sequence[Sealed],
        needed: int,
        seen: dict[int, tuple[int, int]],
        made: int,
    ) -> None:
        """What came of a choice: of each segment, what is still dead in it, and how much of that is held."""
        looked_at = [each for each in found if each.id in seen]
        held = any(part for _, part in seen.values())
        until = needed if held else 0
        if made:
            self._stuck[made] = Stuck(sum(dead for dead, _ in seen.values()), until)
        else:
            for key, (dead, _) in seen.items():
                self._stuck[key] = Stuck(dead, until)
            self._unmergeable.add(choice.wanted)
        if held:
            if self._sweeping:
                self._end_sweep(found, in_vain=True)
        elif (made or choice.bytes_least == 0) and looked_at[0].base <= self._swept:
            self._swept = max(self._swept, looked_at[-1].stop)

    def _forget(self, found: Sequence[Sealed], needed: int) -> None:
        present = {each.id: self._stuck[each.id] for each in found if each.id in self._stuck}
        self._stuck = {key: each for key, each in present.items() if not 0 < each.needed < needed}
        if len(self._stuck) < len(present):
            # Those who held it are gone.
            self._in_vain = 0
        self._unmergeable.intersection_update([each.id for each in found])

    def _left_in(self, each: Sealed) -> int:
        stuck = self._stuck.get(each.id)
        return stuck.dead if stuck else 0

    def _learn_clean(self, found: Sequence[Sealed], needed: int) -> None:
        # As far as nothing is dead now, or only tombstones are. While sweeping, these are to go.
        # Before the first segment there is nothing: what was there was cleared.
        first = found[0].base if found else 0
        clean = max(self._swept, first) if self._sweeping else first
        for each in found:
            stuck = self._stuck.get(each.id)
            tombstones = (
                not self._sweeping and stuck is not None and stuck.needed == 0 and each.dead <= stuck.dead
            )
            if each.base <= clean < each.stop and (each.dead == 0 or tombstones):
                clean = each.stop
        if clean >= self._swept:
            self._swept = clean
            if not self._sweeping:
                self._sweepable = needed

    def _next_to_sweep(self, found: Sequence[Sealed], needed: int, limits: Limits) -> int | None:
        if not self._sweeping:
            size = sum(each.size for each in found)
            if self._tombstones(found) < max(SWEPT * size, limits.segment_bytes, self._in_vain):
                return None
            self._sweeping = True
            self._swept, self._sweepable = 0, needed
            self._learn_clean(found, needed)
        for at, each in enumerate(found):
            if each.base >= self._swept and each.dead:
                return at
        self._end_sweep(found, in_vain=needed <= self._sweepable)
        return None

    def _end_sweep(self, found: Sequence[Sealed], *, in_vain: bool) -> None:
        self._sweeping = False
        self._in_vain = 2 * self._tombstones(found) if in_vain else 0

    def _tombstones(self, found: Sequence[Sealed]) -> int:
        return sum(min(self._left_in(each), each.dead) for each in found)

    def _first_to_merge(self, found: Sequence[Sealed], removable: Sequence[int], size_max: int) -> int | None:
        # When there are so many, some two neighbours fit into one.
        if len(found) <= 2 * sum(each.size for each in found) // size_max + SPARE_SEGMENTS:
            return None
        kept = [each.size - part for each, part in zip(found, removable, strict=True)]
        for at in range(len(found) - 1):
            if kept[at] + kept[at + 1] <= size_max and found[at].id not in self._unmergeable:
                return at
        return None

    def _choice(
        self, found: Sequence[Sealed], removable: Sequence[int], at: int, bytes_least: int, limits: Limits
    ) -> Choice:
        group = _around(found, removable, at, limits.segment_bytes)
        sweepable = self._sweepable if group[0].base <= self._swept else 0
        return Choice([each.id for each in group], found[at].id, sweepable, bytes_least, limits.segment_bytes)


def _around(found: Sequence[Sealed], removable: Sequence[int], at: int, size_max: int) -> Sequence[Sealed]:
    # Those next to one that are worth it too, or small, as far as they fit into one segment.
    kept = [each.size - part for each, part in zip(found, removable, strict=True)]
    start, stop, size = at, at + 1, kept[at]

    def joins(other: int) -> bool:
        if not 0 <= other < len(found) or size + kept[other] > size_max:
            return False
        return kept[other] <= SMALL * size_max or removable[other] >= SHARE * found[other].size

    while joins(stop):
        size += kept[stop]
        stop += 1
    while joins(start - 1):
        start -= 1
        size += kept[start]
    return found[start:stop]
