"""What several writers of one store do to keep it small: whoever writes sees to it, one at a time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmapkv import KVStore, compactor, hints, victims
from tests.crash.child import Child
from tests.support.waiting import until
from tests.unit.mmapkv.stores import MANUAL, agreeing
from tests.unit.mmapkv.test_compactor import disk_bytes, quiet

UNIT = 64 << 10
VALUE_SIZE = 400
KEYS = [b"%05d" % number for number in range(2000)]
LIVE = len(KEYS) * (5 + VALUE_SIZE)
ROUNDS = 3
#: CONTROL, LOCK, MANIFEST, INDEX and hints, and of the log the end and what is being made.
BESIDE = 512 << 10


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(victims, "SEGMENT_BYTES_MIN", UNIT)


def opened(path: Path, **options: Any) -> KVStore:
    """One of the writers."""
    return KVStore.open(path, shared=True, flush_policy=MANUAL, **options)


def overwrite(kv: KVStore, seed: int, rounds: int = ROUNDS, look: Callable[[], None] | None = None) -> None:
    """Each key as often, at random, with values that say whose they are."""
    chance = random.Random(seed)
    for turn in range(rounds * len(KEYS)):
        kv[chance.choice(KEYS)] = b"%d " % seed + bytes(VALUE_SIZE - 2)
        if look is not None and turn % 250 == 0:
            look()


@pytest.mark.parametrize("kept", [True, False], ids=["compacted", "not compacted"])
def test_processes_keep_it_small(tmp_path: Path, kept: bool) -> None:
    """While three of them write at once; and what is not compacted is seen to grow."""
    path = tmp_path / "kv"

    def body(seed: int, started: Callable[[], None]) -> None:
        with opened(path, compaction=kept) as kv:
            overwrite(kv, seed)
        started()

    opened(path).close()
    children = [Child(lambda started, seed=seed: body(seed, started)) for seed in (1, 2, 3)]  # type: ignore[misc]
    most = 0
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, disk_bytes(path))
            time.sleep(0.01)

    watching = threading.Thread(target=watch)
    watching.start()
    for child in children:
        child.wait_started()
    over.set()
    watching.join()
    assert [child.kill() for child in children] == ["", "", ""]
    assert (most < 2 * LIVE + BESIDE) == kept
    with opened(path, compaction=False) as kv:
        assert set(agreeing(kv)) == set(KEYS)
        assert {each[:2] for each in kv.values()} == {b"1 ", b"2 ", b"3 "}
        assert kv.verify().damages == ()


@pytest.mark.parametrize("borne", [True, 0.5])
def test_who_writes_compacts_what_another_left(tmp_path: Path, borne: bool | float) -> None:
    path = tmp_path / "kv"
    with opened(path, compaction=False) as one, opened(path, compaction=borne) as two:
        overwrite(one, 1, 8)
        assert disk_bytes(path) > 5 * LIVE
        assert two.stats()["compactions"] == 0
        overwrite(two, 2, 1)
        until(lambda: quiet(two) and disk_bytes(path) < 2 * LIVE + BESIDE)
        assert two.stats()["compactions"] > 0
        assert agreeing(one) == agreeing(two)


def test_batches_do_too(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    with opened(path) as kv:
        for turn in range(60):
            kv.put_many({key: b"%d" % turn + bytes(VALUE_SIZE) for key in KEYS[turn % 4 :: 4]})
        until(lambda: quiet(kv) and disk_bytes(path) < 2 * LIVE + BESIDE)
        assert kv.stats()["compactions"] > 0


def test_a_close_does_not_wait_for_another_who_compacts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a write for longer than is said."""
    monkeypatch.setattr(compactor, "WAIT_SECONDS_MAX", 0.01)
    path = tmp_path / "kv"
    with opened(path) as other:
        assert other._log.try_care()
        kv = opened(path)
        overwrite(kv, 1, 3)
        assert kv.stats()["compactions"] == 0
        thread = kv._compactor._thread  # type: ignore[union-attr]
        assert thread is not None
        assert thread.is_alive()
        kv.close()
        assert not thread.is_alive()
        other._log.leave_care()
        assert set(other) <= set(KEYS)
        assert other.verify().damages == ()


def test_another_who_compacts_is_followed(tmp_path: Path) -> None:
    """What was found to do while another one was at it is done when that one is through."""
    path = tmp_path / "kv"
    with opened(path, compaction=False) as other, opened(path) as kv:
        overwrite(other, 1, 3)
        assert other._log.try_care()
        kv["a"] = kv["b"] = b""
        until(lambda: not quiet(kv))
        other._log.leave_care()
        until(lambda: quiet(kv) and kv.stats()["compactions"] > 0)
        assert agreeing(kv) == agreeing(other)


def test_what_another_made_of_it_is_seen(tmp_path: Path) -> None:
    """Who waits for the store to become small goes by what it is, and not by what it was."""
    path = tmp_path / "kv"
    with opened(path, compaction=False) as one, opened(path) as two:
        overwrite(one, 1, 3)
        kept = two._compactor
        assert kept is not None
        two["a"] = b""
        _, before, _ = kept._look(two)
        one.compact()
        _, after, _ = kept._look(two)
        assert before > 2 * LIVE
        assert after < 1.5 * LIVE


def test_nobody_waits_for_one_who_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the lock in hand, and for as long as it lives; when it goes on, so does all else."""
    monkeypatch.setattr(compactor, "WAIT_SECONDS_MAX", 0.2)
    path = tmp_path / "kv"
    with opened(path, compaction=False) as stopped, opened(path) as kv:
        assert stopped._log.try_care()
        overwrite(kv, 1, 1)
        kept = kv._compactor
        assert kept is not None
        until(kept._is_kept_out)
        waits = []
        waited = compactor.Compactor._await_step

        def counted(self: compactor.Compactor, seconds: float) -> None:
            waits.append(seconds)
            waited(self, seconds)

        monkeypatch.setattr(compactor.Compactor, "_await_step", counted)
        overwrite(kv, 2, 2)
        assert waits == []
        assert kv.stats()["compactions"] == 0
        stopped._log.leave_care()
        until(lambda: quiet(kv) and kv.stats()["compactions"] > 0)
        assert not kept._is_kept_out()


def test_a_transaction_lets_go_of_its_moment_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its end waits for a compaction, which that moment may be what stands in the way of."""
    path = tmp_path / "kv"
    held = []
    with opened(path) as kv:
        kept = compactor.Compactor.rolled

        def rolled(self: compactor.Compactor, store: KVStore) -> None:
            held.append(store.stats()["snapshots"])
            kept(self, store)

        monkeypatch.setattr(compactor.Compactor, "rolled", rolled)
        for turn in range(200):
            with kv.transaction() as transaction:
                for key in KEYS[turn % 20 :: 20]:
                    transaction[key] = bytes(VALUE_SIZE)
    assert len(held) > 10
    assert set(held) == {0}


def test_an_interrupted_wait_is_for_the_next_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was to be told when it was interrupted is not forgotten."""
    told = []

    def rolled(self: compactor.Compactor, store: KVStore) -> None:
        told.append(store)
        if len(told) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(compactor.Compactor, "rolled", rolled)
    with opened(tmp_path / "kv") as kv:
        kv["a"] = b""
        with pytest.raises(KeyboardInterrupt):
            kv["b"] = b""
        assert "b" not in kv
        kv["b"] = b""
        kv["c"] = b""
        assert told == [kv, kv]


def test_hints_of_what_others_wrote(tmp_path: Path) -> None:
    """Of a segment that another made longer; and none of them is swept that this handle has not heard of."""
    path = tmp_path / "kv"

    def hints_there() -> int:
        return len(list(path.glob("*.hint")))

    with opened(path, compaction=False, segment_bytes=256 << 10) as one:
        one["a"] = b""
        with opened(path, compaction=False) as two:
            overwrite(two, 1, 1)
            two._log.flush()
            one["b"] = b""
            one.flush()
            assert hints_there() == 3
            overwrite(two, 2, 1)
            two.flush()
            assert hints_there() == 6
            hints.sweep(one._log)
            assert hints_there() == 6
