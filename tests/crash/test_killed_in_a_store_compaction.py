"""A compaction of a store that is killed before and after every second call to the system, one by one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from mmapio import FlushPolicy
from mmapkv import KVStore
from tests.crash.ack_page import ACKNOWLEDGED, AckPage
from tests.crash.child import Child
from tests.crash.test_kill_at_system_calls import count_moments

SEGMENT_BYTES = 64 << 10
KEYS = [b"key-%d" % number for number in range(60)]
LOST: tuple[tuple[str, ...], ...] = ((), ("INDEX",), ("CONTROL",))


def load(path: Path) -> dict[bytes, bytes]:
    """A store of several segments, with superseded values in each, and deletions."""
    with KVStore.open(path, "n", flush_policy=FlushPolicy.MANUAL, segment_bytes=SEGMENT_BYTES) as store:
        for turn in range(4):
            for at, key in enumerate(KEYS):
                store[key] = b"%d " % turn * (200 + at)
        for key in KEYS[::3]:
            del store[key]
        return dict(store.items())


def session(path: Path, page: AckPage, limit: int | None) -> int:
    """Compact, write and compact in a child that dies at moment number `limit`. The moments, 0 if it died."""
    page.reset()

    def body(started: Callable[[], None]) -> None:
        store = KVStore.open(path, "w", flush_policy=FlushPolicy.MANUAL)
        seen = count_moments(limit)
        store.compact()
        page.words[ACKNOWLEDGED] = 1
        store[KEYS[1]] = b"new"
        page.words[ACKNOWLEDGED] = 2
        store.compact()
        page.words[ACKNOWLEDGED + 1] = len(seen)
        started()

    child = Child(body)
    child.wait_started()
    assert child.kill() == ""
    return page.words[ACKNOWLEDGED + 1]


def findings(path: Path, before: dict[bytes, bytes], page: AckPage, lost: tuple[str, ...]) -> list[str]:
    """What is wrong with a store that was left in the middle of it."""
    after = before | {KEYS[1]: b"new"}
    allowed = {0: [before], 1: [before, after], 2: [after]}[page.acknowledged]
    for name in lost:
        (path / name).unlink()
    wrong = []

    def look(store: KVStore, who: str) -> None:
        found = dict(store.items())
        # A walk goes by the log, look-ups by the index.
        if found not in allowed or len(store) != len(found):
            wrong.append(f"{who} walks over something else")
        if {key: store[key] for key in KEYS if key in store} not in allowed:
            wrong.append(f"{who} looks up something else")

    with KVStore.open(path, "r") as reader:
        look(reader, "a reader before recovery")
        with KVStore.open(path, "w", flush_policy=FlushPolicy.MANUAL) as store:
            look(store, "the writer after it")
            look(reader, "the reader that was there")
            store.compact()
            look(store, "the writer after another compaction")
            look(reader, "the reader, after another compaction,")
            if store.compact().records_removed:
                wrong.append("a second compaction found something to remove")
            listed = {name for _, _, name in store._log.segments.listing()}
        if {entry.name for entry in path.glob("*.seg*")} != listed:
            wrong.append("files of segments that do not count are left")
    (path / "INDEX").unlink()
    with KVStore.open(path, "w", flush_policy=FlushPolicy.MANUAL) as store:
        look(store, "who builds the index anew")
    return wrong


def test_a_kill_at_any_moment_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    # MANIFEST names the new segment, and some entries lead there, some to files that do not count any more.
    page = AckPage()
    loaded, path = tmp_path / "loaded", tmp_path / "killed"
    before = load(loaded)
    shutil.copytree(loaded, path)
    moments = session(path, page, None)
    assert moments > 40, "a compaction this short would meet little"
    wrong = []
    for limit in range(1, moments + 1, 2):
        shutil.rmtree(path)
        shutil.copytree(loaded, path)
        session(path, page, limit)
        lost = LOST[limit // 2 % len(LOST)]
        try:
            found = findings(path, before, page, lost)
        except OSError as error:
            found = [f"{type(error).__name__}: {error}"]
        wrong += [f"killed at moment {limit}, lost {lost}: {text}" for text in found]
    assert wrong == []
