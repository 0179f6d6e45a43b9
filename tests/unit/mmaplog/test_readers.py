"""Readers in other processes see what is committed, at once, and go on when the writer dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from mmapio import FlushPolicy
from mmaplog import Log
from tests.unit.mmapio.processes import TIMEOUT_SECONDS, in_child, killed_after

NEVER = FlushPolicy.NEVER
SEGMENT = 64 << 10


class Follower:
    """A forked reader that answers one question at a time, so that nobody has to wait and guess."""

    def __init__(self, path: Path) -> None:
        self.question, self.answer = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(TIMEOUT_SECONDS)
            try:
                self._serve(path)
            finally:
                os._exit(1)

    def _serve(self, path: Path) -> None:
        with Log.open(path, "r") as log:
            seen = 0
            while os.read(self.question[0], 1) == b"?":
                entries = list(log.replay(seen))
                seen += len(entries)
                payloads = b",".join(bytes(entry.payload)[:10] for entry in entries)
                os.write(self.answer[1], b"%d %d %s" % (log.committed, len(entries), payloads))
        os._exit(0)

    def ask(self) -> bytes:
        """What is committed, how many records came since the last time, and how they begin."""
        os.write(self.question[1], b"?")
        return os.read(self.answer[0], 65536)

    def stop(self) -> None:
        """Let it go."""
        os.write(self.question[1], b".")
        assert os.waitpid(self.pid, 0)[1] == 0
        for descriptor in (*self.question, *self.answer):
            os.close(descriptor)


def test_a_reader_sees_each_commit_at_once(tmp_path: Path) -> None:
    """Across growth of the file, rolls to new segments, and a record with a segment of its own."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=NEVER, segment_bytes=SEGMENT) as log:
        reader = Follower(path)
        assert reader.ask() == b"0 0 "
        log.append(b"first")
        assert reader.ask() == b"1 1 first"
        assert reader.ask() == b"1 0 "
        for number in range(200):
            log.append(b"%d," % number * 1000)
            assert reader.ask() == b"%d 1 %s" % (number + 2, (b"%d," % number * 10)[:10])
        log.append(b"L" * (3 * SEGMENT))
        log.append(b"end")
        assert reader.ask() == b"203 2 LLLLLLLLLL,end"
        log.close()
        assert reader.ask() == b"203 0 "
    with Log.open(path, flush_policy=NEVER) as log:
        log.append(b"again")
        assert reader.ask() == b"204 1 again"
    reader.stop()


def test_a_reader_outlives_a_killed_writer_and_follows_the_next(tmp_path: Path) -> None:
    """What was committed stays visible; the next writer goes on in the same files."""
    path = tmp_path / "log"
    Log.open(path, flush_policy=NEVER).close()
    reader = Follower(path)
    for number in range(5):
        killed_after(append_to(path, b"writer %d" % number))
        assert reader.ask() == b"%d 1 writer %d" % (number + 1, number)
    reader.stop()


def append_to(path: Path, record: bytes) -> Callable[[], Log]:
    """A writer's work, to be done in a child."""

    def work() -> Log:
        log = Log.open(path, flush_policy=NEVER)
        log.append(record)
        return log

    return work


def test_a_reader_that_recovers_does_not_keep_the_writers_lock(tmp_path: Path) -> None:
    """The first to come after a power cut makes CONTROL, even when it only wants to read."""
    path = tmp_path / "log"
    append_to(path, b"x")().close()
    (path / "CONTROL").unlink()
    with Log.open(path, "r") as reader:
        assert reader.recovered
        with Log.open(path, "w", flush_policy=NEVER) as log:
            assert not log.recovered
            log.append(b"y")
            assert len(reader) == 2


def test_a_writer_does_not_recover_below_a_reader(tmp_path: Path) -> None:
    """While somebody has the log open, CONTROL is what they go by."""
    path = tmp_path / "log"
    append_to(path, b"x")().close()
    with Log.open(path, "r") as reader:
        for number in range(3):
            with Log.open(path, "w", flush_policy=NEVER) as log:
                assert not log.recovered
                log.append(b"y")
            assert len(reader) == number + 2
            assert in_child(lambda: len(list(reader.replay()))) == number + 2


def test_the_durable_number_is_shared(tmp_path: Path) -> None:
    """A reader may want to act only on what a power cut cannot take back."""
    path = tmp_path / "log"
    with Log.open(path, flush_policy=NEVER) as log, Log.open(path, "r") as reader:
        log.append(b"x")
        assert (reader.committed, reader.durable) == (1, 0)
        log.flush()
        assert (reader.committed, reader.durable) == (1, 1)
        assert in_child(lambda: (reader.committed, reader.durable)) == (1, 1)
