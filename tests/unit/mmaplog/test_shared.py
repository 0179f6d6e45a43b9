"""Several writers of one log: whatever one of them does, or dies of, the others go on."""

from __future__ import annotations

import itertools
import os
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from mmapio import FlushPolicy
from mmaplog import Locked, Log, LogError
from mmaplog.lock import LockFile
from tests.crash.child import Child
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import in_child, living_child, outcome, run_python
from tests.unit.mmaplog.keeping import (
    answering,
    at_moment,
    content,
    fill,
    opened,
    payload,
    segment_starts,
    shared,
)


def clean_sum(path: Path) -> int:
    """What CONTROL says of a clean close; 0 while a writer is at work."""
    found: int = struct.unpack_from("<Q", (path / "CONTROL").read_bytes(), 4096 + 128)[0]
    return found


# ---- together ----


def test_two_handles_of_one_process(tmp_path: Path) -> None:
    """Each finds where the other has come to, over rolls."""
    path = tmp_path / "log"
    with shared(path) as one, shared(path) as two, opened(path, "r") as reader:
        for turn in range(60):
            log = (one, two)[turn % 3 % 2]
            assert log.append(payload(turn)) == turn
            assert one.committed == two.committed == turn + 1
        expected = {seq: payload(seq) for seq in range(60)}
        for each in (one, two, reader):
            assert content(each) == expected
        assert two.append_many([b"a", b"b"], atomic=True) == range(60, 62)
        assert one.append_many([b"c"] * 30) == range(62, 92)
        with two.batch() as batch:
            batch.append(b"d")
        assert one[92].payload == b"d"
        one.flush()
        assert two.durable == 93
    with opened(path) as log:
        assert not log.recovered
        assert len(content(log)) == 93


def test_several_processes(tmp_path: Path) -> None:
    """No number twice, none left out, and those of each in its order."""
    path = tmp_path / "log"
    shared(path, timestamps=True).close()

    def write(name: int) -> int:
        with shared(path, timestamps=True) as log:
            for number in range(150):
                if number % 10 == 9:
                    log.append_many(
                        [b"%d %d %d" % (name, number, part) for part in range(3)], atomic=number % 20 == 9
                    )
                else:
                    log.append(b"%d %d " % (name, number) + bytes(number * 13), durable=number % 50 == 0)
        return os.getpid()

    children = []
    for name in range(3):
        child = Child(lambda started, name=name: (write(name), started()))  # type: ignore[misc]
        children.append(child)
    for child in children:
        child.wait_started()
    for child in children:
        assert child.kill() == ""
    with opened(path) as log:
        assert not log.recovered
        entries = list(log.replay())
        assert [entry.seq for entry in entries] == list(range(3 * (135 + 15 * 3)))
        times = [entry.timestamp or 0 for entry in entries]
        assert times == sorted(times)
        for name in range(3):
            own = [
                bytes(entry.payload).split(b" ")[1:]
                for entry in entries
                if bytes(entry.payload).startswith(b"%d " % name)
            ]
            numbers = [int(fields[0]) for fields in own]
            assert numbers == sorted(numbers)
        # Nothing came in between the records of one call.
        parts = [
            bytes(entry.payload).split(b" ")
            for entry in entries
            if entry.payload[-2:] in (b" 0", b" 1", b" 2")
        ]
        assert len(parts) == 3 * 15 * 3
        for at in range(0, len(parts), 3):
            assert parts[at : at + 3] == [[*parts[at][:2], b"%d" % part] for part in range(3)]


def test_shared_and_exclusive_exclude_each_other(tmp_path: Path) -> None:
    """Who wants the log alone gets it alone."""
    path = tmp_path / "log"
    with shared(path), shared(path):
        with pytest.raises(Locked, match="have every writer share it"):
            opened(path)
        assert in_child(lambda: outcome(lambda: opened(path, "w")))[0] == "Locked"
        assert in_child(lambda: outcome(lambda: shared(path, "w").close())) == ("", "")
    with opened(path):
        with pytest.raises(Locked):
            shared(path)
        assert in_child(lambda: outcome(lambda: shared(path)))[0] == "Locked"
    for mode in "rn":
        with pytest.raises(ValueError, match="shared"):
            shared(path, mode)


def test_a_log_grows_and_rolls_for_all(tmp_path: Path) -> None:
    """Where the other has grown the file, or rolled to the next, or replaced an empty one by a larger one."""
    path = tmp_path / "log"
    with shared(path, segment_bytes=1 << 20) as one, shared(path) as two:
        two.append(b"early")
        one.append_many([bytes(50_000)] * 9)
        assert two.append(bytes(300_000)) == 10
        assert one.append(bytes(600_000)) == 11
        assert two.append(b"x") == 12
        one.flush()
        two.append(bytes(3 << 20))
        one.append(bytes(2 << 20))
        two.append(b"y")
        assert content(one) == content(two)
        one.truncate_after(15)
        two.append(bytes(2 << 20))
        assert one.append(b"z") == 16
        two.flush()
        assert content(one) == content(two)
    (path / "CONTROL").unlink()
    with opened(path) as log:
        assert len(content(log)) == 17


def test_the_last_to_close_leaves_it_clean(tmp_path: Path) -> None:
    """And nobody before: CONTROL is not sealed while there is a writer."""
    path = tmp_path / "log"
    one, two = shared(path), shared(path)
    fill(one, 20)
    one.close()
    assert clean_sum(path) == 0
    fill(two, 5)
    assert two.durable == 20
    two.close()
    assert clean_sum(path) != 0
    with opened(path) as log:
        assert not log.recovered
        assert log.durable == 25
        epoch = log.epoch
    (path / "CONTROL").unlink()
    with opened(path) as log:
        # There was a mark, so nothing had to be taken for lost.
        assert (log.epoch, len(content(log))) == (epoch, 25)


def test_who_comes_while_the_last_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """He found the one that was leaving still at work, so that CONTROL stayed sealed: nobody who came later
    believed it.
    """
    path = tmp_path / "log"
    shared(path).close()
    real = LockFile.end
    came: list[Log] = []

    def end(self: LockFile) -> None:
        real(self)
        if leaving and not came:
            came.append(leaving.pop())
            came[0] = shared(path)

    leaving: list[Any] = []
    monkeypatch.setattr(LockFile, "end", end)
    log = shared(path)
    log.append(b"x")
    leaving.append(None)
    log.close()
    assert clean_sum(path) == 0
    came[0].append(b"y")
    with opened(path, "r") as reader:
        assert len(content(reader)) == 2
    monkeypatch.undo()
    with shared(path) as other:
        assert other.append(b"z") == 2
    came[0].close()
    assert clean_sum(path) != 0


def test_two_that_go_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each took the other for one who stays, and nobody sealed."""
    path = tmp_path / "log"
    one, two = shared(path), shared(path)
    real = LockFile.end
    closing: list[Log] = [two]

    def end(self: LockFile) -> None:
        real(self)
        if closing:
            closing.pop().close()

    monkeypatch.setattr(LockFile, "end", end)
    one.append(b"x")
    one.close()
    assert two.closed
    assert clean_sum(path) != 0


# ---- durability ----


def test_what_another_rolls_past_during_a_sync_is_not_covered_by_it(tmp_path: Path) -> None:
    """What to sync was found before the other rolled, what to call durable after it: records were called
    durable that nobody had synced.
    """
    path = tmp_path / "log"
    with shared(path) as one:
        fill(one, 40)
    with shared(path) as one, shared(path) as two:
        assert one.durable == 40
        fill(two, 20)

        def more() -> None:
            fill(two, 40)

        before = two.committed
        for moment in itertools.count(1):
            with at_moment(moment, more):
                one.flush()
            reached = two.committed > before
            assert one.durable == before
            one.flush()
            assert one.durable == two.committed
            if not reached:
                break
            fill(two, 20)
            before = two.committed
        assert moment > 2
        assert content(one) == {seq: payload(seq) for seq in range(two.committed)}


def test_footers_are_right_where_another_wrote_the_segment(tmp_path: Path) -> None:
    """Where the records end was looked for in what the handle had mapped before the other had the file
    grown.
    """
    path = tmp_path / "log"
    with shared(path, segment_bytes=1 << 20) as one, shared(path) as two:
        one.append(b"x")
        fill(two, 300)
        one.flush()
        assert len(segment_starts(path)) == 2
    first = sorted(path.glob("*.seg"))[0].read_bytes()
    seq, end = struct.unpack_from("<QQ", first, 1536)
    assert seq == segment_starts(path)[1]
    assert end == 4096 + 24 + (seq - 1) * 5016


def test_one_sync_serves_all_who_wait(tmp_path: Path, interposer: Path) -> None:
    """Handles are as processes to each other: while one syncs, the others append, and one more sync is
    enough for them.
    """
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmaplog import Log
logs = [Log.open(arguments[0], flush_policy=FlushPolicy.MANUAL, shared=True) for _ in range(6)]
for log in logs:
    log.append(b"x")
logs[0].flush()
before = calls(FDATASYNC)
with Held(FDATASYNC, lambda: logs[0].append(b"first", durable=True)):
    threads = [threading.Thread(target=lambda log=log: log.append(b"more", durable=True)) for log in logs[1:]]
    for thread in threads:
        thread.start()
    import time
    while logs[0].committed < 12:
        time.sleep(0.001)
for thread in threads:
    thread.join()
answer([calls(FDATASYNC) - before, logs[3].durable, outcome(logs[2].flush)])
"""
    )
    syncs, durable, failed = run_python(code, tmp_path / "log", preload=interposer)
    assert (syncs, durable, failed) == (2, 12, "")


def test_a_policy_counts_what_its_own_handle_wrote(tmp_path: Path) -> None:
    """And a flush covers what everybody wrote."""
    path = tmp_path / "log"
    with shared(path, flush_policy=FlushPolicy.every_writes(3)) as one, shared(path) as two:
        for _ in range(5):
            two.append(b"x")
        one.append(b"a")
        one.append(b"b")
        assert one.durable == 0
        one.append(b"c")
        assert two.durable == 8
        with shared(path, flush_policy=FlushPolicy.ALWAYS) as three:
            two.append(b"y")
            three.append(b"z")
            assert two.durable == 10
        with shared(path, flush_policy=FlushPolicy.every_bytes(1000)) as four:
            four.append(bytes(500))
            assert two.durable == 10
            four.append_many([bytes(200)] * 4)
            assert two.durable == 15


def test_a_failed_sync_is_everybodys(tmp_path: Path, interposer: Path) -> None:
    """Nobody may promise anything after it."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmaplog import Log
one, two = [Log.open(arguments[0], flush_policy=FlushPolicy.MANUAL, shared=True) for _ in range(2)]
one.append(b"x")
fail(FDATASYNC, 1, errno.EIO)
found = [outcome(one.flush), outcome(lambda: two.append(b"y")), outcome(two.flush),
         outcome(lambda: two.truncate_after(0)),
         outcome(lambda: Log.open(arguments[0], shared=True))]
one.close(), two.close()
with Log.open(arguments[0], shared=True) as log:
    answer([*found, len(log), log.recovered, log.append(b"z")])
"""
    )
    found = run_python(code, tmp_path / "log", preload=interposer)
    assert found == ["FlushFailed", "Poisoned", "Poisoned", "Poisoned", "Poisoned", 1, True, 1]


# ---- within a process ----


def test_a_forked_child_may_not(tmp_path: Path) -> None:
    """It waited for ever for a lock that a thread of its parent had held."""
    path = tmp_path / "log"
    with shared(path) as log, opened(path, "r"):
        log.append(b"x")
        log.pause()
        found: list[tuple[str, str]] = []

        def fork() -> None:
            found.append(in_child(lambda: outcome(lambda: log.append(b"child"))))
            found.append(in_child(lambda: outcome(lambda: log.append_many([b"child"]))))

        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        log.unpause()
        assert [kind for kind, _ in found] == ["Closed", "Closed"]
        assert log.append(b"y") == 1


def test_a_child_that_ends_takes_nothing_along(tmp_path: Path) -> None:
    """Its parent holds its locks and its mutex as before."""
    path = tmp_path / "log"
    with shared(path) as log:
        log.append(b"x")
        with living_child(lambda: outcome(log.close)):
            pass
        with pytest.raises(Locked):
            opened(path)
        assert log.append(b"y") == 1


def test_a_destructor_within_an_append(tmp_path: Path) -> None:
    """It interrupts the thread that has the mutex in hand, and must not wait for it."""
    path = tmp_path / "log"
    with shared(path) as log:
        fill(log, 11)
        said: list[str] = []

        def again() -> None:
            for act in (lambda: log.append(b"x"), lambda: log.truncate_after(1), log.close):
                try:
                    act()
                except LogError as error:
                    said.append(error.strerror or "")

        with at_moment(3, again):
            fill(log, 5)
        assert len(said) == 3
        assert all("destructor or signal handler" in text for text in said)
        assert len(content(log)) == 16


def test_many_threads_of_two_processes(tmp_path: Path) -> None:
    """A mutex that is a thread's, and a lock before it."""
    path = tmp_path / "log"

    def write() -> Log:
        log = shared(path)
        threads = [threading.Thread(target=fill, args=(log, 40, f"{number}-", 300)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return log

    def look(log: Log, _: str) -> int:
        return len(content(log))

    with answering(write, look) as ask:
        log = write()
        assert ask("?") == len(content(log)) == 320
        log.close()
