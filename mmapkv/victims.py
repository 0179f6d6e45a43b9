"""Which segments are worth a compaction, and how much dead weight is borne before there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

#: So many dead bytes are borne, as a part of the live ones, where nothing else is said: besides the least
#: segment. From there on, who writes waits.
BORNE = 0.065
#: Of these, so many are left alone.
AIM = 8 / 11
#: A store is kept in so many segments at the most, of no less than the third and no more than its
#: `segment_bytes`; in fewer, down to the second, where one still is an eighth of the dead bytes that are
#: borne. Besides its records it takes two of them: the end of the log, and what is being made.
SEGMENTS = 64
SEGMENTS_LEAST = 16
SEGMENT_BYTES_MIN = 2 << 20
BORNE_SEGMENTS = 8
#: A segment is rewritten when this part of it would go, or as much as goes in the long run: `freed_share`.
SHARE = 0.2
#: And when it is this part of the latter, where all dead bytes together are more than are left alone.
LEAST = 0.3
#: Neighbours of what is rewritten come along when less than this part of a segment is live in them.
SMALL = 0.5
#: Tombstones are swept out, by a pass from the first segment on, when they are this part of the log.
SWEPT = 0.1
#: More segments than would do, by so many, are merged.
SPARE_SEGMENTS = 16


def checked(compaction: object, *, compactable: bool) -> float:
    """How many dead bytes `compaction` of ``KVStore.open`` has borne; 0: nothing is compacted by itself.

    That is so, too, of what is not `compactable`: for a reader, and of a cache. TypeError and ValueError for
    other values.
    """
    if isinstance(compaction, bool):
        return BORNE if compaction and compactable else 0.0
    if not isinstance(compaction, Real):
        raise TypeError(
            f"compaction is True, False, or how many dead bytes are borne as a part of the live ones, such "
            f"as 0.5, not {type(compaction).__name__}"
        )
    borne = float(compaction)
    if not 0 < borne < math.inf:
        raise ValueError(
            f"compaction is how many dead bytes are borne as a part of the live ones: a finite number above "
            f"0, not {compaction}; False is for none"
        )
    if not compactable:
        raise ValueError(
            f"compaction={compaction} is for who writes: a reader and a cache have nothing to compact"
        )
    return borne


def freed_share(borne: float) -> float:
    """Which part of a segment is dead when its turn comes, where keys are overwritten evenly and that many
    dead bytes are borne.
    """
    # The root of live part = freed / -ln(1 - freed), which falls as `freed` grows.
    live, low, high = 1 / (1 + borne), 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if middle > -live * math.log1p(-middle):
            low = middle
        else:
            high = middle
    return low


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

    def __init__(self, live: int, segment_bytes: int, borne: float = BORNE) -> None:
        part = max(1 / SEGMENTS, min(borne / BORNE_SEGMENTS, 1 / SEGMENTS_LEAST))
        self.segment_bytes = min(max(SEGMENT_BYTES_MIN, int(part * live)), segment_bytes)
        self.dead_aim = int(AIM * borne * live) + SEGMENT_BYTES_MIN // 2
        self.dead_max = int(borne * live) + SEGMENT_BYTES_MIN
        freed = freed_share(borne)
        self.share = max(SHARE, freed)
        self.share_least = LEAST * freed


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
        # Looking for what has expired goes on with the segment from this number on: from the first one each
        # time, and by a pass. Which of both is at it, if any, and what it has chosen.
        self._look_from = [0, 0]
        self._looking = len(self._look_from)
        self._look: Choice | None = None

    def expect(self) -> None:
        """Something may have expired: look again, until that finds too little in two segments."""
        self._look_from[0] = 0
        self._looking = 0

    def choose(
        self, found: Sequence[Sealed], needed: int, limits: Limits, expiring: int = 0
    ) -> Choice | None:
        """The segments to rewrite next, of all that are sealed, or None when nothing is worth it.

        Somebody may need what was current at `needed` or later; whatever is below it was in the index before
        `found` was.
        """
        self._forget(found, needed)
        self._learn_clean(found, needed)
        removable = [max(each.dead - self._left_in(each), 0) for each in found]
        few = sum(each.dead for each in found) <= limits.dead_aim
        least = limits.share if few else limits.share_least
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
        at = self._next_to_look(found, expiring)
        if at is None:
            return None
        # One with something dead is in the way of those behind it: what has expired leaves as tombstones do.
        least = 0 if removable[at] else limits.share
        self._look = self._choice(found, removable, at, int(least * found[at].size), limits)
        return self._look

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
            if choice is not self._look:
                self._unmergeable.add(choice.wanted)
        if choice is self._look:
            self._look_from[self._looking] = looked_at[-1].stop
            self._looking += not made
        if held:
            if self._sweeping:
                self._end_sweep(found, in_vain=True)
        elif (made or choice.bytes_least == 0) and looked_at[0].base <= self._swept:
            self._swept = max(self._swept, looked_at[-1].stop)

    def _next_to_look(self, found: Sequence[Sealed], expiring: int) -> int | None:
        while self._looking < len(self._look_from):
            start = self._look_from[self._looking] = max(self._look_from[: self._looking + 1])
            for at, each in enumerate(found):
                if start <= each.base < expiring and each.base <= self._swept:
                    return at
            # The next pass begins anew.
            self._look_from[self._looking] = 0
            self._looking += 1
        return None

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
        group = _around(found, removable, at, limits)
        sweepable = self._sweepable if group[0].base <= self._swept else 0
        return Choice([each.id for each in group], found[at].id, sweepable, bytes_least, limits.segment_bytes)


def _around(found: Sequence[Sealed], removable: Sequence[int], at: int, limits: Limits) -> Sequence[Sealed]:
    # Those next to one that are worth it too, or small, as far as they fit into one segment.
    kept = [each.size - part for each, part in zip(found, removable, strict=True)]
    start, stop, size, size_max = at, at + 1, kept[at], limits.segment_bytes

    def joins(other: int) -> bool:
        if not 0 <= other < len(found) or size + kept[other] > size_max:
            return False
        return kept[other] <= SMALL * size_max or removable[other] >= limits.share * found[other].size

    while joins(stop):
        size += kept[stop]
        stop += 1
    while joins(start - 1):
        start -= 1
        size += kept[start]
    return found[start:stop]
