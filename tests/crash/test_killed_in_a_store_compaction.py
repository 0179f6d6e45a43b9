"""A compaction of a store that is killed before and after every second call to the system, one by one."""

from __future__ import annotations

from pathlib import Path

from mmapio import FlushPolicy
from mmapkv import KVStore
from tests.crash.ack_page import ACKNOWLEDGED, AckPage
from tests.crash.killed_store import KEYS, wrongs


def work(store: KVStore, page: AckPage) -> None:
    """Compact, write and compact."""
    store.compact()
    page.words[ACKNOWLEDGED] = 1
    store[KEYS[1]] = b"new"
    page.words[ACKNOWLEDGED] = 2
    store.compact()


def findings(path: Path, before: dict[bytes, bytes], page: AckPage) -> list[str]:
    """What is wrong with a store that was left in the middle of it."""
    after = before | {KEYS[1]: b"new"}
    allowed = {0: [before], 1: [before, after], 2: [after]}[page.acknowledged]
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
    assert wrongs(tmp_path, work, findings, moments_min=40) == []
