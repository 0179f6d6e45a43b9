"""The thread that compacts a store: space is bounded, and the handle can be closed, dropped and forked."""

from __future__ import annotations

import errno
import gc
import logging
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mmapio import FlushPolicy
from mmapio.errors import Closed
from mmapkv import KVStore, compaction, compactor, victims
from mmapkv.compactor import Compactor
from mmapkv.errors import StoreError
from mmaplog.errors import CorruptionError
from tests.support.waiting import PATIENCE_SECONDS, until
from tests.unit.mmapio.processes import in_child
from tests.unit.mmapio.volume import fill, small_volume  # noqa: F401
from tests.unit.mmapkv.stores import agreeing, contents

UNIT = 64 << 10
#: Of a size to measure by: what a file takes besides is little of that.
MEASURED_UNIT = 256 << 10
KEYS = [b"%016d" % number for number in range(6_000)]
VALUE_SIZE = 100
#: An index before it grows, CONTROL, LOCK, MANIFEST; and the segments that a store takes besides its records.
FIXED_BYTES = (512 << 10) + 4 * MEASURED_UNIT


@pytest.fixture
def tmp_path(memory_path: Path) -> Path:
    """In memory: writers wait for the syncs of compactions, of which none matters to what is looked for."""
    return memory_path


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(victims, "SEGMENT_BYTES_MIN", UNIT)


def opened(path: Path, *, compaction: bool | float = True) -> KVStore:
    """A writer without a flusher."""
    return KVStore.open(path, flush_policy=FlushPolicy.MANUAL, compaction=compaction)


def disk_bytes(path: Path) -> int:
    """Of all files; one that goes meanwhile counts for nothing."""
    found = 0
    for entry in path.iterdir():
        try:
            found += 512 * entry.stat().st_blocks
        except FileNotFoundError:
            continue
    return found


def quiet(kv: KVStore) -> bool:
    """Whether the thread has nothing to do."""
    thread = kv._compactor
    return thread is not None and not thread._busy


def value(chance: random.Random) -> bytes:
    return chance.randbytes(VALUE_SIZE)


def overwrite(kv: KVStore, chance: random.Random, count: int) -> None:
    """At random, as often as there are keys, so many times."""
    for _ in range(count):
        for key in chance.choices(KEYS, k=len(KEYS)):
            kv[key] = value(chance)


@pytest.mark.parametrize("kept", [True, False], ids=["compacted", "not compacted"])
def test_space_is_bounded_throughout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    """And it is the thread that sees to that."""
    monkeypatch.setattr(victims, "SEGMENT_BYTES_MIN", MEASURED_UNIT)
    chance = random.Random(1)
    path = tmp_path / "kv"
    most = 0.0
    keys = [b"%016d" % number for number in range(16_000)]
    with opened(path, compaction=kept) as kv:
        kv.update((key, value(chance)) for key in keys)
        live = len(keys) * (len(keys[0]) + VALUE_SIZE)
        for at, key in enumerate(chance.choices(keys, k=2 * len(keys))):
            kv[key] = value(chance)
            if at % 200 == 0:
                most = max(most, (disk_bytes(path) - FIXED_BYTES) / live)
        for key in keys[::4]:
            del kv[key]
            kv[key] = value(chance)
        most = max(most, (disk_bytes(path) - FIXED_BYTES) / live)
        assert (most < 1.6) == kept
        model = agreeing(kv)
        figures = kv.stats()
        assert (figures["compactions"] > 0) == kept
        assert figures["compaction_error"] == 0
    (path / "INDEX").unlink()
    assert contents(path, "w") == model


def test_ways_back_are_dead_weight_too(tmp_path: Path) -> None:
    """Where each key is put once in a turn, soon all that is current leads to a version before."""
    chance = random.Random(1)
    path = tmp_path / "kv"
    with opened(path) as kv:
        for key in KEYS:
            kv[key] = value(chance)
        live = kv.stats()["live_bytes"]
        # What is borne, and a segment until the next look; and what stands at the ends of segments.
        bound = live + victims.Limits(live, UNIT).dead_max + UNIT + (8 << 10)
        for _ in range(2):
            for at, key in enumerate(chance.sample(KEYS, len(KEYS))):
                kv[key] = value(chance)
                if at % 100 == 0:
                    figures = kv.stats()
                    assert figures["live_bytes"] + figures["dead_bytes"] <= bound
        assert agreeing(kv).keys() == set(KEYS)


@pytest.mark.parametrize("seed", range(3))
def test_a_store_that_is_compacted_meanwhile_is_a_dict(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "kv"
    keys = KEYS[:600]
    model: dict[bytes, bytes] = {}
    kv, reader = opened(path), KVStore.open(path, "r")
    for turn in range(8):
        snapshot, seen = kv.snapshot(), dict(model)
        walk = iter(reader.items())
        for _ in range(1500):
            key = chance.choice(keys)
            if chance.random() < 0.3:
                assert kv.pop(key, None) == model.pop(key, None)
            else:
                kv[key] = model[key] = value(chance)
        batch = {key: value(chance) for key in chance.sample(keys, 200)}
        kv.put_many(batch)
        model |= batch
        assert dict(walk) == dict(snapshot) == seen
        snapshot.close()
        assert agreeing(kv) == agreeing(reader) == model
        if turn % 3 == 2:
            kv.close()
            reader.close()
            (path / "INDEX").unlink()
            kv, reader = opened(path), KVStore.open(path, "r")
    until(lambda: quiet(kv))
    assert agreeing(kv) == model
    assert kv.verify().damages == ()
    kv.close()
    reader.close()


def test_what_cannot_go_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot holds it, and a writer that waits does not have it looked for again and again.

    With values that expire, each waited for all of the ten seconds whenever a segment was begun.
    """
    chance = random.Random(17)
    steps = 0
    rest, work = Compactor._rest, Compactor._work

    def counted(self: Compactor) -> bool:
        nonlocal steps
        steps += 1
        return work(self)

    def late(self: Compactor, seconds: float) -> None:
        # Somebody waits by the time that it rests.
        while seconds < 1 and not self._waiting and not self._ending:
            seconds += 0.01
            time.sleep(0.01)
        rest(self, 0.1)

    monkeypatch.setattr(Compactor, "_rest", late)
    monkeypatch.setattr(Compactor, "_work", counted)
    with opened(tmp_path / "kv") as kv:
        for key in KEYS[:1000]:
            kv.put(key, value(chance), ttl=1e6)
        with kv.snapshot():
            for key in chance.choices(KEYS[:1000], k=5000):
                kv.put(key, value(chance), ttl=1e6)
            until(lambda: quiet(kv))
            begun = len(kv._log.segments.bases())
            assert begun > 8
            # Two looks for what has expired, one that finds nothing more, and some that came of it.
            assert steps < 10 * begun


def test_deletions_leave(tmp_path: Path) -> None:
    """Each tombstone once nothing before it could bring its key back."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        kv.update((key, bytes(VALUE_SIZE)) for key in KEYS)
        for key in KEYS[1:]:
            del kv[key]
        kv.compact(background=True)
        until(lambda: quiet(kv))
        assert len(kv._log) == 1
        assert list(kv) == KEYS[:1]
        # One for what is left, one to be written to.
        assert kv.stats()["segments"] <= 3
    (path / "INDEX").unlink()
    assert list(contents(path, "w")) == KEYS[:1]


def test_deletions_leave_though_nobody_asks(tmp_path: Path) -> None:
    """By a sweep, a segment at a time; keys that come and go do not leave tombstones behind without end."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        for turn in range(6):
            kv.update((b"%d %b" % (turn, key), b"") for key in KEYS)
            for key in KEYS:
                del kv[b"%d %b" % (turn, key)]
        kv[b"a"] = b"1"
        until(lambda: quiet(kv))
        assert len(kv._log) < 3 * len(KEYS)
        assert dict(kv) == {b"a": b"1"}
    (path / "INDEX").unlink()
    assert contents(path, "w") == {b"a": b"1"}


@pytest.mark.parametrize("part", [0.25, 1.0], ids=["a quarter", "all"])
def test_who_deletes_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: float) -> None:
    """What a deletion makes dead counts for no growth, nor does what it writes. What is put does."""
    waits = 0

    def waited(self: Compactor, seconds: float) -> None:
        nonlocal waits
        waits += 1
        proceed.set()
        await_step(self, seconds)

    proceed = threading.Event()
    await_step, work = Compactor._await_step, Compactor._work
    count = int(part * len(KEYS))
    with opened(tmp_path / "kv") as kv:
        kv.update((key, bytes(VALUE_SIZE)) for key in KEYS)
        until(lambda: quiet(kv))
        monkeypatch.setattr(Compactor, "_await_step", waited)
        monkeypatch.setattr(Compactor, "_work", lambda self: proceed.wait(PATIENCE_SECONDS) and work(self))
        for key in KEYS[:count]:
            del kv[key]
        figures = kv.stats()
        limits = victims.Limits(figures["live_bytes"], UNIT)
        assert figures["dead_bytes"] > 2 * limits.dead_max
        assert waits == 0
        for key in KEYS[count : 2 * count] or KEYS:
            kv[key] = bytes(VALUE_SIZE)
        assert waits > 0
        until(lambda: quiet(kv))
        figures = kv.stats()
        limits = victims.Limits(figures["live_bytes"], UNIT)
        # What it was is no excuse any more.
        assert kv._compactor is not None
        assert kv._compactor._ceiling <= figures["live_bytes"] + limits.dead_max
        assert figures["dead_bytes"] <= limits.dead_max


def test_what_was_there_when_it_was_opened_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it when the thread has made a step before it is asked whether to wait."""

    def woken(self: Compactor) -> bool:
        found = wake(self)
        until(lambda: self.done > 0)
        return found

    chance = random.Random(10)
    path = tmp_path / "kv"
    wake = Compactor.wake
    with KVStore.open(path, segment_bytes=UNIT, compaction=False) as kv:
        overwrite(kv, chance, 4)
    with opened(path) as kv:
        with monkeypatch.context() as patch:
            patch.setattr(Compactor, "_await_step", lambda *_: pytest.fail("it waits"))
            patch.setattr(Compactor, "wake", woken)
            kv[KEYS[0]] = b"1"
        until(lambda: quiet(kv))
        figures = kv.stats()
        assert figures["compactions"] > 0
        assert figures["dead_bytes"] <= victims.Limits(figures["live_bytes"], UNIT).dead_max


def test_the_more_is_borne_the_less_is_done(tmp_path: Path) -> None:
    done = []
    for borne in (0.1, 1.0):
        chance = random.Random(11)
        with opened(tmp_path / f"{borne}", compaction=borne) as kv:
            kv.update((key, value(chance)) for key in KEYS)
            overwrite(kv, chance, 1)
            until(lambda: quiet(kv))
            figures = kv.stats()
            assert figures["dead_bytes"] <= victims.Limits(figures["live_bytes"], UNIT, borne).dead_max
            done.append(figures["compactions"])
    assert 0 < 3 * done[1] < done[0]


def test_what_merely_expires_leaves(tmp_path: Path) -> None:
    """Nobody overwrites or deletes it, so that nothing counts as dead."""
    with opened(tmp_path / "kv") as kv:
        kv.put_many({b"kept": b"1"})
        for key in KEYS:
            kv.put(key, bytes(VALUE_SIZE), ttl=0.001)
        time.sleep(0.002)
        for number in range(3000):
            kv[b"%d" % number] = bytes(VALUE_SIZE)
        until(lambda: len(kv) < 3000 + len(KEYS) // 10)
        until(lambda: quiet(kv))
        assert kv[b"kept"] == b"1"
        figures = kv.stats()
        assert figures["live_bytes"] + figures["dead_bytes"] < (4000 + len(KEYS) // 5) * (VALUE_SIZE + 50)
        assert kv.verify().damages == ()


@pytest.mark.parametrize("refused", [0, -1.0, float("inf"), "0.5"])
def test_what_says_nothing_of_what_is_borne_is_refused(tmp_path: Path, refused: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="compaction is"):
        KVStore.open(tmp_path / "kv", compaction=refused)
    assert not (tmp_path / "kv").exists()


def test_a_reader_has_nothing_to_compact(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    opened(path).close()
    others: list[dict[str, Any]] = [{"mode": "r"}, {"max_bytes": 1 << 20}]
    for other in others:
        with pytest.raises(ValueError, match="for who writes"):
            KVStore.open(path, **other, compaction=0.5)


def test_a_queue_keeps_few_segments(tmp_path: Path) -> None:
    """What is oldest goes first: segments without a record, one after the other, become one."""
    with opened(tmp_path / "kv") as kv:
        for number in range(30_000):
            kv[b"%d" % number] = bytes(VALUE_SIZE)
            if number >= 300:
                del kv[b"%d" % (number - 300)]
        until(lambda: quiet(kv))
        assert len(kv) == 300
        assert kv.stats()["segments"] < 30


def test_what_a_snapshot_needs_stays_and_holds_up_nobody(tmp_path: Path) -> None:
    chance = random.Random(2)
    with opened(tmp_path / "kv") as kv:
        kv.update((key, value(chance)) for key in KEYS)
        model = dict(kv)
        with kv.snapshot() as snapshot:
            overwrite(kv, chance, 2)
            assert dict(snapshot) == model
            until(lambda: quiet(kv))
            held = kv.stats()["dead_bytes"]
            assert held > len(KEYS) * VALUE_SIZE
        overwrite(kv, chance, 1)
        until(lambda: quiet(kv))
        assert kv.stats()["dead_bytes"] < held // 3


def test_who_asks_while_it_works_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was through with what it knew of and said so, and nobody waited for what was asked meanwhile."""
    work = Compactor._work
    busy: list[bool] = []

    def working(self: Compactor) -> bool:
        if not busy:
            self.compact_all()
            busy.append(self._busy)
            return False
        busy.append(self._busy)
        return work(self)

    monkeypatch.setattr(Compactor, "_work", working)
    with opened(tmp_path / "kv") as kv:
        kv.update((key, b"") for key in KEYS)
        for key in KEYS[1:]:
            del kv[key]
        kv.compact(background=True)
        until(lambda: quiet(kv))
        # The last pass may have been asked for by nobody.
        assert busy[:2] == [True, True]
        assert len(kv._log) == 1


def test_threads_that_ask_at_once_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would compact against each other, and one of them would outlive the handle."""
    start, started = Compactor._start, []

    def starting(self: Compactor) -> bool:
        started.append(None)
        if len(started) == 1:
            # Another thread, in the middle of this.
            self.compact_all()
        return start(self)

    monkeypatch.setattr(Compactor, "_start", starting)
    with opened(tmp_path / "kv") as kv:
        kv.compact(background=True)
        until(lambda: quiet(kv))
        assert started == [None]


def test_closing_ends_a_compaction_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(3)
    path = tmp_path / "kv"
    begun = threading.Event()
    halted = Compactor._halted

    def slowed(self: Compactor) -> None:
        begun.set()
        until(lambda: self._ending)
        halted(self)

    kv = opened(path)
    kv.update((key, value(chance)) for key in KEYS)
    monkeypatch.setattr(Compactor, "_halted", slowed)
    monkeypatch.setattr(compactor, "WAIT_SECONDS_MAX", 0.0)
    overwrite(kv, chance, 1)
    assert begun.wait(PATIENCE_SECONDS)
    model = dict(kv)
    kv.close()
    assert kv._compactor is not None and kv._compactor._thread is not None
    assert not kv._compactor._thread.is_alive()
    assert not list(path.glob("*.tmp"))
    assert contents(path) == model


def test_a_handle_that_is_dropped_takes_its_thread_along(tmp_path: Path) -> None:
    chance = random.Random(4)
    kv = opened(tmp_path / "kv")
    kv.update((key, value(chance)) for key in KEYS)
    overwrite(kv, chance, 1)
    assert kv._compactor is not None
    thread = kv._compactor._thread
    assert thread is not None
    del kv
    gc.collect()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()


def test_a_forked_child_has_no_thread(tmp_path: Path) -> None:
    """It reads on, and closes without waiting for what it has not; the parent compacts on."""
    chance = random.Random(5)
    kv = opened(tmp_path / "kv")
    kv.update((key, value(chance)) for key in KEYS)
    overwrite(kv, chance, 1)
    first = kv[KEYS[0]]

    def child() -> bytes:
        found = kv[KEYS[0]]
        with pytest.raises(Closed):
            kv[KEYS[0]] = b""
        kv.close()
        return found

    assert in_child(child) == first
    done = kv.stats()["compactions"]
    overwrite(kv, chance, 1)
    assert kv.stats()["compactions"] > done
    kv.close()


def failing(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
    """Have the first steps raise these."""
    left = list(errors)
    step = compaction.step

    def fails(*arguments: Any) -> Any:
        if left:
            raise left.pop(0)
        return step(*arguments)

    monkeypatch.setattr(compaction, "step", fails)


def test_a_full_disk_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(6)
    failing(monkeypatch, *(OSError(errno.ENOSPC, "full"),) * 3)
    monkeypatch.setattr(compactor, "RETRY_SECONDS", 0.01)
    with caplog.at_level(logging.WARNING), opened(tmp_path / "kv") as kv:
        kv.update((key, value(chance)) for key in KEYS)
        overwrite(kv, chance, 1)
        until(lambda: kv.stats()["compactions"] > 0)
        until(lambda: kv.stats()["compaction_error"] == 0)
    assert caplog.text.count("put off") == 3


def test_damage_ends_it_and_writes_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(7)
    failing(monkeypatch, CorruptionError("a bit flipped", "segment"))
    with opened(tmp_path / "kv") as kv:
        kv.update((key, value(chance)) for key in KEYS)
        overwrite(kv, chance, 1)
        thread = kv._compactor
        assert thread is not None
        until(lambda: thread._ending)
        asked = len(thread._asked)
        with monkeypatch.context() as patch:
            patch.setattr(Compactor, "_await_step", lambda *_: pytest.fail("it waits"))
            overwrite(kv, chance, 1)
        assert len(thread._asked) == asked, "nobody looks at it any more"
        figures = kv.stats()
        assert figures["compaction_error"] == errno.EBADMSG
        assert figures["compactions"] == 0
        assert "a bit flipped" in caplog.text
        with pytest.raises(StoreError, match="says why"):
            kv.compact(background=True)
        model = agreeing(kv)
    assert contents(tmp_path / "kv") == model


def test_a_volume_that_is_nearly_full_stays_usable(small_volume: Path) -> None:  # noqa: F811
    """What is written over and over fits, though all of it together would not."""
    chance = random.Random(8)
    keys = KEYS[:4000]
    with opened(small_volume / "kv") as kv:
        model = {key: value(chance) for key in keys}
        kv.update(model)
        ballast = fill(small_volume, leaving=1 << 20)
        for key in chance.choices(keys, k=8 * len(keys)):
            kv[key] = model[key] = value(chance)
        ballast.unlink()
        assert agreeing(kv) == model


def test_a_signal_handler_may_write_and_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It interrupts a write that waits, and waits for nothing that this one holds."""
    chance = random.Random(9)
    kv = opened(tmp_path / "kv")
    waits = 0

    await_step = Compactor._await_step

    def interrupted(self: Compactor, seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            signal.raise_signal(signal.SIGUSR1)
        await_step(self, seconds)

    def handler(number: int, frame: object) -> None:
        kv[b"from the handler"] = b"1"
        kv.close()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        kv.update((key, value(chance)) for key in KEYS)
        monkeypatch.setattr(Compactor, "_await_step", interrupted)
        with pytest.raises(Closed):
            for _ in range(100):
                overwrite(kv, chance, 1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    monkeypatch.undo()
    assert contents(tmp_path / "kv")[b"from the handler"] == b"1"


def test_what_was_asked_for_is_done_when_the_disk_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that can go, and not only what is worth it."""
    monkeypatch.setattr(compactor, "RETRY_SECONDS", 0.01)
    real, calls = compaction.compact, []

    def compact(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "no room")
        return real(*arguments)

    monkeypatch.setattr(compaction, "compact", compact)
    with opened(tmp_path / "kv", compaction=False) as kv:
        for number in range(1500):
            kv[b"%d" % (number % 750)] = b"v" * 500
        kv.compact(background=True)
        until(lambda: kv.stats()["dead_bytes"] == 0)
        assert len(calls) == 2
