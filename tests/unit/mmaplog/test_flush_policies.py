"""How often each policy syncs, exactly, and that a sync covers all that was written before it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmapio import FlushPolicy
from mmaplog import Log
from tests.unit.mmapio.interposer import PRELUDE
from tests.unit.mmapio.processes import killed_after, run_python

APPENDS = """
from mmapio import FlushPolicy
from mmaplog import Log
policy = eval(arguments[1])
log = Log.open(arguments[0], flush_policy=policy)
figures = [synced_by(lambda: log.append(b"x" * size, durable=durable)) for size, durable in arguments[2]]
durable = log.durable
closing = synced_by(log.close)
answer([figures, durable, closing])
"""


def syncs_of(path: Path, library: Path, policy: FlushPolicy, appends: list[tuple[int, bool]]) -> list[object]:
    """[syncs made by each append, durable after them, whether close synced] for payloads of given sizes."""
    figures, durable, closing = run_python(PRELUDE + APPENDS, path, repr(policy), appends, preload=library)
    return [figures, durable, closing > 0]


def plain(*sizes: int) -> list[tuple[int, bool]]:
    """Appends that do not ask to be durable."""
    return [(size, False) for size in sizes]


CASES = [
    (FlushPolicy.NEVER, plain(10, 10, 10), [[0, 0, 0], 0, False]),
    (FlushPolicy.NEVER, [(10, False), (10, True), (10, False)], [[0, 1, 0], 2, False]),
    (FlushPolicy.MANUAL, plain(10, 10, 10), [[0, 0, 0], 0, True]),
    (FlushPolicy.MANUAL, [(10, True), (10, False), (10, True)], [[1, 0, 1], 3, True]),
    (FlushPolicy.ALWAYS, plain(10, 0, 10), [[1, 1, 1], 3, True]),
    (FlushPolicy.ALWAYS, [(10, True), (10, False)], [[1, 1], 2, True]),
    (FlushPolicy.every_writes(1), plain(1, 1, 1), [[1, 1, 1], 3, True]),
    (FlushPolicy.every_writes(3), plain(1, 1, 1, 1, 1, 1, 1), [[0, 0, 1, 0, 0, 1, 0], 6, True]),
    (FlushPolicy.every_writes(3), [(1, False), (1, True), *plain(1, 1, 1)], [[0, 1, 0, 0, 1], 5, True]),
    (FlushPolicy.every_bytes(100), plain(50, 49, 1, 99, 1, 100, 500), [[0, 0, 1, 0, 1, 1, 1], 7, True]),
    (FlushPolicy.every_bytes(100), [(99, False), (0, True), *plain(99, 1)], [[0, 1, 0, 1], 4, True]),
    (FlushPolicy.every_millis(10**9), plain(10, 10, 10), [[0, 0, 0], 0, True]),
]


@pytest.mark.parametrize(
    ("policy", "appends", "expected"), CASES, ids=[f"{policy!r} {appends}" for policy, appends, _ in CASES]
)
def test_a_policy_syncs_as_often_as_it_says(
    tmp_path: Path,
    interposer: Path,
    policy: FlushPolicy,
    appends: list[tuple[int, bool]],
    expected: list[object],
) -> None:
    """One too few and acknowledged data is lost at a power cut; one too many and an append costs 100 us."""
    assert syncs_of(tmp_path / "log", interposer, policy, appends) == expected


def test_flush_syncs_what_is_pending_and_nothing_else(tmp_path: Path, interposer: Path) -> None:
    """A flush with nothing to do is free; one append later it is not."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmaplog import Log
log = Log.open(arguments[0], flush_policy=FlushPolicy.MANUAL)
figures = [synced_by(log.flush)]
for _ in range(2):
    log.append(b"x")
    figures += [log.durable, synced_by(log.flush), log.durable, synced_by(log.flush)]
answer(figures)
"""
    )
    assert run_python(code, tmp_path / "log", preload=interposer) == [0, 0, 1, 1, 0, 1, 1, 2, 0]


def test_a_flush_after_a_roll_syncs_every_segment_and_the_directory(tmp_path: Path, interposer: Path) -> None:
    """A record in the second segment is not durable before the first segment and the second's name are."""
    code = (
        PRELUDE
        + """
from mmapio import FlushPolicy
from mmaplog import Log
log = Log.open(arguments[0], flush_policy=FlushPolicy.MANUAL, segment_bytes=64 << 10)
figures = []
for rolls in range(4):
    for _ in range(rolls):
        log.append(b"x" * 60_000)
    log.append(b"x")
    figures.append(synced_by(log.flush))
answer(figures)
"""
    )
    # Each roll adds the segment that was left; the directory counts once.
    first, *others = run_python(code, tmp_path / "log", preload=interposer)
    assert first == 1
    assert others == [1, 4, 5]


def test_segments_rolled_past_while_a_flush_opens_its_files_are_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were taken for synced and sealed, and no later sync covered them: all was told durable."""
    log = Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL, segment_bytes=64 << 10)
    records = [b"x" * 10_000] * 30
    log.append_many(records)
    rolled = threading.Thread(target=log.append_many, args=(records,))
    really_open = os.open

    def roll_first(path: str, *arguments: Any, **named: Any) -> int:
        if path.endswith(".seg") and rolled.ident is None:
            rolled.start()
            rolled.join()
        return really_open(path, *arguments, **named)

    monkeypatch.setattr(os, "open", roll_first)
    log.flush()
    assert rolled.ident is not None
    assert log.durable == 30
    # Nothing else tells from within the process what was synced.
    sealed = [log.segments.at(base).footer() for base in log.segments.bases()]
    assert max(footer[0] for footer in sealed if footer is not None) <= log.durable
    log.flush()
    sealed = [log.segments.at(base).footer() for base in log.segments.bases()]
    assert [footer is None for footer in sealed] == [False] * (len(sealed) - 1) + [True]
    log.close()


def test_a_reopened_log_still_syncs_what_a_killed_writer_left(tmp_path: Path, interposer: Path) -> None:
    """Its appends are committed, not durable; the next flush has to cover all its segments."""
    code = (
        PRELUDE
        + """
import os
from mmapio import FlushPolicy
from mmaplog import Log
if os.fork() == 0:
    log = Log.open(arguments[0], flush_policy=FlushPolicy.NEVER, segment_bytes=64 << 10)
    for _ in range(3):
        log.append(b"x" * 60_000)
    os.kill(os.getpid(), 9)
os.wait()
log = Log.open(arguments[0], flush_policy=FlushPolicy.MANUAL)
answer([log.recovered, log.durable, synced_by(log.flush), log.durable, synced_by(log.flush)])
"""
    )
    assert run_python(code, tmp_path / "log", preload=interposer) == [False, 0, 4, 3, 0]


def test_the_background_flush_comes_by_itself(tmp_path: Path) -> None:
    """Nobody calls flush; it is enough to wait."""
    with Log.open(tmp_path / "log", flush_policy=FlushPolicy.every_millis(5)) as log:
        for number in range(1, 4):
            log.append(b"x")
            wait_until_durable(log, number)
        with Log.open(tmp_path / "log", "r") as reader:
            assert reader.durable == 3


def test_a_background_flush_never_comes_without_the_policy(tmp_path: Path) -> None:
    """The control of the test before."""
    with Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL) as log:
        log.append(b"x")
        time.sleep(0.05)
        assert log.durable == 0
        log.flush()
        assert log.durable == 1


def flushers() -> list[threading.Thread]:
    """The background threads that there are."""
    return [thread for thread in threading.enumerate() if thread.name == "mmaplog-flusher"]


def test_the_background_thread_ends_with_the_log(tmp_path: Path) -> None:
    """Closed or dropped; a thread that stays keeps the log open, and the process from forking safely."""
    log = Log.open(tmp_path / "log", flush_policy=FlushPolicy.every_millis(1))
    log.append(b"x")
    (thread,) = flushers()
    assert thread.daemon
    log.close()
    assert flushers() == []
    log = Log.open(tmp_path / "log", flush_policy=FlushPolicy.every_millis(1))
    log.append(b"x")
    (thread,) = flushers()
    del log
    thread.join(timeout=60)
    assert flushers() == []
    Log.open(tmp_path / "log", "w", flush_policy=FlushPolicy.MANUAL).close()
    with Log.open(tmp_path / "log", "r"):
        assert flushers() == []


def begins_with(append: Callable[[Log], object], path: Path) -> tuple[int, int]:
    """How many background threads there are when a log was opened, and after its first write."""
    with Log.open(path, flush_policy=FlushPolicy.every_millis(1_000_000)) as log:
        before = len(flushers())
        append(log)
        return before, len(flushers())


def reserved(log: Log) -> None:
    """Append a record that is written in place."""
    with log.reserve(1) as buffer:
        buffer[0:1] = b"x"


@pytest.mark.parametrize(
    "append",
    [
        lambda log: log.append(b"x"),
        lambda log: log.append(b"x", durable=True),
        lambda log: log.append_many([b"x"]),
        lambda log: log.append_many([b"x" * 4096] * 400),
        lambda log: log.append_many([b"x", b"y"], atomic=True),
        reserved,
    ],
)
def test_the_background_thread_begins_with_the_first_write(
    tmp_path: Path, append: Callable[[Log], object]
) -> None:
    """Who opens a log that was closed, and only reads it, need not wait for a thread."""
    Log.open(tmp_path / "log", flush_policy=FlushPolicy.MANUAL).close()
    assert begins_with(append, tmp_path / "log") == (0, 1)
    assert begins_with(lambda log: log.flush(), tmp_path / "log") == (0, 0)


def test_the_background_thread_is_there_for_what_others_wrote(tmp_path: Path) -> None:
    """A killed writer, and those who write at the same time, may leave what is not durable."""
    path = tmp_path / "log"
    killed_after(lambda: Log.open(path, flush_policy=FlushPolicy.NEVER).append(b"x"))
    with Log.open(path, flush_policy=FlushPolicy.every_millis(1)) as log:
        assert len(flushers()) == 1
        wait_until_durable(log, 1)
    with Log.open(path, shared=True, flush_policy=FlushPolicy.every_millis(1)):
        assert len(flushers()) == 1


def test_without_a_thread_each_write_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are too many, or the interpreter is about to end: no more than the policy's bound may be lost."""

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    path, policy = tmp_path / "log", FlushPolicy.every_millis(1_000_000)
    with Log.open(path, flush_policy=policy) as log:
        log.append(b"x")
        assert log.durable == 0
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Log.open(path, flush_policy=policy) as log:
        for number in range(2, 4):
            log.append(b"x")
            assert log.durable == number
    assert flushers() == []


def wait_until_durable(log: Log, number: int) -> None:
    """Wait for the background thread; a run that hangs here is a failure."""
    for _ in range(3000):
        if log.durable >= number:
            return
        time.sleep(0.01)
    pytest.fail(f"record {number - 1} did not become durable")


def test_the_lag_of_records_says_what_was_durable(tmp_path: Path) -> None:
    """Recovery believes it: a claim too many, and a torn tail becomes an error."""
    from tests.unit.mmaplog.segment_file import NO_CLAIM, segment_files

    path = tmp_path / "log"
    with Log.open(path, flush_policy=FlushPolicy.NEVER) as log:
        for number in range(6):
            log.append(b"x")
            if number in (1, 4):
                log.flush()
        for _ in range(70_000):
            log.append(b"")
    lags = [record.lag for segment in segment_files(path) for record in segment.records()]
    assert lags[:8] == [0, 1, 0, 1, 2, 0, 1, 2]
    assert lags[5 + NO_CLAIM - 1] == NO_CLAIM - 1
    assert set(lags[5 + NO_CLAIM :]) == {NO_CLAIM}


def test_a_sync_serves_all_who_wait_for_it(tmp_path: Path, interposer: Path) -> None:
    """Each of them once found that others had appended since, and synced again: threads were no use."""
    code = (
        PRELUDE
        + """
import time
from mmaplog import FlushPolicy, Log
log = Log.open(arguments[0], flush_policy=FlushPolicy.NEVER)
log.append(b"x", durable=True)
before = sum(syncs())
library.interposer_hold(FDATASYNC, 2)
threads = [threading.Thread(target=lambda: log.append(b"x", durable=True)) for _ in range(4)]
threads[0].start()
wait_until_held()
for thread in threads[1:]:
    thread.start()
while log.committed < 5:
    time.sleep(0.001)
library.interposer_let_on()
wait_until_held()
log.append(b"of somebody who does not wait")
library.interposer_let_on()
for thread in threads:
    thread.join()
answer([sum(syncs()) - before, log.durable, log.committed])
"""
    )
    assert run_python(code, tmp_path / "log", preload=interposer) == [2, 5, 6]
