"""Clears beside hints, several writers, and compaction in the background."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmapio import FlushPolicy
from mmapkv import KVStore, compaction, victims
from mmaplog import reserve
from tests.support.plain_reader import check_store
from tests.support.waiting import until
from tests.unit.mmapio.processes import in_child
from tests.unit.mmapkv.stores import agreeing, lose, opened

#: As small as can be.
SEGMENT = 64 << 10
VALUE = b"v" * 500


def fill(kv: KVStore, keys: int = 600, ttl: float | None = None) -> None:
    """Several segments."""
    for number in range(keys):
        kv.put(b"%d" % number, VALUE, ttl=ttl)


def shared(path: Path) -> KVStore:
    """The store as one of its writers."""
    return KVStore.open(path, shared=True, flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT)


def make_hints(kv: KVStore) -> set[str]:
    """The names of the segments that have one, once all have that may."""
    log, index = kv._open_parts()
    while not kv._hinter.make(log, index):
        pass
    return {entry.stem for entry in Path(kv.path).glob("*.hint")}


def test_a_segment_with_a_clear_has_no_hint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And that is no reason to warn of anything."""
    caplog.set_level(logging.WARNING)
    path = tmp_path / "kv"
    with KVStore.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT, compaction=False) as kv:
        fill(kv)
        kv.clear()
        fill(kv)
        kv.flush()
        made = make_hints(kv)
        names = [name.removesuffix(".seg") for _, _, name in kv._log.segments.listing()]
        (cleared,) = set(names[:-1]) - made
        assert names[0] in made and names[-2] in made and cleared not in names[0] + names[-2]
        assert kv.verify().damages == ()
        held = agreeing(kv)
    assert len(held) == 600
    assert caplog.records == []
    for lost in ((), made):
        lose(path, "INDEX", *(f"{name}.hint" for name in lost))
        with opened(path) as kv:
            assert agreeing(kv) == held
            assert kv.verify().damages == ()


@pytest.mark.parametrize("seed", range(4))
def test_hints_and_records_build_the_same(tmp_path: Path, seed: int) -> None:
    """Whatever was cleared in between."""
    path, chance = tmp_path / "kv", random.Random(seed)
    model: dict[bytes, bytes] = {}
    with KVStore.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT, compaction=False) as kv:
        for _ in range(4):
            for _ in range(chance.randrange(300, 1500)):
                key = b"%d" % chance.randrange(400)
                if chance.random() < 0.75:
                    kv[key] = model[key] = chance.randbytes(chance.choice((0, 8, 300)))
                else:
                    assert kv.pop(key, None) == model.pop(key, None)
            if chance.random() < 0.7:
                kv.clear()
                model.clear()
            if chance.random() < 0.5:
                kv.compact()
        kv.flush()
        make_hints(kv)
        assert agreeing(kv) == model
    for lost in (["INDEX"], ["INDEX", *(entry.name for entry in path.glob("*.hint"))]):
        lose(path, *lost)
        with opened(path) as kv:
            assert agreeing(kv) == model
            assert kv.verify().damages == ()
        assert check_store(path) == model


def test_one_of_several_writers_clears(tmp_path: Path) -> None:
    path = tmp_path / "kv"
    with (
        KVStore.open(path, shared=True, segment_bytes=SEGMENT) as kv,
        KVStore.open(path, "w", shared=True) as other,
        KVStore.open(path, "r") as reader,
    ):
        fill(kv)
        with other.snapshot() as before:
            other.clear()
            for each in (kv, other, reader):
                assert (len(each), each.get(b"7"), list(each)) == (0, None, [])
            assert len(before) == len(list(before)) == 600
            assert other.compact().records_removed == 0, "somebody looks at what was cleared"
        kv[b"7"] = b"new"
        assert in_child(lambda: add(path)) == 2
        assert {each[b"8"] for each in (kv, other, reader)} == {b"child"}
        kv.clear()
        kv.clear()
        other[b"9"] = b"newer"
        assert [dict(each) for each in (kv, other, reader)] == [{b"9": b"newer"}] * 3
        assert kv.compact().records_removed > 600
        assert [dict(each) for each in (kv, other, reader)] == [{b"9": b"newer"}] * 3
        assert kv.verify().damages == other.verify().damages == ()
    assert check_store(path) == {b"9": b"newer"}


def add(path: Path) -> int:
    """One more writer: how many keys there are then."""
    with KVStore.open(path, "w", shared=True) as kv:
        kv[b"8"] = b"child"
        return len(kv)


def test_an_index_that_another_builds_meanwhile_leads_to_nothing_that_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compaction had taken what was cleared out of its own, and then removed the segments."""
    path = tmp_path / "kv"
    real = reserve.spend_if_full
    building: list[threading.Thread] = []
    with shared(path) as kv, shared(path) as other:
        fill(kv)
        kv.clear()
        fill(kv, 50)
        expected = agreeing(kv)

        def build() -> None:
            other._rebuild_index(other._open_parts()[1])

        def spend(directory: Any, operation: Callable[[], None]) -> None:
            if not building:
                building.append(threading.Thread(target=build))
                building[0].start()
                # It is through at once, or waits for this thread.
                building[0].join(0.3)
            real(directory, operation)
            with opened(path, "r") as reader:
                assert {key: reader[key] for key in expected} == expected
                assert all(reader.get(b"%d" % number) is None for number in range(50, 600))

        monkeypatch.setattr(reserve, "spend_if_full", spend)
        kv.compact()
        building[0].join()
        assert agreeing(kv) == agreeing(other) == expected
        assert other.verify().damages == ()


def test_several_clear_while_several_write(tmp_path: Path) -> None:
    """The count stays that of the keys."""
    path = tmp_path / "kv"
    with (
        KVStore.open(path, shared=True, segment_bytes=SEGMENT) as kv,
        KVStore.open(path, "w", shared=True) as other,
    ):

        def write(handle: KVStore, seed: int) -> None:
            chance = random.Random(seed)
            for number in range(1500):
                if number % 300 == 299:
                    handle.clear()
                elif number % 701 == 700:
                    handle.compact()
                elif number % 3:
                    handle[b"%d" % chance.randrange(300)] = VALUE
                else:
                    handle.put_many({b"%d" % chance.randrange(300): b"" for _ in range(3)})

        threads = [threading.Thread(target=write, args=each) for each in ((kv, 1), (other, 2), (kv, 3))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert agreeing(kv) == agreeing(other)
        assert kv.verify().damages == ()


def test_a_cache_has_one_writer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one writer"):
        KVStore.open(tmp_path / "kv", shared=True, max_bytes=1 << 20)
    assert not (tmp_path / "kv").exists()


def test_what_was_cleared_goes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a look at its records, and its hints with it."""
    monkeypatch.setattr(victims, "SEGMENT_BYTES_MIN", SEGMENT)
    path = tmp_path / "kv"
    with KVStore.open(path, flush_policy=FlushPolicy.MANUAL) as kv:
        fill(kv, 3000)
        kv.flush()
        made = make_hints(kv)
        assert len(made) > 10
        assert kv.stats()["dead_bytes"] == 0
        kv.clear()
        told = kv.stats()
        assert (told["live_bytes"], told["keys"]) == (0, 0)
        until(lambda: len(kv._log.segments.listing()) == 1)
        until(lambda: not list(path.glob("*.hint")))
        assert kv.stats()["compactions"] == 0
        kv[b"7"] = b"new"
        assert agreeing(kv) == {b"7": b"new"}
        assert kv.verify().damages == ()


def test_no_more_counts_as_dead_than_there_is(tmp_path: Path) -> None:
    """Of a segment that is not mapped, a clear does not know how large it is."""
    path = tmp_path / "kv"
    with opened(path) as kv:
        fill(kv)
    with KVStore.open(path, flush_policy=FlushPolicy.MANUAL, compaction=False) as kv:
        total = kv.stats()["live_bytes"]
        kv.clear()
        told = kv.stats()
        assert told["live_bytes"] == 0
        assert total < told["dead_bytes"] < total + 100
        found: list[tuple[int, int, int, int, int]] = []

        def look(segments: list[tuple[int, int, int, int, int]], _: int) -> None:
            found.extend(segments)

        with kv.snapshot():
            compaction.step(kv, kv._pins, look, None)
    assert all(dead <= size for _, _, _, size, dead in found)


def test_what_was_cleared_is_not_taken_from_the_count_again(tmp_path: Path) -> None:
    """When it has expired, too."""
    path = tmp_path / "kv"
    with KVStore.open(path, flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT, compaction=False) as kv:
        kv["stays"] = "a"
        fill(kv, 300, ttl=0.05)
        kv.clear()
        kv["stays"] = "b"
        fill(kv, 200, ttl=0.05)
        kv["too"] = "c"
        time.sleep(0.06)
        assert kv.compact().records_removed >= 500
        assert len(kv) == 2
        assert agreeing(kv) == {b"stays": b"b", b"too": b"c"}
        assert kv.verify().damages == ()
