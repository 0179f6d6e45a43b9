"""What the raw files of a killed store say about where the kill struck."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mmapio import FlushPolicy, _os
from mmapkv import KVStore
from mmaplog import appender as appender_module
from tests.crash.child import Child
from tests.crash.compaction_phase import Phase
from tests.crash.wreck import SEGMENT_HEADER_SIZE, Inside, Wreck, inspect


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    with KVStore.open(made, flush_policy=FlushPolicy.MANUAL, segment_bytes=64 << 10) as store:
        store[b"a"] = bytes(60_000)
        store[b"b"] = b"2"
    return made


def test_it_agrees_with_the_store(path: Path) -> None:
    # Read at a wrong offset, a word of zeros would place every kill between two calls.
    wreck = inspect(path)
    with KVStore.open(path, "r") as store:
        figures = store.stats()
    assert wreck.seq == wreck.applied == figures["committed"] == 2
    assert wreck.index_end == figures["index_bytes"]
    assert SEGMENT_HEADER_SIZE < wreck.last < wreck.end == wreck.in_flight
    assert wreck.unfinished == frozenset()


def test_a_kill_inside_a_roll_is_seen(path: Path) -> None:
    # The new segment has its name, and the log does not know of it yet.
    def body(started: Callable[[], None]) -> None:
        store = KVStore.open(path, "w", flush_policy=FlushPolicy.MANUAL)
        create = vars(appender_module)["create_segment"]

        def create_and_die(*arguments: object, **named: object) -> None:
            create(*arguments, **named)
            os.kill(os.getpid(), signal.SIGKILL)

        vars(appender_module)["create_segment"] = create_and_die
        store[b"c"] = bytes(30_000)

    before = inspect(path)
    writer = Child(body)
    writer.wait_started()
    assert writer.kill() == ""
    wreck = inspect(path)
    assert len(wreck.unfinished) == 1
    assert wreck.place(before, True, 2) is Inside.ROLL


IDLE = Wreck(
    seq=5,
    segment_id=1,
    end=8192,
    last=8000,
    in_flight=8192,
    applied=5,
    index_end=1 << 20,
    split_old=0,
    beyond=0,
    unfinished=frozenset(),
    phase=None,
)


@pytest.mark.parametrize(
    ("after", "in_call", "place"),
    [
        (IDLE, False, Inside.BETWEEN),
        (IDLE, True, Inside.OTHER),
        (replace(IDLE, seq=6, applied=6), True, Inside.RETURNING),
        (replace(IDLE, in_flight=8200), True, Inside.APPEND),
        (replace(IDLE, seq=6), True, Inside.UNINDEXED),
        (replace(IDLE, split_old=7), True, Inside.SPLIT),
        (replace(IDLE, beyond=9), True, Inside.SPLIT_COPY),
        (replace(IDLE, segment_id=2, end=4096, last=0, in_flight=4096), True, Inside.ROLL),
        (replace(IDLE, segment_id=2, end=4096, last=0, in_flight=8192), True, Inside.ROLL),
        (replace(IDLE, unfinished=frozenset({"1.seg.tmp"})), True, Inside.ROLL),
        (replace(IDLE, phase=Phase.COPYING, unfinished=frozenset({"1.compact.seg.tmp"})), True, Inside.COPY),
        (replace(IDLE, phase=Phase.LISTING), True, Inside.LISTING),
        (replace(IDLE, phase=Phase.LEADING), True, Inside.LEADING),
        (replace(IDLE, phase=Phase.REMOVING), True, Inside.REMOVAL),
    ],
)
def test_each_place_is_told_from_the_others(after: Wreck, in_call: bool, place: Inside) -> None:
    # The share of kills that strike inside a write is a promise; a wrong row here would make it up.
    assert after.place(IDLE, in_call, acknowledged=5) is place


def test_a_compaction_that_has_not_written_yet_is_told_by_the_call() -> None:
    # Nothing on the disk says so; counted as something else, a storm might never have met one.
    assert IDLE.place(IDLE, True, 5, in_compaction=True) is Inside.SURVEY
    assert IDLE.place(IDLE, False, 5, in_compaction=False) is Inside.BETWEEN


def test_the_phases_of_a_compaction_are_seen_in_their_order(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A phase that is never seen would be counted as never met, or as another.
    seen = [inspect(path).phase]
    for name in ("grow", "remove_file", "replace_file", "sync", "write_at"):
        monkeypatch.setattr(_os, name, _looking(vars(_os)[name], path, seen))
    with KVStore.open(path, "w", flush_policy=FlushPolicy.MANUAL) as store:
        store[b"a"] = b"1"
        store.compact()
    seen.append(inspect(path).phase)
    changes = [phase for before, phase in itertools.pairwise(seen) if phase is not before]
    assert changes == [*Phase, None]


def _looking(real: Callable[..., object], path: Path, seen: list[Phase | None]) -> Callable[..., object]:
    def call(*arguments: object, **named: object) -> object:
        seen.append(inspect(path).phase)
        result = real(*arguments, **named)
        seen.append(inspect(path).phase)
        return result

    return call
