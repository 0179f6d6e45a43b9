"""Following the changes behind a compaction: what was superseded is no loss, a deletion that is gone is."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from mmapkv import Change, Changes, KVStore, TooOld, compaction
from mmapkv.compactor import Compactor
from mmaplog import Log, repair
from tests.unit.mmapkv.stores import MANUAL, SEGMENT, lose, opened

FILL = bytes(SEGMENT // 2)


class Copy:
    """A copy of a store, kept by its changes alone."""

    def __init__(self) -> None:
        self.since = 0
        self._held: dict[bytes, Change] = {}

    def apply(self, change: Change) -> None:
        """What a change does to it; it goes on behind that."""
        self.since = change.seq + 1
        if change.kind == "clear":
            assert change.below is not None
            self._held = {key: each for key, each in self._held.items() if each.seq >= change.below}
        elif change.kind == "delete":
            self._held.pop(change.key, None)
        else:
            self._held[change.key] = change

    def follow(self, changes: Changes, count: int | None = None) -> None:
        """Apply so many of them, or all that there are."""
        if count is not None:
            for _ in range(count):
                self.apply(next(changes))
            return
        for change in changes:
            self.apply(change)
        self.since = changes.seq

    def live(self) -> dict[bytes, bytes]:
        """What is in it, and has not expired."""
        now = time.time_ns()
        return {
            key: each.value or b""
            for key, each in self._held.items()
            if each.expires_ns is None or each.expires_ns > now
        }


def fill(kv: KVStore) -> None:
    """Go on to a new segment, so that what is there can be compacted."""
    for _ in range(3):
        kv[b"fill"] = FILL


def swept(path: Path) -> list[int] | None:
    """What MANIFEST says of it."""
    told: list[int] | None = json.loads((path / "MANIFEST").read_bytes().split(b"\n")[1]).get("swept")
    return told


def test_what_was_superseded_is_not_missed(tmp_path: Path) -> None:
    """It raised TooOld, though nothing was deleted: what superseded it comes."""
    copy = Copy()
    with opened(tmp_path / "kv") as kv, opened(tmp_path / "kv", "r") as reader:
        for turn in range(20):
            kv.put_many((b"%d" % key, b"%d" % turn) for key in range(50))
        kv.update({b"gone": b"1", b"again": b"1"})
        del kv[b"again"]
        changes = reader.changes(follow=True, timeout=0)
        copy.follow(changes, 120)
        fill(kv)
        kv[b"again"] = b"2"
        assert kv.compact().records_removed > 900
        assert swept(tmp_path / "kv") is None
        copy.follow(changes)
        assert copy.live() == dict(kv.items())
        assert not changes.complete
        for since in (1, 7, 333, 950):
            assert {change.key for change in reader.changes(since)} >= {b"0", b"49", b"again", b"fill"}


def test_a_deletion_that_was_swept_is(tmp_path: Path) -> None:
    """By whoever had come less far; and who begins with nothing needs none. Nothing but loss of MANIFEST
    makes it forgotten, and then it is on the safe side."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv.update({b"a": b"1", b"b": b"1"})
        kv[b"b"] = b"2"
        del kv[b"a"]
        kv[b"b"] = b"3"
        fill(kv)
        kv.compact()
        assert swept(path) == [4, 1]
    for lost in ((), ("INDEX",), ("CONTROL",)):
        with opened(lose(path, *lost)) as kv:
            for since in (1, 2, 3):
                with pytest.raises(TooOld, match=f"between {since} and 4, and deletions below number 4"):
                    next(kv.changes(since))
            for since in (0, 4):
                assert next(kv.changes(since)) == Change(4, "put", b"b", b"3", None)
            assert kv.compact().segments_written == 0
    with opened(lose(path, "MANIFEST"), "w") as kv:
        with pytest.raises(TooOld):
            next(kv.changes(1))
        assert next(kv.changes(0)).seq == 4


def test_a_value_that_had_expired(tmp_path: Path) -> None:
    """It is as good as a deletion of what it superseded. Where it was the first of its key, of nothing."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        for key in range(5):
            kv.put(b"first %d" % key, b"1", ttl=1e-9)
        fill(kv)
        assert kv.compact().records_removed >= 5
        assert swept(path) is None
        at = kv.stats()["committed"]
        kv[b"second"] = b"1"
        kv.put(b"second", b"2", ttl=1e-9)
        fill(kv)
        kv.compact()
        assert swept(path) == [at + 2, 1]
        with pytest.raises(TooOld):
            list(kv.changes(at + 1))
        assert {change.key for change in kv.changes(at + 2)} == {b"fill"}


def test_a_clear_that_was_swept(tmp_path: Path) -> None:
    """It deleted everything, and nothing else says so any more."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv[b"a"] = b"1"
        kv.clear()
        fill(kv)
        kv.compact()
        assert swept(path) == [2, 1]
        with pytest.raises(TooOld):
            list(kv.changes(1))
        assert {change.key for change in kv.changes(2)} == {b"fill"}


def test_what_was_cleared_is_passed_over(tmp_path: Path) -> None:
    """Whole segments go from the beginning of the log: who was within them goes on with what is left."""
    path = tmp_path / "kv"
    with opened(path) as kv, opened(path, "r") as reader:
        following, copy, empty = reader.changes(follow=True, timeout=0), Copy(), Copy()
        kv[b"a"] = b"1"
        copy.follow(following, 1)
        another = reader.changes(1)
        kv.update({b"b": b"1", b"c": b"1"})
        fill(kv)
        kv.clear()
        kv[b"d"] = b"1"
        # As in the background, which finds no segment worth more.
        assert compaction.step(kv, kv._pins, lambda *_: None, lambda: None) is None
        with Log.open(path, "r") as log:
            first = log.first_seq
        assert first > 1
        assert swept(path) is None
        copy.follow(following)
        assert copy.live() == {b"d": b"1"}
        assert not following.complete
        assert list(another) == []
        assert another.seq == first
        empty.follow(reader.changes(0))
        assert empty.live() == {b"d": b"1"}
        behind = reader.changes(2)
        assert [change.kind for change in behind][-2:] == ["clear", "put"]
        assert not behind.complete
    with Log.open(path, flush_policy=MANUAL) as log:
        log.truncate_before(first + 1)
    with opened(path, "r") as kv:
        with pytest.raises(TooOld, match="the log holds"):
            kv.changes(2)
        with pytest.raises(TooOld, match="the log holds"):
            kv.changes(first)


def test_who_reads_all_while_it_is_swept(tmp_path: Path) -> None:
    """What went before he began he does not need. What goes meanwhile he may: he has the value by then."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv.update({b"a": b"1", b"b": b"1", b"c": b"1"})
        del kv[b"a"]
        fill(kv)
        kv.compact()
        begun, before = kv.changes(), swept(path)
        assert before is not None
        kv.update({b"x": b"1"})
        fill(kv)
        kv.compact()
        # Superseded values went, and nothing else.
        assert swept(path) == before
        assert [change.key for change in begun] == [b"b", b"c"]
        assert not begun.complete
        begun = kv.changes()
        assert next(begun).key == b"b"
        del kv[b"b"]
        fill(kv)
        kv.compact()
        assert swept(path) != before
        assert next(begun).key == b"c"
        with pytest.raises(TooOld):
            list(begun)


def test_what_a_repair_could_not_save_may_be_missed(tmp_path: Path) -> None:
    """By whoever had not come so far: nobody knows what it was."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        for number in range(4):
            kv[b"%d" % number] = FILL
        del kv[b"0"]
        fill(kv)
    victim = sorted(path.glob("*.seg"))[1]
    lost = repair_of(path, victim)
    told = swept(path)
    assert told is not None
    assert told[0] == max(lost)
    with opened(path, "r") as kv:
        with pytest.raises(TooOld):
            list(kv.changes(min(lost)))
        list(kv.changes(max(lost)))


def repair_of(path: Path, victim: Path) -> list[int]:
    """Spoil a segment and repair the log: between which numbers records are lost."""
    data = bytearray(victim.read_bytes())
    data[5000] ^= 1
    victim.write_bytes(data)
    lost = repair(path).lost
    return [number for each in lost for number in (each.start, each.stop) if number is not None]


def test_a_backup_says_the_same(tmp_path: Path) -> None:
    with opened(tmp_path / "kv") as kv:
        kv[b"a"] = b"1"
        del kv[b"a"]
        fill(kv)
        kv.compact()
        kv.backup(tmp_path / "copy")
    assert swept(tmp_path / "copy") == swept(tmp_path / "kv") == [2, 1]


def test_a_cut_takes_it_back(tmp_path: Path) -> None:
    """Numbers that are given out again have not been swept."""
    with Log.open(tmp_path / "log", flush_policy=MANUAL, segment_bytes=SEGMENT) as log:
        log.append_many([bytes(SEGMENT // 4)] * 20)
        log.compact(lambda entry: entry.seq != 7)
        assert swept(tmp_path / "log") == [8, 1]
        log.truncate_after(5)
        assert swept(tmp_path / "log") == [5, 1]
        log.truncate_before(2)
        assert swept(tmp_path / "log") == [5, 2]


@pytest.mark.parametrize("seed", range(6))
def test_a_copy_is_right_or_told_so(tmp_path: Path, seed: int) -> None:
    """Whoever is not told that he is too old has, in the end, what the store has; whatever went meanwhile."""
    chance = random.Random(seed)
    keys = [b"%d" % number for number in range(30)]
    told = went_on = 0
    with opened(tmp_path / "kv") as kv, opened(tmp_path / "kv", "r") as reader:
        copies = [Copy() for _ in range(6)]
        # What it does of its own accord, done here.
        thread = Compactor(kv, 0.0)
        for _ in range(60):
            for _ in range(chance.randrange(60)):
                key, kind = chance.choice(keys), chance.randrange(100)
                if kind < 20:
                    kv.pop(key, None)
                elif kind < 25:
                    kv.put(key, chance.randbytes(9), ttl=1e-9)
                elif kind == 99 and chance.random() < 0.3:
                    kv.clear()
                else:
                    kv[key] = chance.randbytes(chance.choice([5, 50, 3000]))
            if chance.random() < 0.2:
                kv.compact()
            while chance.random() < 0.7 and thread._work():
                pass
            place = chance.randrange(len(copies))
            copy = copies[place]
            try:
                changes = reader.changes(copy.since)
                if chance.random() < 0.3:
                    # In the middle of it.
                    for change in changes:
                        copy.apply(change)
                        if chance.random() < 0.1:
                            kv.compact()
                            break
                copy.follow(changes)
            except TooOld:
                told += 1
                copies[place] = Copy()
                continue
            if changes.seq == kv.stats()["committed"]:
                went_on += not changes.complete
                assert copy.live() == dict(kv.items())
    assert told
    assert went_on > 5


def test_who_skips_goes_on_behind_what_was_cleared(tmp_path: Path) -> None:
    """Deletions had been swept out before the rest was cleared and taken off the beginning: he got TooOld."""
    with opened(tmp_path / "kv") as kv:
        for number in range(10):
            kv[b"%d" % number] = FILL
        skipping, changes = kv.changes(follow=True, timeout=0, too_old="skip"), kv.changes()
        assert next(skipping) == next(changes)
        for number in range(10):
            del kv[b"%d" % number]
        fill(kv)
        kv.compact()
        kv.clear()
        kv[b"last"] = b"1"
        kv.compact()
        assert kv._log.first_seq > 1
        assert [change.key for change in skipping][-1] == b"last"
        assert not skipping.complete
        with pytest.raises(TooOld):
            list(changes)
