"""Which segments are chosen for a compaction. A segment here is what it holds: no file."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from fractions import Fraction

import pytest

from mmapkv import victims
from mmapkv.victims import Choice, Limits, Planner, Sealed

SIZE = 1000
LIVE = 10 * SIZE


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(victims, "SEGMENT_BYTES_MIN", SIZE)


def limits() -> Limits:
    """A segment has 1,000 bytes, and 900 of dead ones are borne."""
    return Limits(LIVE, SIZE, 0.055)


@dataclass
class Row:
    """A segment: of each superseded record the number of what superseded it, and its tombstones.

    A record has 10 bytes. What has expired is live as far as anybody knows who has not looked.
    """

    base: int
    stop: int
    id: int
    live: int = 500
    superseded: list[int] = field(default_factory=list)
    held: int = 0
    tombstones: list[int] = field(default_factory=list)
    expired: int = 0

    def sealed(self) -> Sealed:
        dead = 10 * len(self.superseded) + self.held + 10 * len(self.tombstones)
        return Sealed(self.base, self.stop, self.id, self.live + self.expired + dead, dead)


class Log:
    """Carries out what a planner chooses, and keeps to the rule about tombstones."""

    def __init__(self, *rows: Row) -> None:
        self.rows = list(rows)
        self.planner = Planner()
        self.ids = 1000

    def step(self, needed: int = 1 << 40, expiring: int = 0) -> Choice | None:
        found = [each.sealed() for each in self.rows]
        choice = self.planner.choose(found, needed, limits(), expiring)
        if choice is None:
            return None
        group = [each for each in self.rows if each.id in choice.segments]
        assert [each.id for each in group] == choice.segments
        at = self.rows.index(group[0])
        assert self.rows[at : at + len(group)] == group
        self.ids += 1
        sweepable = min(choice.sweepable, needed)
        made = Row(group[0].base, group[-1].stop, self.ids, sum(each.live for each in group))
        made.held = sum(each.held for each in group)
        made.expired = sum(each.expired for each in group if each.stop > sweepable)
        made.tombstones = [each for row in group for each in row.tombstones if each >= sweepable]
        gone = [each for row in group for each in row.tombstones if each < sweepable]
        # Nothing that one of these may hide is in an earlier segment.
        assert not any(
            number <= max(gone, default=-1) for each in self.rows[:at] for number in each.superseded
        )
        seen = {
            each.id: (each.held + 10 * sum(number >= sweepable for number in each.tombstones), each.held)
            for each in group
        }
        freed = sum(each.sealed().size for each in group) - made.sealed().size
        gains = freed >= choice.bytes_least and (freed or len(group) > 1)
        if gains:
            self.rows[at : at + len(group)] = [made]
        self.planner.learn(choice, found, needed, seen, made.id if gains else 0)
        return choice

    def run(self, needed: int = 1 << 40, expiring: int = 0) -> int:
        """Until there is nothing more to do, which must come."""
        for count in range(300):
            if self.step(needed, expiring) is None:
                return count
        raise AssertionError("it never ends")


def rows(count: int, live: int = 900) -> list[Row]:
    return [Row(100 * at, 100 * at + 100, at + 1, live) for at in range(count)]


def test_nothing_is_chosen_of_nothing() -> None:
    assert Log().step() is None
    assert Log(*rows(5)).step() is None


def test_the_one_with_the_most_to_remove_is_first() -> None:
    log = Log(*rows(8))
    log.rows[2].superseded, log.rows[5].superseded = [800] * 30, [800] * 40
    choice = log.step()
    assert choice is not None and choice.wanted == 6
    choice = log.step()
    assert choice is not None and choice.wanted == 3
    assert log.step() is None


def test_a_little_is_left_until_there_is_much() -> None:
    log = Log(*rows(8))
    for row in log.rows[:4]:
        row.superseded = [800] * 10
    assert log.step() is None
    for row in log.rows[4:]:
        row.superseded = [800] * 15
    assert log.run() > 0
    assert 10 * sum(len(row.superseded) for row in log.rows) <= limits().dead_aim


def test_neighbours_come_along_where_there_is_room() -> None:
    log = Log(*rows(6, live=300))
    log.rows[3].superseded = [600] * 40
    choice = log.step()
    assert choice is not None and len(choice.segments) == 3
    assert log.step() is None


def test_many_small_ones_are_merged() -> None:
    log = Log(*rows(200, live=40))
    log.run()
    assert len(log.rows) <= 2 * 200 * 40 // SIZE + victims.SPARE_SEGMENTS


def test_those_that_cannot_be_merged_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(*rows(100, live=40))
    found = [each.sealed() for each in log.rows]
    chosen = set()
    for _ in range(100):
        choice = log.planner.choose(found, 1 << 40, limits())
        if choice is None:
            break
        assert choice.wanted not in chosen
        chosen.add(choice.wanted)
        log.planner.learn(choice, found, 1 << 40, {choice.wanted: (0, 0)}, 0)
    else:
        raise AssertionError("it never ends")


def test_tombstones_are_swept_out_from_the_first_segment_on() -> None:
    log = Log(*rows(10, live=500))
    for row in log.rows[5:]:
        row.tombstones = list(range(row.base, row.base + 40))
    for row in log.rows[:5]:
        row.superseded = [row.stop + 400] * 3
    log.run()
    assert not any(row.tombstones for row in log.rows)


def test_tombstones_are_swept_out_where_the_log_does_not_begin_with_its_first_record() -> None:
    """What was cleared is not there any more."""
    log = Log(*rows(10, live=500)[3:])
    assert log.rows[0].base > 0
    for row in log.rows[3:]:
        row.tombstones = list(range(row.base, row.base + 40))
    log.run()
    assert not any(row.tombstones for row in log.rows)


def test_what_a_snapshot_holds_is_taken_up_again_when_it_is_gone() -> None:
    log = Log(*rows(4))
    log.rows[1].held = 900
    count = log.run(needed=100)
    assert 0 < count < 10
    assert log.run(needed=100) == 0
    log.rows[1].superseded, log.rows[1].held = [100] * 90, 0
    log.run(needed=101)
    assert not any(row.superseded for row in log.rows)


def test_what_has_expired_is_found_though_nothing_is_dead() -> None:
    """As much as there is in one go, where it is at the beginning."""
    log = Log(*rows(20))
    for row in log.rows[:8]:
        row.live, row.expired = 0, 900
    assert log.run(expiring=2000) == 0, "nobody said that something may have expired"
    log.planner.expect()
    log.run(expiring=2000)
    assert not any(row.expired for row in log.rows)


def test_where_nothing_has_expired_few_are_looked_at() -> None:
    """Two each time; and all of them by and by."""
    log = Log(*rows(20))
    log.rows[15].live, log.rows[15].expired = 0, 900
    for _ in range(16):
        log.planner.expect()
        assert log.run(expiring=2000) <= 3
    assert not any(row.expired for row in log.rows)


def test_where_nothing_expires_nothing_is_looked_at() -> None:
    log = Log(*rows(20))
    log.rows[3].live, log.rows[3].expired = 0, 900
    for expiring, looks in ((0, 0), (300, 2)):
        log.planner.expect()
        assert log.run(expiring=expiring) == looks
    assert log.rows[3].expired


def test_what_has_expired_is_found_behind_what_is_dead() -> None:
    """A segment with something dead is rewritten first: what has expired leaves only behind clean ones."""
    log = Log(*rows(10))
    log.rows[0].superseded = [800] * 3
    log.rows[5].live, log.rows[5].expired = 0, 900
    for _ in range(20):
        log.planner.expect()
        log.run(expiring=2000)
    assert not any(row.expired for row in log.rows)


@pytest.mark.parametrize("borne", [0.001, 0.07, 0.5, 3, 1e9])
def test_the_more_is_borne_the_less_is_copied(borne: float) -> None:
    freed = victims.freed_share(borne)
    assert 0 < freed <= 1
    if freed < 0.99:
        assert freed / -math.log1p(-freed) == pytest.approx(1 / (1 + borne))
    less, more = Limits(LIVE, SIZE, borne), Limits(LIVE, SIZE, 2 * borne)
    assert less.dead_aim < less.dead_max < more.dead_max
    assert less.share <= more.share
    assert less.share_least <= more.share_least < more.share


def test_the_more_is_borne_the_fewer_segments_there_are() -> None:
    sizes = [Limits(1 << 30, 64 << 20, borne).segment_bytes for borne in (0.055, 0.25, 0.5, 8.0)]
    assert sizes == [16 << 20, 32 << 20, 64 << 20, 64 << 20]


def test_what_is_borne_is_a_number_above_zero() -> None:
    assert victims.checked(True, compactable=True) == victims.BORNE
    assert victims.checked(True, compactable=False) == victims.checked(False, compactable=True) == 0
    assert victims.checked(0.5, compactable=True) == victims.checked(Fraction(1, 2), compactable=True) == 0.5
    assert victims.checked(1, compactable=True) == 1.0
    for wrong in (0, -0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="finite number above 0"):
            victims.checked(wrong, compactable=True)
    with pytest.raises(ValueError, match="for who writes"):
        victims.checked(0.5, compactable=False)
    for nothing in ("0.5", None):
        with pytest.raises(TypeError, match=r"not (str|NoneType)"):
            victims.checked(nothing, compactable=True)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_dies_it_ends_and_is_right(seed: int) -> None:
    chance = random.Random(seed)
    log = Log(*rows(chance.randrange(1, 20), live=chance.randrange(0, 900)))
    needed = 0
    for _ in range(60):
        stop = log.rows[-1].stop
        for row in chance.sample(log.rows, min(3, len(log.rows))):
            died = min(row.live, chance.randrange(200))
            row.live -= 10 * (died // 10)
            row.superseded += [chance.randrange(stop, stop + 100) for _ in range(died // 10)]
        log.ids += 1
        made = Row(stop, stop + 100, log.ids, chance.randrange(800))
        made.tombstones = sorted(chance.sample(range(stop, stop + 100), chance.randrange(30)))
        log.rows.append(made)
        needed = chance.choice([needed, stop + 100])
        log.run(needed)
    log.run(log.rows[-1].stop)
    total = sum(row.sealed().size for row in log.rows)
    assert sum(row.sealed().dead for row in log.rows) <= limits().dead_aim + max(SIZE, total // 5)
