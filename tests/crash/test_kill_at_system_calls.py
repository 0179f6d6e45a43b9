"""Killing a writer before and after each single call to the system of a small session, one after the other.

The storm meets these moments by chance, some of them once in ten thousand kills. Here each is met, each time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from mmapio import FlushPolicy
from mmapkv import KVStore
from tests.crash.ack_page import ACKNOWLEDGED, AckPage
from tests.crash.child import Child
from tests.crash.moments import die_at, moments_of

SEGMENT_BYTES = 64 << 10
LOST: tuple[tuple[str, ...], ...] = ((), ("CONTROL",), ("INDEX",), ("CONTROL", "INDEX"))
LOADED = {b"key-%d" % number: b"%d" % number * 1000 for number in range(80)}

State = dict[bytes, bytes]
Step = Callable[[KVStore], KVStore]


def put(key: bytes, size: int) -> tuple[Step, State]:
    """A step that sets a key, and what it changes."""

    def step(store: KVStore) -> KVStore:
        store[key] = key * (size // len(key))
        return store

    return step, {key: key * (size // len(key))}


def reopen(store: KVStore) -> KVStore:
    """A step that closes, flushing, and opens again."""
    store.close()
    return KVStore.open(store.path, "w", flush_policy=FlushPolicy.MANUAL)


def rebuild(store: KVStore) -> KVStore:
    """A step that replaces the index under a reader's eyes."""
    _, index = store._parts()
    assert index is not None
    store._rebuild_index(index)
    return store


def flush(store: KVStore) -> KVStore:
    """A step that syncs."""
    store.flush()
    return store


# Rolls, a record larger than a segment, syncs, a new index, clean closes.
STEPS: list[tuple[Step, State]] = [
    put(b"a", 40_000),
    put(b"b", 40_000),
    (flush, {}),
    put(b"c", 200_000),
    put(b"d", 10),
    (reopen, {}),
    put(b"a", 60_000),
    (rebuild, {}),
    put(b"b", 61_000),
    (flush, {}),
    put(b"e", 100),
    (reopen, {}),
]


def states() -> list[State]:
    """What the store holds before each step, and after the last."""
    found = [LOADED]
    for _, change in STEPS:
        found.append({**found[-1], **change})
    return found


def load(path: Path) -> None:
    """A store with a few segments, closed cleanly."""
    with KVStore.open(path, "n", flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT_BYTES) as store:
        store.update(LOADED)


def session(path: Path, page: AckPage, limit: int | None, early: bool = False) -> int:
    """Run all steps in a child that dies at moment number `limit`. The number of moments, 0 if it died."""
    page.reset()

    def body(started: Callable[[], None]) -> None:
        seen = die_at(limit)
        store = KVStore.open(path, "w", flush_policy=FlushPolicy.MANUAL)
        for number, (step, _) in enumerate(STEPS, start=1):
            if early:
                page.words[ACKNOWLEDGED] = number
            store = step(store)
            page.words[ACKNOWLEDGED] = number
        store.close()
        page.words[ACKNOWLEDGED + 1] = len(seen)
        started()

    return moments_of(body, page)


def findings(path: Path, page: AckPage, lost: tuple[str, ...]) -> list[str]:
    """What is wrong with a store that a killed session left."""
    allowed = states()[page.acknowledged : page.acknowledged + 2]
    for name in lost:
        (path / name).unlink(missing_ok=True)
    wrong = []
    with KVStore.open(path, "r") as reader:
        if dict(reader.items()) not in allowed:
            wrong.append("a reader before recovery sees neither the state before the call nor the one after")
        with KVStore.open(path, "w", flush_policy=FlushPolicy.MANUAL) as store:
            found = dict(store.items())
            if found not in allowed or len(store) != len(found):
                wrong.append("the writer sees neither the state before the call nor the one after")
            # Enough to roll, so that the log goes on behind whatever was left at its end.
            after = {b"after-%d" % number: bytes(50_000) for number in range(2)}
            store.update(after)
            if dict(reader.items()) != found | after or any(reader[key] != after[key] for key in after):
                wrong.append(
                    "the reader that was there before recovery does not see what is written after it"
                )
        if dict(reader.items()) != found | after:
            wrong.append("the reader sees something else once the writer has closed")
    with KVStore.open(path, "w", flush_policy=FlushPolicy.MANUAL) as store:
        if dict(store.items()) != found | after or len(store) != len(found | after):
            wrong.append("opened once more, the store holds something else")
    left = [entry.name for entry in path.iterdir() if entry.name.endswith((".tmp", ".bad"))]
    return wrong + [f"{name} is left behind" for name in left]


def sweep(directory: Path, every: int = 1, early: bool = False) -> list[str]:
    """Kill at each moment in turn, or at one of `every` so many; everything that was found wrong."""
    page = AckPage()
    loaded, path = directory / "loaded", directory / "killed"
    load(loaded)
    shutil.copytree(loaded, path)
    moments = session(path, page, None)
    assert moments > 60, "a session this short would meet little"
    wrong = []
    for limit in range(1, moments + 1, every):
        shutil.rmtree(path)
        shutil.copytree(loaded, path)
        session(path, page, limit, early)
        lost = LOST[limit % len(LOST)]
        try:
            found = findings(path, page, lost)
        except OSError as error:
            found = [f"{type(error).__name__}: {error}"]
        wrong += [f"killed at moment {limit}, lost {lost}: {text}" for text in found]
    return wrong


def test_a_kill_at_any_moment_loses_and_invents_nothing(tmp_path: Path) -> None:
    # A segment renamed and not yet published, an index retired and not yet replaced: states that last
    # microseconds, and from which a store must come back every time.
    assert sweep(tmp_path) == []


def test_acknowledging_early_is_caught(tmp_path: Path) -> None:
    # A sweep that lets this pass would let anything pass.
    assert any("neither the state before" in text for text in sweep(tmp_path, every=4, early=True))


@pytest.mark.parametrize("mode", ["c", "n"])
def test_a_kill_while_replacing_a_store_leaves_it_or_an_empty_one(
    tmp_path: Path, mode: Literal["c", "n"]
) -> None:
    # Segments are removed one by one: some of them without the others are no store that anybody ever wrote.
    limit = 0
    wrong = []
    finished = False
    loaded, path = tmp_path / "loaded", tmp_path / "killed"
    load(loaded)
    while not finished:
        limit += 1
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(loaded, path)
        page = AckPage()

        def body(started: Callable[[], None], page: AckPage = page, limit: int = limit) -> None:
            die_at(limit)
            KVStore.open(path, "n", flush_policy=FlushPolicy.MANUAL).close()
            page.words[ACKNOWLEDGED] = 1
            started()

        child = Child(body)
        child.wait_started()
        assert child.kill() == ""
        finished = page.acknowledged == 1
        try:
            with KVStore.open(path, mode, flush_policy=FlushPolicy.MANUAL) as store:
                if dict(store.items()) not in ((LOADED, {}) if mode == "c" else ({},)):
                    wrong.append(f"killed at moment {limit}: {len(store)} keys of {len(LOADED)} are there")
        except OSError as error:
            wrong.append(f"killed at moment {limit}: {type(error).__name__}: {error}")
    assert wrong == []
