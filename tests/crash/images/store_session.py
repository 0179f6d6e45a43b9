"""A session of a store: opened, some calls, closed or not. What must be true is said before each call."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mmapio import FlushPolicy
from mmapkv import KVStore, Snapshot, compaction
from mmapkv.compactor import Compactor
from mmapkv.victims import Choice
from mmapkv.walk import EXPIRED
from tests.crash.images.recording import Recorder
from tests.crash.images.store_model import CLEAR, Change, Commit, Expected, Found, contents
from tests.unit.mmapkv.colliding_keys import HashInverter, seed_of

Alternatives: TypeAlias = tuple[Expected, ...]
_NOISE = random.Random("noise of the images of stores").randbytes(256 << 10)
_POLICIES = [(8, FlushPolicy.MANUAL), (1, FlushPolicy.every_writes(5)), (1, FlushPolicy.every_bytes(20_000))]
# Of the images, so many are opened by a reader before a writer has come.
READER_FIRST_SHARE = 0.1
# More than one bucket has room for: its segment splits.
COLLIDING = 70
# Keys that no split parts: fewer than make a new seed necessary.
TWINS = 20
ABSENT = b"never"
LONG_SECONDS = 1e6
# As often at most a thread that compacts would go on.
STEPS_MAX = 4


@dataclass(frozen=True)
class Style:
    """How a store is used: drawn once for all of its sessions."""

    segment_bytes: int
    policy: FlushPolicy
    keys: int
    size_max: int
    """Of most values. Some are larger, a few larger than a segment."""
    syncing: float
    """Share of calls that sync."""
    weights: dict[str, int]
    """How often each call is made."""

    @classmethod
    def draw(cls, rng: random.Random) -> Style:
        """Small segments, so that the log rolls; sessions that compact much, close much, or neither."""
        rare = {name: weight for name, (weight, _) in MAKERS.items()}
        for name in rng.sample(["compact", "step", "clear", "reopen", "rebuild", "collide", "batch"], 3):
            rare[name] *= rng.choice((0, 8))
        return cls(
            segment_bytes=rng.choice((64 << 10, 64 << 10, 128 << 10)),
            policy=rng.choices([policy for _, policy in _POLICIES], [share for share, _ in _POLICIES])[0],
            keys=rng.choice((3, 12, 40)),
            size_max=rng.choice((100, 600, 3000, 12_000, 12_000)),
            syncing=rng.choice((0.05, 0.2, 0.5)),
            weights=rare,
        )


@dataclass(frozen=True)
class Call:
    """What is done to a store, and the commits that it makes, in their order."""

    make: Callable[[KVStore], object]
    commits: tuple[Sequence[Change], ...] = ()


class StoreSession:
    """One session, from opening on. The recorder, if there is one, is told what must be true when."""

    def __init__(
        self, path: Path, style: Style, rng: random.Random, name: int, recorder: Recorder | None
    ) -> None:
        self.path = path
        self.style = style
        self.rng = rng
        self.name = name
        self.recorder = recorder
        self.written = 0
        self.kv: KVStore | None = None
        self.reader: KVStore | None = None
        # What a thread would do, in this one: a recording is of one order of calls.
        self.compactor: Compactor | None = None
        self.snapshots: list[tuple[Snapshot, Found]] = []
        self.state = Expected()
        self.found = Found(0, 0, [], {})
        self.wrong: list[str] = []
        self.doing = ""

    # ---- what the runner asks for ----

    def open(self, alternatives: Alternatives) -> None:
        """Open the store, of which one of these is true, and read it. What is found is the state then."""
        self._say(alternatives)
        before = None
        if self.recorder is None and self.rng.random() < READER_FIRST_SHARE:
            # Where there is no store yet, nor is there anything to read.
            with suppress(FileNotFoundError):
                self.reader = KVStore.open(self.path, "r")
                before = self._look(self.reader, alternatives)
        self.kv = self._open()
        self.found = self._look(self.kv, alternatives)
        if before is not None and before != self.found:
            self.wrong.append("who read it first saw another store")
        committed = self.found.committed
        fitting = [each for each in alternatives if each.at(committed) is not None]
        # Of one that fits none nothing more is asked.
        known = fitting[0] if fitting else Expected((Commit(committed, _changes(self.found.walked)),))
        self.state = known.settled(self._durable(), committed)
        self._say((self.state,))

    def judge(self, alternatives: Alternatives) -> list[str]:
        """What is wrong with what was found at opening, by the alternative that fits best."""
        return self.wrong + min((each.complaints(self.found) for each in alternatives), key=len)

    def damages(self) -> Sequence[object]:
        """What a verification finds."""
        assert self.kv is not None
        return self.kv.verify().damages

    def is_shorter(self, alternatives: Alternatives) -> bool:
        """Whether some of the last commits are not there."""
        return self.found.committed < max(each.commits[-1].seq for each in alternatives)

    def run(self, count: int) -> None:
        """Make so many calls."""
        names, weights = list(self.style.weights), list(self.style.weights.values())
        for _ in range(count):
            (name,) = self.rng.choices(names, weights)
            self.make(name)

    def go_on(self) -> None:
        """Write, delete and perhaps compact or clear, and look at all of it again."""
        for name in ("put", "many", "delete", self.rng.choice(("put", "compact", "step", "clear", "batch"))):
            self.make(name)
        assert self.kv is not None
        handles = [("the writer", self.kv)] + ([("the reader", self.reader)] if self.reader else [])
        for who, kv in handles:
            wrong = self.state.complaints(self._look(kv, (self.state,)))
            self.wrong += [f"for {who}, {text}" for text in wrong]
        if self.wrong:
            raise AssertionError("; ".join(self.wrong))

    def close(self) -> None:
        """End it; a flush, and a clean mark."""
        self._drop_readers()
        if self.kv is not None:
            self.kv.close()
            self.kv = None
        self._say((self.state,))

    def forget(self) -> None:
        """End it as a crash does: nothing is flushed or sealed, and the locks are gone."""
        self._drop_readers()
        self.kv = None

    def left(self) -> Alternatives:
        """What is there after its end, when nothing was lost."""
        return (dataclasses.replace(self.state, floor=self.state.commits[-1].seq),)

    # ---- calls ----

    def make(self, name: str) -> None:
        """Make a call, saying before it what may be true meanwhile and after it what is."""
        call = MAKERS[name][1](self)
        self.doing = name
        meanwhile = self.state.then(*call.commits)
        self._say((meanwhile,))
        assert self.kv is not None
        call.make(self.kv)
        self.doing = ""
        committed = self.kv.stats()["committed"]
        if committed != meanwhile.commits[-1].seq:
            raise AssertionError(
                f"{name} ended before record {committed}, should before {meanwhile.commits[-1].seq}"
            )
        self.state = meanwhile.settled(self._durable())
        self._say((self.state,))

    def key(self, *, is_new: bool = False) -> bytes:
        """One of the keys, of which a few are long; or one that was never there."""
        if is_new:
            self.written += 1
            return b"new %d of %d" % (self.written, self.name)
        number = self.rng.randrange(self.style.keys)
        return b"%d" % number * (1 + 150 * (number % 7 == 0))

    def value(self) -> bytes:
        """One that no other write has."""
        self.written += 1
        choice = self.rng.random()
        size = self.rng.randrange(self.style.size_max)
        if choice < 0.02:
            size = self.rng.randrange(self.style.segment_bytes * 5 // 4)
        tag = b"%d:%d:" % (self.name, self.written)
        start = self.written * 997 % 4096
        return (tag + _NOISE[start : start + size])[: max(size, len(tag))]

    def changes(self, count: int, deletions: float = 0.3) -> list[Change]:
        """Changes of any keys, perhaps several of one; what has expired is left alone."""
        expired = {each.key for each in contents(self.state.commits).values() if not each.is_seen}
        keys = [key for key in (self.key() for _ in range(count)) if key not in expired]
        return [Change(key, None if self.rng.random() < deletions else self.value()) for key in keys]

    def is_durable(self) -> bool:
        """Whether a call asks for it."""
        return self.rng.random() < self.style.syncing

    def reopen(self) -> None:
        """Close cleanly and open again."""
        self._drop_readers()
        assert self.kv is not None
        self.kv.close()
        self.kv = self._open()

    def hold(self) -> None:
        """Take a snapshot, or look whether the oldest is what it was; or the same with a reader."""
        assert self.kv is not None
        if len(self.snapshots) < 2:
            snapshot = (self.reader or self.kv).snapshot()
            self.snapshots.append((snapshot, self._look(self.kv, (self.state,))))
            return
        snapshot, then = self.snapshots.pop(0)
        walked = list(snapshot.items())
        if walked != then.walked or {key: snapshot.get(key) for key in then.looked_up} != then.looked_up:
            raise AssertionError("a snapshot is not what it was")
        snapshot.close()

    def read(self) -> None:
        """Have a reader come, or look at what it sees and have it go."""
        if self.reader is None:
            self.reader = KVStore.open(self.path, "r")
            return
        wrong = self.state.complaints(self._look(self.reader, (self.state,)))
        if wrong:
            raise AssertionError(f"for the reader, {wrong[0]}")
        self._drop_readers()

    def step(self) -> None:
        """Compact as a thread does that was woken, or some segments that it might not have chosen."""
        assert self.kv is not None
        if self.rng.random() < 0.5:
            compaction.step(self.kv, self.kv._pins, self._choose, None)
            return
        if self.compactor is None:
            self.compactor = Compactor(self.kv, 0.0)
        for _ in range(self.rng.randrange(STEPS_MAX)):
            if not self.compactor._work():
                break

    def _choose(self, found: list[tuple[int, int, int, int, int]], needed: int) -> Choice | None:
        # Neighbours. That no segment before holds what a tombstone hides is sure of the first one alone.
        if not found:
            return None
        at = self.rng.randrange(len(found))
        segments = [each[2] for each in found[at : at + self.rng.randrange(1, 4)]]
        sweepable = needed if at == 0 and len(segments) == 1 else 0
        return Choice(segments, segments[0], sweepable, 0, self.style.segment_bytes)

    def _drop_readers(self) -> None:
        self.snapshots.clear()
        self.reader = None

    def _open(self) -> KVStore:
        self.compactor = None
        return KVStore.open(
            self.path,
            "c",
            flush_policy=self.style.policy,
            segment_bytes=self.style.segment_bytes,
            compaction=False,
        )

    def _look(self, kv: KVStore, alternatives: Alternatives) -> Found:
        keys = {change.key for each in alternatives for commit in each.commits for change in commit.changes}
        looked_up = {key: kv.get(key) for key in sorted(keys - {CLEAR.key} | {ABSENT})}
        return Found(kv.stats()["committed"], len(kv), list(kv.items()), looked_up)

    def _durable(self) -> int:
        assert self.kv is not None
        return self.kv.stats()["durable"]

    def _say(self, alternatives: Alternatives) -> None:
        if self.recorder is not None:
            self.recorder.expected = alternatives
            self.recorder.look(self.kv is not None and not self.doing)


def _changes(pairs: list[tuple[bytes, bytes]]) -> tuple[Change, ...]:
    return tuple(Change(key, value) for key, value in pairs)


# ---- the calls: a new one is a function and a row ----


def _put(session: StoreSession) -> Call:
    key, value, durable = session.key(), session.value(), session.is_durable()
    ttl = session.rng.choice((None, None, LONG_SECONDS))
    return Call(lambda kv: kv.put(key, value, ttl=ttl, durable=durable), ([Change(key, value)],))


def _put_new(session: StoreSession) -> Call:
    key, value = session.key(is_new=True), session.value()
    return Call(lambda kv: kv.put(key, value, ttl=LONG_SECONDS), ([Change(key, value)],))


def _delete(session: StoreSession) -> Call:
    changes = session.changes(1, deletions=1)
    return Call(lambda kv: [kv.pop(change.key, None) for change in changes], (changes,))


def _many(session: StoreSession) -> Call:
    changes, durable = session.changes(session.rng.randrange(7), deletions=0), session.is_durable()
    pairs = [(change.key, change.value or b"") for change in changes]
    return Call(lambda kv: kv.put_many(pairs, durable=durable), (changes,))


def _delete_many(session: StoreSession) -> Call:
    changes = session.changes(session.rng.randrange(7), deletions=1)
    return Call(lambda kv: kv.delete_many([change.key for change in changes]), (changes,))


def _batch(session: StoreSession) -> Call:
    changes, durable = session.changes(session.rng.randrange(12)), session.is_durable()

    def make(kv: KVStore) -> None:
        with kv.batch(durable=durable) as batch:
            for key, value, _ in changes:
                batch.delete(key) if value is None else batch.put(key, value)

    return Call(make, (changes,))


def _transaction(session: StoreSession) -> Call:
    changes, durable = session.changes(session.rng.randrange(7)), session.is_durable()

    def make(kv: KVStore) -> None:
        with kv.transaction(durable=durable) as transaction:
            for key, value, _ in changes:
                if value is None:
                    transaction.pop(key, None)
                else:
                    transaction[key] = value

    return Call(make, (changes,))


def _touch(session: StoreSession) -> Call:
    key = session.key()
    change = contents(session.state.commits).get(key)
    commits = ([change],) if change is not None and change.is_seen else ()
    return Call(lambda kv: kv.touch(key, LONG_SECONDS), commits)


def _clear(session: StoreSession) -> Call:
    # Where all has expired, a compaction may have removed it, and there is nothing to clear.
    durable = session.is_durable()
    return Call(lambda kv: kv.clear(durable=durable), ([CLEAR],) if session.kv else ())


def _expire(session: StoreSession) -> Call:
    key = session.key()

    def make(kv: KVStore) -> None:
        kv.put(key, b"short", ttl=1e-9)
        while key in kv:
            pass

    return Call(make, ([Change(key, b"short", is_seen=False)],))


def _sweep(session: StoreSession) -> Call:
    # Of what has expired a compaction may have removed some, which nobody sees.
    assert session.kv is not None
    there = set(session.kv._walk(EXPIRED))
    pairs = contents(session.state.commits).values()
    gone = [each.key for each in pairs if not each.is_seen and each.key in there]
    return Call(lambda kv: kv.sweep(), tuple([Change(key, None)] for key in gone))


def _collide(session: StoreSession) -> Call:
    rng = session.rng
    inverter = HashInverter(seed_of(session.path))
    if rng.random() < 0.5:
        keys = list(inverter.keys(rng.getrandbits(3), 3, rng.randrange(512), COLLIDING))
    else:
        keys = list(inverter.twins(rng.getrandbits(24), 24, rng.randrange(512), TWINS))
    changes = [Change(key, b"twin") for key in keys]
    return Call(lambda kv: kv.update(dict.fromkeys(keys, b"twin")), tuple([change] for change in changes))


def _step(session: StoreSession) -> Call:
    # What a thread finds has been written just now, and not synced.
    changes = session.changes(session.rng.randrange(4), deletions=0)

    def make(kv: KVStore) -> None:
        for key, value, _ in changes:
            kv[key] = value or b""
        session.step()

    return Call(make, tuple([change] for change in changes))


def _rebuild(session: StoreSession) -> Call:
    def make(kv: KVStore) -> None:
        _, index = kv._parts()
        assert index is not None
        kv._rebuild_index(index)

    return Call(make)


MAKERS: dict[str, tuple[int, Callable[[StoreSession], Call]]] = {
    "put": (20, _put),
    "put new": (4, _put_new),
    "delete": (4, _delete),
    "many": (4, _many),
    "delete many": (2, _delete_many),
    "batch": (4, _batch),
    "transaction": (2, _transaction),
    "expire": (1, _expire),
    "touch": (1, _touch),
    "sweep": (1, _sweep),
    "clear": (1, _clear),
    "flush": (2, lambda session: Call(lambda kv: kv.flush())),
    "reopen": (1, lambda session: Call(lambda kv: session.reopen())),
    "compact": (1, lambda session: Call(lambda kv: kv.compact())),
    "step": (2, _step),
    "rebuild": (1, _rebuild),
    "collide": (1, _collide),
    "hold": (2, lambda session: Call(lambda kv: session.hold())),
    "read": (1, lambda session: Call(lambda kv: session.read())),
}
