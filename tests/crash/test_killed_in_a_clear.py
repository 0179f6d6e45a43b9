"""A clear, and the compaction after it, that are killed between two stores, or around a system call."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import FlushPolicy
from mmapkv import KVStore
from tests.crash.ack_page import ACKNOWLEDGED, AckPage
from tests.crash.child import Child
from tests.crash.killed_store import KEYS, load, session, wrongs
from tests.support.plain_reader import check_store

NEW = {KEYS[1]: b"new"}
CLEARED_AT, CLEAR_SEQ_AT = 4096 + 104, 4096 + 112


def work(store: KVStore, page: AckPage) -> None:
    """Clear, compact and write."""
    store.clear(durable=True)
    page.words[ACKNOWLEDGED] = 1
    store.compact()
    store.update(NEW)
    page.words[ACKNOWLEDGED] = 2
    store.compact()


def findings(path: Path, before: dict[bytes, bytes], page: AckPage) -> list[str]:
    """What is wrong with a store that was left in the middle of it."""
    allowed = {0: [before, {}], 1: [{}, NEW], 2: [NEW]}[page.acknowledged]
    wrong = []

    def look(store: KVStore, who: str) -> None:
        found = dict(store.items())
        if found not in allowed or len(store) != len(found):
            wrong.append(f"{who} walks over something else")
        if {key: store[key] for key in KEYS if key in store} != found:
            wrong.append(f"{who} looks up something else")
        if (damages := store.verify().damages) != ():
            wrong.append(f"{who} finds damage: {damages}")

    with KVStore.open(path, "r") as reader:
        look(reader, "a reader before recovery")
        with KVStore.open(path, "w", flush_policy=FlushPolicy.MANUAL) as store:
            look(store, "the writer after it")
            store.compact()
            look(store, "the writer after another compaction")
            look(reader, "the reader, after another compaction,")
            listed = {name for _, _, name in store._log.segments.listing()}
            if page.acknowledged and len(listed) > 3:
                wrong.append(f"what was cleared takes {len(listed)} segments")
        if {entry.name for entry in path.glob("*.seg*")} != listed:
            wrong.append("files of segments that do not count are left")
    (path / "INDEX").unlink()
    with KVStore.open(path, "w", flush_policy=FlushPolicy.MANUAL) as store:
        look(store, "who builds the index anew")
    return wrong


def test_a_kill_at_any_moment_leaves_all_of_it_or_nothing(tmp_path: Path) -> None:
    # Entries go, then slots, then segments: who comes in between finds each of these states.
    assert wrongs(tmp_path, work, findings, moments_min=30) == []


@pytest.mark.parametrize("stores", [0, 1, 2])
def test_a_clear_is_finished_by_who_comes_next(tmp_path: Path, stores: int) -> None:
    """Killed between any two stores: until the pair is published, readers see all there was."""
    path = tmp_path / "store"
    with KVStore.open(path, flush_policy=FlushPolicy.NEVER) as store:
        store.update({b"a": b"1", b"b": b"2"})
        store.put("b", "3")
        # As a writer that was killed leaves it: after the record, the first store to the index, the second.
        index = bytearray((path / "INDEX").read_bytes())
        store.clear()
        if stores:
            struct.pack_into("<Q", index, CLEAR_SEQ_AT, 3)
        if stores == 2:
            struct.pack_into("<Q", index, CLEARED_AT, 3)
        shutil.copytree(path, tmp_path / "killed")
    (tmp_path / "killed" / "INDEX").write_bytes(index)
    # CONTROL of the copy is that of a handle that is gone; the index goes with it.
    (path / "INDEX").write_bytes(index)
    shutil.copyfile(tmp_path / "killed" / "CONTROL", path / "CONTROL")
    with KVStore.open(path, "r") as reader, KVStore.open(path, "w") as store:
        assert (len(store), list(store), store.get("b")) == (0, [], None)
        store["b"] = "4"
        assert dict(store.items()) == dict(reader.items()) == {b"b": b"4"}
        assert (len(store), store.verify().damages) == (1, ())
    assert check_store(path) == {b"b": b"4"}


@pytest.mark.parametrize("stores", [0, 1, 2, 3])
def test_a_transaction_that_clears_is_finished_by_who_comes_next(tmp_path: Path, stores: int) -> None:
    """The clear and what is put after it are there together, or neither is."""
    path, model = tmp_path / "store", {b"a": b"1", b"b": b"2", b"c": b"3"}
    with KVStore.open(path, flush_policy=FlushPolicy.NEVER, compaction=False) as store:
        store.update(model)
        index = bytearray((path / "INDEX").read_bytes())
        with store.transaction() as tx:
            tx.clear()
            tx.update({b"b": b"4", b"d": b"5"})
        if stores == 3:
            # All but what publishes it.
            index[4096 + 56 :] = (path / "INDEX").read_bytes()[4096 + 56 :]
        if 1 <= stores < 3:
            struct.pack_into("<Q", index, CLEAR_SEQ_AT, 3)
        if stores == 2:
            struct.pack_into("<Q", index, CLEARED_AT, 3)
        shutil.copytree(path, tmp_path / "killed")
    (path / "INDEX").write_bytes(index)
    shutil.copyfile(tmp_path / "killed" / "CONTROL", path / "CONTROL")
    with KVStore.open(path, "r") as reader:
        assert dict(reader.items()) in (model, {b"b": b"4", b"d": b"5"})
        with KVStore.open(path, "w") as store:
            for each in (store, reader):
                assert dict(each.items()) == {b"b": b"4", b"d": b"5"}
                assert [each.get(key) for key in "abcd"] == [None, b"4", None, b"5"]
                assert len(each) == 2
            assert store.verify().damages == ()
    assert check_store(path) == {b"b": b"4", b"d": b"5"}


@pytest.mark.parametrize("stores", [0, 1, 2])
def test_a_clear_is_finished_by_another_writer(tmp_path: Path, stores: int) -> None:
    """Whose handle is open, and who takes the next turn."""
    path = tmp_path / "store"
    with KVStore.open(path, shared=True, flush_policy=FlushPolicy.NEVER) as store:
        store.update({b"a": b"1", b"b": b"2"})

        def body(started: Callable[[], None]) -> None:
            other = KVStore.open(path, "w", shared=True, flush_policy=FlushPolicy.NEVER)
            other["a"] = "3"
            started()

        before = bytearray((path / "INDEX").read_bytes())
        child = Child(body)
        child.wait_started()
        assert child.kill() == ""
        store.clear()
        # What readers and writers go by is put back, as one leaves it who was killed before he published it.
        (seq,) = struct.unpack_from("<Q", before, CLEARED_AT)
        assert seq == 0
        with (path / "INDEX").open("r+b") as index:
            state = bytearray((path / "INDEX").read_bytes()[4096:4224])
            (turn,) = struct.unpack_from("<Q", state, 0)
            assert struct.unpack_from("<Q", state, 8 + 16 * (turn & 1)) == (4,)
            struct.pack_into("<Q", state, 0, turn - 1)
            assert struct.unpack_from("<2Q", state, 8 + 16 * (turn - 1 & 1)) == (3, 2)
            for at, offset in enumerate((CLEARED_AT, CLEAR_SEQ_AT)):
                if at < 2 - stores:
                    struct.pack_into("<Q", state, offset - 4096, 0)
            index.seek(4096)
            index.write(state)
        with KVStore.open(path, "r") as reader:
            store["b"] = "4"
            assert dict(store.items()) == dict(reader.items()) == {b"b": b"4"}
            assert (len(store), store.verify().damages) == (1, ())


def test_one_of_several_is_killed_in_a_clear(tmp_path: Path) -> None:
    """The other one goes on, at whatever moment that was."""
    wrong = []
    page = AckPage()

    def clear_and_compact(other: KVStore, page: AckPage) -> None:
        other.clear()
        page.words[ACKNOWLEDGED] = 1
        other.compact()

    def survive(limit: int | None) -> int:
        path = tmp_path / str(limit)
        before = load(path)
        with KVStore.open(path, "w", shared=True, flush_policy=FlushPolicy.MANUAL) as store:
            moments = session(path, page, limit, clear_and_compact, shared=True)
            for turn in range(2):
                found = dict(store.items())
                if found not in ([{}] if page.acknowledged else [before, {}]) or len(store) != len(found):
                    wrong.append(f"killed at moment {limit}: the other one finds something else")
                if {key: store[key] for key in KEYS if key in store} != found:
                    wrong.append(f"killed at moment {limit}: the other one looks up something else")
                if (damages := store.verify().damages) != ():
                    wrong.append(f"killed at moment {limit}: {damages}")
                if turn == 0:
                    store.compact()
            store.clear()
            store.update(NEW)
            if dict(store.items()) != NEW or store.verify().damages != ():
                wrong.append(f"killed at moment {limit}: the other one cannot go on")
        if check_store(path) != NEW:
            wrong.append(f"killed at moment {limit}: the files hold something else")
        return moments

    moments = survive(None)
    assert moments > 15, "a session this short would meet little"
    for limit in range(1, moments + 1, 3):
        survive(limit)
    assert wrong == []
