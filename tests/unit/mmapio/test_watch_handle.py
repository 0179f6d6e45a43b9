"""A watch begins and ends when it is told to: stop, drop, fork, exit, and what it refuses to begin with."""

from __future__ import annotations

import dataclasses
import errno
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmapio.errors import WatchFailed
from mmapio.watch import ChangeEvent, ChangeKind, WatchHandle, watch
from tests.unit.mmapio.processes import in_child, outcome, run_python, unprivileged
from tests.unit.mmapio.watching import (
    DEADLINE_SECONDS,
    METADATA,
    MODIFIED,
    NEVER_SECONDS,
    REMOVED,
    SIZE,
    Inbox,
    nothing_left,
    overwrite,
    save,
    wait_until_ended,
)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """A test that leaves a thread behind fails."""
    with nothing_left():
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of one page."""
    made = tmp_path / "file"
    made.write_bytes(bytes(SIZE))
    return made


@pytest.fixture
def seen() -> Inbox[ChangeEvent]:
    return Inbox()


def test_a_change_during_a_callback_is_reported_after_it(path: Path, seen: Inbox[ChangeEvent]) -> None:
    """Callbacks need no lock against each other: one thread runs them all, one at a time."""
    release = threading.Event()
    threads = set()
    elsewhere: Inbox[ChangeEvent] = Inbox()

    def callback(event: ChangeEvent) -> None:
        threads.add(threading.current_thread())
        seen.put(event)
        assert release.wait(DEADLINE_SECONDS)

    with watch(path, callback), watch(path, elsewhere.put):
        overwrite(path)
        assert seen.next() == elsewhere.next() == MODIFIED
        path.chmod(0o600)
        # By now the first watch would have called, too.
        assert elsewhere.next() == METADATA
        assert seen.is_empty()
        release.set()
        assert seen.next() == METADATA
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_a_change_that_a_callback_makes_is_reported(path: Path, seen: Inbox[ChangeEvent]) -> None:
    """It is a change like any other."""

    def callback(event: ChangeEvent) -> None:
        if event == MODIFIED:
            path.chmod(0o600)
        seen.put(event)

    with watch(path, callback, interval_seconds=NEVER_SECONDS):
        overwrite(path)
        assert [seen.next(), seen.next()] == [MODIFIED, METADATA]


def test_two_watches_of_one_file_are_two(path: Path, seen: Inbox[ChangeEvent]) -> None:
    """One must not take the other's notifications, nor its end."""
    with watch(path, seen.put, interval_seconds=NEVER_SECONDS):
        other: Inbox[ChangeEvent] = Inbox()
        with watch(path, other.put, interval_seconds=NEVER_SECONDS):
            overwrite(path)
            assert seen.next() == other.next() == MODIFIED
        overwrite(path)
        assert seen.next() == MODIFIED
    assert other.is_empty()


def test_nothing_is_reported_after_stop(path: Path, seen: Inbox[ChangeEvent]) -> None:
    """What the callback uses may be gone by then."""
    handle = watch(path, seen.put)
    assert handle.is_active
    assert "active" in repr(handle)
    handle.stop()
    assert not handle.is_active
    assert "stopped" in repr(handle)
    handle.stop()
    other: Inbox[ChangeEvent] = Inbox()
    with watch(path, other.put):
        overwrite(path)
        assert other.next() == MODIFIED
    assert seen.is_empty()


def test_stop_waits_for_the_callback_that_runs(path: Path) -> None:
    """ "No callback after stop" must hold for the rest of one, too."""
    steps: list[str] = []
    entered = threading.Event()

    def callback(event: ChangeEvent) -> None:
        entered.set()
        # Only the call of stop() ends this.
        deadline = time.monotonic() + DEADLINE_SECONDS
        while handle.is_active and time.monotonic() < deadline:
            time.sleep(0.001)
        steps.append("the callback ends")

    handle = watch(path, callback)
    overwrite(path)
    assert entered.wait(DEADLINE_SECONDS)
    handle.stop()
    steps.append("stop returns")
    assert steps == ["the callback ends", "stop returns"]


def test_a_callback_may_stop_its_own_watch(path: Path, seen: Inbox[ChangeEvent]) -> None:
    """A thread that waits for itself hangs; and the second event of a replacement must not follow."""
    stopped = threading.Event()

    def callback(event: ChangeEvent) -> None:
        seen.put(event)
        handle.stop()
        handle.stop()
        stopped.set()

    handle = watch(path, callback)
    save(path)
    assert stopped.wait(DEADLINE_SECONDS)
    assert not handle.is_active
    handle.stop()
    assert seen.next() == REMOVED
    assert seen.is_empty()


def test_leaving_the_block_stops_even_after_an_exception(path: Path, seen: Inbox[ChangeEvent]) -> None:
    """And the exception goes on its way."""
    with pytest.raises(ZeroDivisionError), watch(path, seen.put) as handle:
        raise ZeroDivisionError
    assert isinstance(handle, WatchHandle)
    assert not handle.is_active


def test_a_handle_that_is_dropped_ends_its_watch(path: Path, seen: Inbox[ChangeEvent]) -> None:
    """The thread must not hold the handle, or nobody could ever let go of it."""
    handle = watch(path, seen.put, interval_seconds=NEVER_SECONDS)
    overwrite(path)
    assert seen.next() == MODIFIED
    del handle
    wait_until_ended()


@pytest.mark.parametrize("notified", [True, False])
def test_a_handle_that_its_callback_refers_to_can_be_dropped(
    path: Path, monkeypatch: pytest.MonkeyPatch, notified: bool
) -> None:
    """To stop itself the callback must know the handle; that is no reason to run for ever."""
    if not notified:
        monkeypatch.setattr(sys.modules["mmapio.watch"], "_subscribe", lambda path, shown: None)
    handles: list[WatchHandle] = []

    def callback(event: ChangeEvent, handles: list[WatchHandle] = handles) -> None:
        handles[0].stop()

    handles.append(watch(path, callback, interval_seconds=NEVER_SECONDS))
    del handles, callback
    gc.collect()
    wait_until_ended()


def test_a_callback_that_raises_is_called_again(
    path: Path, seen: Inbox[ChangeEvent], caplog: pytest.LogCaptureFixture
) -> None:
    """One bad event must not blind a program for good, nor pass in silence."""

    def callback(event: ChangeEvent) -> None:
        seen.put(event)
        raise ZeroDivisionError("in the callback")

    with watch(path, callback) as handle:
        for _ in range(2):
            overwrite(path)
            assert seen.next() == MODIFIED
        assert handle.is_active
    assert [record.name for record in caplog.records] == ["mmapio", "mmapio"]
    for record in caplog.records:
        assert record.levelno == logging.ERROR
        assert str(path) in record.getMessage()
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ZeroDivisionError)


def test_a_missing_file_is_refused(tmp_path: Path, seen: Inbox[ChangeEvent]) -> None:
    """A mistyped name would else be watched in silence for ever."""
    for missing in (tmp_path / "missing", tmp_path / "missing" / "file", ""):
        with pytest.raises(FileNotFoundError):
            watch(missing, seen.put)


def test_what_is_neither_file_nor_directory_is_refused(tmp_path: Path, seen: Inbox[ChangeEvent]) -> None:
    """Nothing else has content that changes."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(WatchFailed, match="neither a regular file nor a directory") as raised:
        watch(fifo, seen.put)
    assert raised.value.filename == str(fifo)


def test_a_directory_without_permission_is_refused(path: Path) -> None:
    """Search permission lets the file be examined, not the directory watched; without it, not even that."""

    def failure() -> tuple[str, str]:
        return outcome(lambda: watch(path, print))

    path.parent.chmod(0o100)
    try:
        kind, text = unprivileged(failure)
        assert kind == "WatchFailed"
        assert "permission to read its directory" in text
        path.parent.chmod(0o000)
        assert unprivileged(failure)[0] == "PermissionError"
    finally:
        path.parent.chmod(0o700)


@pytest.mark.parametrize("wrong", [0, -1, 0.0001, 86_401, float("nan"), float("inf")])
def test_an_interval_that_makes_no_sense_is_refused(
    path: Path, seen: Inbox[ChangeEvent], wrong: float
) -> None:
    """Zero would burn a core, and to the notifier it means for ever."""
    with pytest.raises(ValueError, match=f"between 0.001 and 86400, not {wrong}"):
        watch(path, seen.put, interval_seconds=wrong)


def test_arguments_of_a_wrong_type_are_refused(path: Path, seen: Inbox[ChangeEvent]) -> None:
    """In the call, not later on a thread."""
    wrong: Any
    for wrong in ("1", None):
        with pytest.raises(TypeError):
            watch(path, seen.put, interval_seconds=wrong)
    for wrong in (None, "callback"):
        with pytest.raises(TypeError, match="must be callable"):
            watch(path, wrong)
    for wrong in (3, None):
        with pytest.raises(TypeError):
            watch(wrong, seen.put)


def test_a_missing_package_is_named(
    path: Path, seen: Inbox[ChangeEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core does without it, so the message must say how to get it."""
    for name in ("watchfiles", "watchfiles._rust_notify"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(WatchFailed, match=r"pip install mmapkv\[watch\]") as raised:
        watch(path, seen.put)
    assert raised.value.filename == str(path)


def test_a_package_that_has_changed_is_refused(
    path: Path, seen: Inbox[ChangeEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later version may want other arguments; that is a failed watch like any other."""
    monkeypatch.setattr("watchfiles._rust_notify.RustNotify", lambda paths: None)
    with pytest.raises(WatchFailed, match="cannot be notified of changes"):
        watch(path, seen.put)


def test_a_system_without_descriptors_left_refuses(path: Path) -> None:
    """The system's own reason and a remedy must come through the package."""
    code = """
import resource, watchfiles
from mmapio.errors import WatchFailed
from mmapio.watch import watch
resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    watch(arguments[0], print)
except WatchFailed as error:
    answer([error.errno, error.strerror, error.filename])
"""
    code_found, text, filename = run_python(code, path)
    assert (code_found, filename) == (errno.EMFILE, str(path))
    assert "fs.inotify.max_user_instances" in text


def test_a_thread_that_cannot_be_started_leaves_nothing(
    path: Path, seen: Inbox[ChangeEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notifier has a thread of its own, which must end."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(WatchFailed, match="can't start new thread") as raised:
        watch(path, seen.put)
    assert raised.value.errno == errno.EAGAIN


# CPython 3.12 warns of every fork beside a thread: what a child may do then is what is tested.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_inherits_nothing_that_runs(path: Path, seen: Inbox[ChangeEvent]) -> None:
    """It must be able to let go of the handle, and to watch by itself; the parent's watch goes on."""

    def child() -> tuple[bool, bool, ChangeEvent]:
        active = handle.is_active
        handle.stop()
        own: Inbox[ChangeEvent] = Inbox()
        with watch(path, own.put, interval_seconds=NEVER_SECONDS) as other:
            overwrite(path)
            return active, other.is_active, own.next()

    with watch(path, seen.put, interval_seconds=NEVER_SECONDS) as handle:
        assert in_child(child) == (False, True, MODIFIED)
        assert seen.next() == MODIFIED
        assert handle.is_active


def test_the_end_of_the_interpreter_ends_the_watch(path: Path) -> None:
    """A thread that the end finds inside the notifier aborts the process with some versions of it."""
    code = """
import atexit, threading
# What is registered first runs last.
atexit.register(lambda: answer([thread.name for thread in threading.enumerate()]))
from mmapio.watch import watch
handle = watch(arguments[0], print, interval_seconds=86_400)
assert handle.is_active
"""
    assert run_python(code, path) == ["MainThread"]


def test_an_event_is_a_value() -> None:
    """It is handed from thread to thread, and compared in tests like these."""
    event = ChangeEvent(1, 2, ChangeKind.MODIFIED)
    assert {event, ChangeEvent(1, 2, ChangeKind.MODIFIED)} == {event}
    assert event != MODIFIED
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.len = 3  # type: ignore[misc]
