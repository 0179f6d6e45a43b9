"""The changes of a store as they were made: from the beginning, from a number on, and as they come."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from mmapio import Closed
from mmapkv import Change, KVStore, TooOld
from mmaplog import Log
from tests.unit.mmapio.async_calls import on_each_backend, run
from tests.unit.mmapio.processes import in_child, living_child
from tests.unit.mmapkv.stores import MANUAL, SEGMENT, opened


def filled(path: Path) -> KVStore:
    """A store with five changes."""
    kv = opened(path)
    kv[b"a"] = b"1"
    kv[b"b"] = b""
    kv[b"a"] = b"3"
    del kv[b"b"]
    kv[b"b"] = b"5"
    return kv


FILLED = [
    Change(0, "put", b"a", b"1", None),
    Change(1, "put", b"b", b"", None),
    Change(2, "put", b"a", b"3", 0),
    Change(3, "delete", b"b", None, 1),
    Change(4, "put", b"b", b"5", 3),
]


def replica(kv: KVStore) -> dict[bytes, bytes]:
    """What following the changes makes of nothing: the use that they are for."""
    made: dict[bytes, bytes] = {}
    for change in kv.changes():
        if change.value is None:
            del made[change.key]
        else:
            made[change.key] = change.value
    return made


def test_every_change_in_order(tmp_path: Path) -> None:
    with filled(tmp_path / "kv") as kv:
        changes = kv.changes()
        assert list(changes) == FILLED
        assert changes.seq == 5
        assert changes.complete
        assert replica(kv) == dict(kv.items())


def test_a_change_is_a_value(tmp_path: Path) -> None:
    """It can be compared, kept in a set, and not be altered."""
    with filled(tmp_path / "kv") as kv:
        change = next(kv.changes())
    assert {change: 1}[FILLED[0]] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        change.value = b"other"  # type: ignore[misc]


def test_from_a_number_on(tmp_path: Path) -> None:
    with filled(tmp_path / "kv") as kv:
        for since in range(6):
            assert list(kv.changes(since)) == FILLED[since:]
        assert list(kv.changes(None)) == []
        for wrong in (-1, 6):
            with pytest.raises(IndexError, match="is not in the log"):
                kv.changes(wrong)


def test_times_to_live_are_told(tmp_path: Path) -> None:
    """A copy must know when its values end, for nobody says so later."""
    with opened(tmp_path / "kv") as kv:
        kv.put(b"a", b"1", ttl=3600)
        kv.put(b"a", b"2", ttl=1e-9)
        kv[b"a"] = b"3"
        hour, moment, forever = kv.changes()
        assert hour.expires_ns is not None
        assert moment.expires_ns is not None
        assert moment.expires_ns < hour.expires_ns
        assert (moment.key, moment.value, moment.previous) == (b"a", b"2", 0)
        assert forever == Change(2, "put", b"a", b"3", 1)


def test_a_batch_comes_whole(tmp_path: Path) -> None:
    """A follower in another process that sees one change of a batch has the others at hand."""

    def write() -> threading.Thread:
        kv = opened(tmp_path / "kv")

        def batches() -> None:
            for number in range(1_000_000):
                with kv.batch() as batch:
                    for part in range(10):
                        batch[b"%d" % part] = b"%d" % number

        made = threading.Thread(target=batches, daemon=True)
        made.start()
        return made

    with living_child(write), opened(tmp_path / "kv", "r") as reader:
        changes = reader.changes(follow=True)
        for number in range(500):
            found = [next(changes), *(changes.poll() for _ in range(9))]
            assert [change and change.value for change in found] == [b"%d" % number] * 10


def test_going_on_another_day(tmp_path: Path) -> None:
    """`seq` is where the next iteration begins; nothing comes twice or is left out."""
    with filled(tmp_path / "kv") as kv:
        changes = kv.changes()
        assert [next(changes), next(changes)] == FILLED[:2]
        since = changes.seq
    with opened(tmp_path / "kv", "r") as kv:
        assert list(kv.changes(since)) == FILLED[2:]


def test_it_ends_with_the_moment_of_the_call(tmp_path: Path) -> None:
    """Whoever writes for every change that he reads comes to an end."""
    with filled(tmp_path / "kv") as kv:
        found = []
        changes = kv.changes()
        for change in changes:
            kv[b"c"] = b"more"
            found.append(change)
        assert found == FILLED
        assert list(changes) == []


def test_following_gives_what_comes_and_ends_after_the_timeout(tmp_path: Path) -> None:
    with filled(tmp_path / "kv") as kv:
        changes = kv.changes(None, follow=True, timeout=0)
        assert list(changes) == []
        kv[b"new"] = b"x"
        assert list(changes) == [Change(5, "put", b"new", b"x", None)]
        assert not changes.wait(0)
        assert changes.poll() is None
        del kv[b"new"]
        assert changes.wait()
        assert changes.poll() == Change(6, "delete", b"new", None, 5)


def test_another_process_is_woken(tmp_path: Path) -> None:
    """Asleep until somebody writes; what it is handed is to be seen in the store."""
    with filled(tmp_path / "kv") as kv:
        ready = kv.changes(None, follow=True)

        def follow() -> list[tuple[bytes, bytes | None]]:
            with opened(tmp_path / "kv", "r") as reader:
                changes = reader.changes(None, follow=True, timeout=60)
                (tmp_path / "ready").touch()
                found = []
                for change in changes:
                    found.append((change.key, reader.get(change.key)))
                    if change.key == b"last":
                        break
                return found

        result: list[list[tuple[bytes, bytes | None]]] = []
        thread = threading.Thread(target=lambda: result.append(in_child(follow)))
        thread.start()
        while not (tmp_path / "ready").exists():
            thread.join(0.001)
            assert thread.is_alive() or result == []
        keys = [b"%d" % number for number in range(100)]
        for key in [*keys, b"last"]:
            kv[key] = b"v" + key
        thread.join()
        assert result == [[(key, b"v" + key) for key in [*keys, b"last"]]]
        assert [next(ready).key for _ in range(101)] == [*keys, b"last"]


def test_following_a_writer_at_work(tmp_path: Path) -> None:
    """Numbers without a gap, and never one whose change the store does not show yet."""

    def write() -> threading.Thread:
        kv = opened(tmp_path / "kv")

        def count() -> None:
            for number in range(1_000_000):
                kv[b"counter"] = b"%d" % number

        made = threading.Thread(target=count, daemon=True)
        made.start()
        return made

    with living_child(write), opened(tmp_path / "kv", "r") as reader:
        for number, change in enumerate(reader.changes(follow=True)):
            assert (change.seq, change.value) == (number, b"%d" % number)
            assert int(reader[b"counter"]) >= number
            if number == 20_000:
                break


def test_what_is_not_yet_visible_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has the record, its entry in the index is still to come."""
    with filled(tmp_path / "kv") as kv:
        changes = kv.changes(5, follow=True, timeout=0)
        visible = KVStore._visible(kv)
        kv[b"new"] = b"x"
        with monkeypatch.context() as patched:
            patched.setattr(KVStore, "_visible", lambda self: visible)
            assert changes.poll() is None
            assert list(changes) == []
            assert not changes.wait(0.02)
        assert changes.complete
        assert [change.key for change in changes] == [b"new"]
        assert changes.complete


def compacted(path: Path, *numbers: int) -> None:
    """Take these records out of the log, by its own means, behind a segment that is full."""
    with opened(path) as kv:
        kv[b"large"] = bytes(SEGMENT)
        kv[b"large"] = bytes(SEGMENT)
    with Log.open(path, flush_policy=MANUAL, segment_bytes=SEGMENT) as log:
        assert log.compact(lambda entry: entry.seq not in numbers).records_removed == len(numbers)


def test_what_a_compaction_left(tmp_path: Path) -> None:
    """The newest change of a key comes, and that there were others is told."""
    filled(tmp_path / "kv").close()
    compacted(tmp_path / "kv", 0, 1)
    with opened(tmp_path / "kv", "r") as kv:
        changes = kv.changes()
        assert changes.complete
        assert next(changes) == FILLED[2]
        assert not changes.complete
        after = kv.changes(2)
        assert [next(after), next(after), next(after)] == FILLED[2:]
        assert after.complete
        between = kv.changes(1, too_old="skip")
        assert next(between) == FILLED[2]
        assert not between.complete


def test_a_gap_that_may_hide_a_deletion_raises(tmp_path: Path) -> None:
    """Whoever went on from a number that he had noted passed over deletions, and kept what was deleted."""
    filled(tmp_path / "kv").close()
    compacted(tmp_path / "kv", 0, 1)
    with opened(tmp_path / "kv", "r") as kv:
        changes = kv.changes(1, follow=True)
        for _ in range(2):
            with pytest.raises(TooOld, match="between 1 and 2"):
                changes.poll()
            assert changes.wait(0)
            assert changes.seq == 1
            assert not changes.complete
        with pytest.raises(ValueError, match="too_old"):
            kv.changes(too_old="ignore")  # type: ignore[arg-type]


def test_a_compaction_while_all_is_read_is_told(tmp_path: Path) -> None:
    """Who began with nothing has something by then, which may have been deleted where nothing is left."""
    with filled(tmp_path / "kv") as kv:
        kv[b"c"] = bytes(SEGMENT)
    with opened(tmp_path / "kv", "r") as kv, opened(tmp_path / "kv", "r") as other:
        skipping, changes = kv.changes(too_old="skip"), kv.changes()
        assert [next(changes) for _ in range(5)] == [next(skipping) for _ in range(5)] == FILLED
        compacted(tmp_path / "kv", 5)
        with pytest.raises(TooOld, match="between 5 and 6"):
            next(changes)
        assert list(skipping) == []
        assert not skipping.complete
        # Who begins now reads it as it is now.
        assert [change.seq for change in other.changes()] == [0, 1, 2, 3, 4, 6, 7]


def test_what_was_removed_at_the_end_is_told_too(tmp_path: Path) -> None:
    """Though no later change shows it."""
    with filled(tmp_path / "kv") as kv:
        kv[b"c"] = bytes(SEGMENT)
    with opened(tmp_path / "kv", "r") as kv:
        begun = kv.changes(4)
        compacted(tmp_path / "kv", 4, 5)
        assert begun.complete
        with pytest.raises(TooOld):
            next(begun)
        assert not begun.complete
    with opened(tmp_path / "kv", "r") as kv:
        changes = kv.changes(3, too_old="skip")
        assert next(changes) == FILLED[3]
        assert changes.complete
        assert next(changes).key == b"large"
        assert not changes.complete


def test_what_was_truncated_is_too_old(tmp_path: Path) -> None:
    """Zero is the beginning, wherever that is; any other number is what it says."""
    with opened(tmp_path / "kv") as kv:
        for _ in range(5):
            kv[b"large"] = bytes(SEGMENT)
    with Log.open(tmp_path / "kv", flush_policy=MANUAL, segment_bytes=SEGMENT) as log:
        log.truncate_before(3)
    with opened(tmp_path / "kv", "r") as kv:
        assert [change.seq for change in kv.changes()] == [3, 4]
        with pytest.raises(TooOld, match="the log holds"):
            kv.changes(2)


def test_closing_ends_it_with_an_error(tmp_path: Path) -> None:
    """Also for a thread that waits."""
    kv = filled(tmp_path / "kv")
    changes = kv.changes()
    next(changes)
    kv.close()
    with pytest.raises(Closed):
        next(changes)
    with pytest.raises(Closed):
        kv.changes()

    kv = opened(tmp_path / "kv")
    waiting = kv.changes(None, follow=True)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            next(waiting)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    kv.close()
    thread.join()
    assert [type(error) for error in raised] == [Closed]


@on_each_backend
def test_async_for(tmp_path: Path, backend: str) -> None:
    """What is there, and what comes while the task waits."""
    with filled(tmp_path / "kv") as kv:

        async def main() -> None:
            import anyio

            assert [change async for change in kv.changes()] == FILLED
            found: list[Change] = []

            async def follow() -> None:
                async for change in kv.changes(3, follow=True):
                    found.append(change)
                    if change.key == b"last":
                        return

            async with anyio.create_task_group() as group:
                group.start_soon(follow)
                await anyio.lowlevel.checkpoint()
                kv[b"last"] = b"x"
            assert found == [*FILLED[3:], Change(5, "put", b"last", b"x", None)]
            assert [change async for change in kv.changes(6, follow=True, timeout=0)] == []

        run(backend, main)
