"""Logs of several segments for the tests of what removes records, and ways to cut short who does so."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmapio import FlushPolicy
from mmaplog import Log
from tests.crash.moments import SAID_AFTERWARDS, watch
from tests.unit.mmapio.processes import TIMEOUT_SECONDS

SEGMENT = 64 << 10
MANUAL = FlushPolicy.MANUAL
#: Files that can be derived, and are lost together.
LOST: list[tuple[str, ...]] = [(), ("CONTROL",), ("MANIFEST",), ("CONTROL", "MANIFEST")]


def opened(path: Path, mode: str = "c", **options: Any) -> Log:
    """A log of small segments whose policy starts no thread, so that the process may fork."""
    return Log.open(path, mode, **{"flush_policy": MANUAL, "segment_bytes": SEGMENT, **options})


def payload(seq: int, tag: str = "", size: int = 5000) -> bytes:
    """What record `seq` holds: of no two records the same."""
    return f"{tag}{seq}/".encode().ljust(size, b"%d" % (seq % 10))


def fill(log: Log, count: int, tag: str = "", size: int = 5000) -> None:
    """Append so many records, each in its own call."""
    for _ in range(count):
        log.append(payload(log.committed, tag, size))


def filled(path: Path, count: int = 40, size: int = 5000, **options: Any) -> dict[int, bytes]:
    """Make a log of `count` records, twelve in a segment, close it, and return what it holds."""
    with opened(path, **options) as log:
        fill(log, count, size=size)
    return {seq: payload(seq, size=size) for seq in range(count)}


def content(log: Log) -> dict[int, bytes]:
    """All records by their numbers, as every way of reading gives them."""
    found = {entry.seq: bytes(entry.payload) for entry in log.replay()}
    assert list(found) == sorted(found)
    assert [entry.seq for entry in log.replay(reverse=True)] == sorted(found, reverse=True)
    assert all(bytes(log[seq].payload) == data for seq, data in found.items())
    assert len(log) == len(found)
    checked = log.verify()
    assert (checked.damages, checked.records) == ((), len(found))
    return found


def segment_starts(path: Path) -> list[int]:
    """The base numbers that the names of the segment files say, in order."""
    return sorted(int(name.name[:20]) for name in path.glob("*.seg"))


def left_over(path: Path) -> list[str]:
    """What no closed log has in its directory."""
    return [name.name for name in path.iterdir() if name.suffix in (".tmp", ".bad")]


def died_at(moment: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child that is killed before or after its call number `moment` to the system.

    False when it finished before.
    """
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(TIMEOUT_SECONDS)
            with _counted(lambda seen: seen == moment and os.kill(os.getpid(), signal.SIGKILL)):
                work()
            os._exit(0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the child ended with {status}"
    return status != 0


@contextlib.contextmanager
def failing_at(moment: int, number: int, reached: list[int] | None = None) -> Iterator[None]:
    """Have call number `moment` to the system fail with errno `number`, instead of being made."""

    def fail(seen: int) -> None:
        if reached is not None:
            reached[:] = [seen]
        if seen == moment:
            raise OSError(number, os.strerror(number))

    with _counted(fail, after=False):
        yield


@contextlib.contextmanager
def at_moment(moment: int, act: Callable[[], object]) -> Iterator[None]:
    """Have `act` called at moment number `moment`: between two steps of whatever is done in the block."""
    with _counted(lambda seen: seen == moment and act()):
        yield


@contextlib.contextmanager
def _counted(at: Callable[[int], object], *, after: bool = True) -> Iterator[None]:
    seen = 0
    busy = False

    def moment(name: str) -> None:
        nonlocal seen, busy
        if busy:
            return
        seen += 1
        busy = True
        try:
            at(seen)
        finally:
            busy = False

    end = watch(moment, afterwards=SAID_AFTERWARDS if after else ())
    try:
        yield
    finally:
        end()


def one_of(found: dict[int, bytes], allowed: Sequence[dict[int, bytes]]) -> None:
    """Assert that a log holds one of these; a failure prints numbers and no payloads."""
    assert found in allowed, f"holds {_ranges(found)}, allowed were {[_ranges(each) for each in allowed]}"


def _ranges(records: dict[int, bytes]) -> str:
    return ",".join(f"{seq}:{data[:6]!r}" for seq, data in sorted(records.items()))


@contextlib.contextmanager
def answering(
    begin: Callable[[], Any], answer: Callable[[Any, str], object]
) -> Iterator[Callable[[str], Any]]:
    """A forked process that answers what it is asked: it begins with something, and gives `answer` of it
    and the request.

    Yields the function that asks; its attribute `pid` names the process, which goes by SIGKILL.
    """
    theirs, ours = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            signal.alarm(TIMEOUT_SECONDS)
            state = begin()
            with theirs.makefile("rwb") as pipe:
                for request in pipe:
                    try:
                        reply = answer(state, request.decode().strip()), ""
                    except OSError as error:
                        reply = type(error).__name__, str(error)
                    pickle.dump(reply, pipe)
                    pipe.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(1)
    theirs.close()
    try:
        with ours, ours.makefile("rwb") as pipe:

            def ask(request: str) -> Any:
                pipe.write(request.encode() + b"\n")
                pipe.flush()
                reply, error = pickle.load(pipe)
                assert not error, f"{reply}: {error}"
                return reply

            vars(ask)["pid"] = pid
            yield ask
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def shared(path: Path, mode: str = "c", **options: Any) -> Log:
    """A log that others may write too."""
    return opened(path, mode, shared=True, **options)


def lose(path: Path, names: tuple[str, ...]) -> None:
    """Remove files that can be derived."""
    for name in names:
        (path / name).unlink(missing_ok=True)
