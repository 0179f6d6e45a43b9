"""One writer at a time, whoever it is and however it ends; and the rule for forked children."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path
from typing import Any

import pytest

from mmapio import Closed
from mmapio._os import open_directory
from mmaplog import FlushPolicy, Locked, Log, LogError, bookmark
from mmaplog.lock import LockFile
from tests.unit.mmapio.footprint import unchanged
from tests.unit.mmapio.processes import in_child, killed_after, living_child, outcome

MANUAL = FlushPolicy.MANUAL


def opened(path: Path, mode: str = "c") -> Log:
    """A log whose policy starts no thread, so that the process may fork."""
    return Log.open(path, mode, flush_policy=MANUAL)


@pytest.mark.parametrize("mode", ["w", "c", "n"])
def test_a_second_writer_of_the_same_process_is_refused(tmp_path: Path, mode: str) -> None:
    """Locks that belong to the process would let it in, and drop when any handle closes."""
    path = tmp_path / "log"
    with opened(path) as log:
        log.append(b"x")
        with unchanged(path):
            for _ in range(2):
                with pytest.raises(Locked, match=f"process {os.getpid()}, which is this one") as raised:
                    opened(path, mode)
        assert isinstance(raised.value, LogError)
        assert raised.value.filename == str(path)
        assert "mode 'r'" in str(raised.value)
        log.append(b"y")
    with opened(path) as log:
        assert len(log) == 2


@pytest.mark.parametrize("mode", ["w", "c", "n"])
def test_a_writer_in_another_process_is_named(tmp_path: Path, mode: str) -> None:
    """Whom to stop is the first thing one has to know."""
    path = tmp_path / "log"
    with living_child(lambda: opened(path)) as pid:
        with pytest.raises(Locked, match=f"process {pid};"):
            opened(path, mode)
        with opened(path, "r") as reader:
            assert len(reader) == 0
    with opened(path, mode) as log:
        log.append(b"mine now")


def test_the_other_process_is_refused_too(tmp_path: Path) -> None:
    """The lock works both ways."""
    path = tmp_path / "log"
    with opened(path):
        kind, text = in_child(lambda: outcome(lambda: opened(path)))
        assert kind == "Locked"
        assert f"process {os.getpid()};" in text


def test_a_killed_writer_leaves_no_lock(tmp_path: Path) -> None:
    """A lock that has to be removed by hand after a crash is no recovery."""
    path = tmp_path / "log"

    def write() -> Log:
        log = opened(path)
        for number in range(100):
            log.append(b"%d" % number)
        return log

    killed_after(write)
    with opened(path, "w") as log:
        assert not log.recovered
        assert [bytes(entry.payload) for entry in log.replay()] == [b"%d" % number for number in range(100)]


def test_a_dropped_handle_leaves_no_lock(tmp_path: Path) -> None:
    """Not everyone closes what they open."""
    path = tmp_path / "log"
    log = opened(path)
    log.append(b"x")
    del log
    gc.collect()
    with opened(path, "w") as log:
        assert len(log) == 1


def test_a_refused_open_leaves_no_lock(tmp_path: Path) -> None:
    """Whatever the reason for which it was refused."""
    path = tmp_path / "log"
    opened(path).close()
    manifest = (path / "MANIFEST").read_bytes()
    (path / "MANIFEST").write_bytes(b"something else")
    with pytest.raises(OSError, match="not a log") as raised:
        opened(path)
    (path / "MANIFEST").write_bytes(manifest)
    with opened(path) as log:
        log.append(b"x")
    assert raised.value is not None


def test_another_descriptor_of_the_lock_file_that_closes_takes_nothing_away(tmp_path: Path) -> None:
    """With POSIX locks any close of the file in the process would drop them all."""
    path = tmp_path / "log"
    with opened(path):
        with (path / "LOCK").open("rb") as other:
            other.read()
        opened(path, "r").close()
        assert in_child(lambda: outcome(lambda: opened(path)))[0] == "Locked"


def test_n_is_refused_while_others_read(tmp_path: Path) -> None:
    """Their log would vanish below them."""
    path = tmp_path / "log"
    with opened(path) as log:
        log.append(b"x")
    with opened(path, "r") as reader:
        with unchanged(path, ignoring=("LOCK",)), pytest.raises(Locked, match="reading"):
            opened(path, "n")
        assert [bytes(entry.payload) for entry in reader.replay()] == [b"x"]
    opened(path, "n").close()


def test_readers_hinder_nobody(tmp_path: Path) -> None:
    """Any number of them, before and after the writer."""
    path = tmp_path / "log"
    opened(path).close()
    readers = [opened(path, "r") for _ in range(5)]
    with opened(path, "w") as log:
        log.append(b"x")
        readers += [opened(path, "r") for _ in range(5)]
        assert [len(reader) for reader in readers] == [1] * 10
    for reader in readers:
        assert [bytes(entry.payload) for entry in reader.replay()] == [b"x"]
        reader.close()


def test_a_forked_child_that_lives_on_does_not_keep_the_lock(tmp_path: Path) -> None:
    """It holds a copy of the descriptor; the lock must go with the parent's handle all the same."""
    path = tmp_path / "log"
    log = opened(path)
    log.append(b"x")
    with living_child(lambda: log):
        log.append(b"y")
        log.close()
        with opened(path, "w") as again:
            assert again.append(b"z") == 2


def test_a_child_of_a_killed_writer_does_not_keep_the_lock(tmp_path: Path) -> None:
    """The same when the parent has no time to close."""
    path = tmp_path / "log"
    reading, writing = os.pipe()

    def parent() -> None:
        log = opened(path)
        log.append(b"x")
        with living_child(lambda: log) as pid:
            os.write(writing, b"%d\n" % pid)
            os.kill(os.getpid(), 9)

    if (pid := os.fork()) == 0:
        try:
            parent()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    with os.fdopen(reading) as answer:
        grandchild = int(answer.readline())
    os.close(writing)
    try:
        with opened(path, "w") as log:
            assert log.append(b"y") == 1
    finally:
        os.kill(grandchild, 9)


def test_a_forked_child_cannot_use_the_writer(tmp_path: Path) -> None:
    """Two processes that append at the same place overwrite each other."""
    path = tmp_path / "log"
    with opened(path) as log:
        log.append(b"x")

        def child() -> list[tuple[str, str]]:
            found = [
                outcome(lambda: log.append(b"child")),
                outcome(lambda: log.append(b"child", durable=True)),
                outcome(log.flush),
                outcome(lambda: opened(path)),
            ]
            assert [bytes(entry.payload) for entry in log.replay()] == [b"x"]
            return found

        *uses, again = in_child(child)
        for kind, text in uses:
            assert kind == "Closed"
            assert "open it again in the child" in text
        assert again[0] == "Locked"
        assert log.append(b"y") == 1
    with opened(path) as log:
        assert [bytes(entry.payload) for entry in log.replay()] == [b"x", b"y"]


@pytest.mark.parametrize("way", ["close", "collect", "exit"])
def test_a_childs_end_writes_nothing_and_unlocks_nothing(tmp_path: Path, way: str) -> None:
    """However it lets go of what it inherited."""
    path = tmp_path / "log"
    holder = [opened(path)]
    holder[0].append(b"x")

    def child() -> None:
        if way == "close":
            holder[0].close()
            holder[0].close()
        elif way == "collect":
            holder.clear()
            gc.collect()

    with unchanged(path):
        in_child(child)
        assert in_child(lambda: outcome(lambda: opened(path)))[0] == "Locked"
    holder[0].append(b"y")
    holder[0].close()
    with opened(path) as log:
        assert not log.recovered
        assert len(log) == 2


def test_a_child_of_a_writer_with_a_thread(tmp_path: Path) -> None:
    """The flusher does not exist in the child; closing there must not wait for it."""
    path = tmp_path / "log"
    log = Log.open(path, flush_policy=FlushPolicy.every_millis(50))
    log.append(b"x")
    with pytest.warns(DeprecationWarning) if hasattr(os, "process_cpu_count") else nothing():
        assert in_child(lambda: (outcome(log.close), log.closed)) == (("", ""), True)
    log.append(b"y")
    log.close()


class nothing:  # noqa: N801
    """A block with no conditions."""

    def __enter__(self) -> None: ...
    def __exit__(self, *exc: object) -> None: ...


def test_an_inherited_reader_may_read_and_must_not_be_waited_for(tmp_path: Path) -> None:
    """It harms nobody; and it does not count as attached, so that the parent's end is the end."""
    path = tmp_path / "log"
    with opened(path) as log:
        log.append(b"x")
    reader = opened(path, "r")
    with living_child(lambda: [bytes(entry.payload) for entry in reader.replay()]):
        assert in_child(lambda: [bytes(entry.payload) for entry in reader.replay()]) == [b"x"]
        reader.close()
        opened(path, "n").close()


USES = {
    "append": lambda log: log.append(b"x"),
    "append nothing": lambda log: log.append(b""),
    "append durable": lambda log: log.append(b"x", durable=True),
    "flush": lambda log: log.flush(),
    "replay": lambda log: log.replay(),
    "replay nothing": lambda log: log.replay(0, 0),
    "committed": lambda log: log.committed,
    "durable": lambda log: log.durable,
    "len": len,
    "with": lambda log: log.__enter__(),
    "begin_exclusive": lambda log: log.begin_exclusive(),
}


@pytest.mark.parametrize("mode", ["r", "w"])
@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_closed_log_refuses(tmp_path: Path, mode: str, use: object) -> None:
    """The memory is gone; the exception is all that stands between a mistake and SIGSEGV."""
    opened(tmp_path / "log").close()
    log = opened(tmp_path / "log", mode)
    assert not log.closed
    log.close()
    log.close()
    assert log.closed
    with pytest.raises(Closed, match="open it again") as raised:
        use(log)  # type: ignore[operator]
    assert raised.value.filename == str(tmp_path / "log")


def test_a_replay_outlives_its_log(tmp_path: Path) -> None:
    """What it still has to read is mapped."""
    log = opened(tmp_path / "log")
    for number in range(10):
        log.append(b"%d" % number)
    replay = log.replay()
    next(replay)
    log.close()
    assert [bytes(entry.payload) for entry in replay] == [b"%d" % number for number in range(1, 10)]


def test_a_writer_that_closes_twice_or_in_a_block(tmp_path: Path) -> None:
    """An exception inside the block is passed on, and the log is closed."""
    with pytest.raises(ZeroDivisionError), opened(tmp_path / "log") as log:
        log.append(b"x")
        raise ZeroDivisionError
    assert log.closed
    with opened(tmp_path / "log", "r") as log:
        assert len(log) == 1


def test_a_child_forked_while_a_consumer_is_opened_does_not_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is there by then, and what will refuse its use in a child is not."""
    is_named = bookmark.is_named
    with contextlib.ExitStack() as children, opened(tmp_path / "log") as log:

        def forked(*arguments: Any) -> bool:
            children.enter_context(living_child(lambda: None))
            return is_named(*arguments)

        log.consumer("c").close()
        monkeypatch.setattr(bookmark, "is_named", forked)
        consumer = log.consumer("c")
        monkeypatch.undo()
        consumer.close()
        log.consumer("c").close()
        log.remove_consumer("c")


def test_a_forked_child_keeps_no_lock_that_a_thread_was_at(tmp_path: Path) -> None:
    """What a thread of the parent refers to is referred to in a child for ever. The lock is closed anyway.

    A parent that was killed left a log that nobody else could write to, for as long as its child lived.
    """
    directory = open_directory(tmp_path)
    lock = LockFile(directory, str(tmp_path), create=True)
    lock.claim_writer()
    with opened(tmp_path / "log") as log:
        consumer = log.consumer("c")
        referred_to = [lock.held, consumer._mark.lock]
        with living_child(lambda: None):
            referred_to.clear()
            lock.close()
            consumer.close()
            LockFile(directory, str(tmp_path), create=False).claim_writer()
            log.consumer("c").close()
