"""A watch reports every change of its file, none of any other, and nothing once it was stopped."""

from __future__ import annotations

import dataclasses
import errno
import gc
import logging
import mmap
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Generic, TypeVar

import pytest

from mmapio.errors import WatchFailed
from mmapio.watch import ChangeEvent, ChangeKind, WatchHandle, watch
from tests.unit.mmapio.processes import in_child, outcome, run_python, unprivileged

T = TypeVar("T")

# The package may offer the function of the same name.
MODULE: Any = sys.modules["mmapio.watch"]

#: What has not happened by then never will.
DEADLINE_SECONDS = 60

#: An interval that no test outlasts: what is reported was notified of.
NEVER_SECONDS = 86_400
OFTEN_SECONDS = 0.01

SIZE = 4096

MODIFIED = ChangeEvent(None, None, ChangeKind.MODIFIED)
METADATA = ChangeEvent(None, None, ChangeKind.METADATA)
REMOVED = ChangeEvent(None, None, ChangeKind.REMOVED)


class Inbox(Generic[T]):
    """What other threads put in, in order."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[T] = queue.SimpleQueue()

    def put(self, item: T) -> None:
        self._queue.put(item)

    def next(self) -> T:
        """The next item; an AssertionError when none comes."""
        try:
            return self._queue.get(timeout=DEADLINE_SECONDS)
        except queue.Empty:
            raise AssertionError("nothing came") from None

    def is_empty(self) -> bool:
        return self._queue.empty()

    def clear(self) -> None:
        while not self.is_empty():
            self.next()


class Warnings(logging.Handler):
    """What is logged, for a test to wait for."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: Inbox[logging.LogRecord] = Inbox()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.put(record)


def wait_until_ended() -> None:
    """Wait until no watch has a thread, its own or the notifier's."""
    for thread in threading.enumerate():
        if thread.name == "mmapio-watch":
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive(), "a watch has not ended"


def native_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """A test that leaves a thread behind fails. The kernel's count is looked at last: it lags a little."""
    before = native_threads()
    yield
    gc.collect()
    wait_until_ended()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while native_threads() > before:
        if time.monotonic() > deadline:
            pytest.fail("a thread of the notifier has not ended")
        time.sleep(0.001)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of one page."""
    made = tmp_path / "file"
    made.write_bytes(bytes(SIZE))
    return made


@pytest.fixture
def seen() -> Inbox[ChangeEvent]:
    return Inbox()


@pytest.fixture
def warnings() -> Iterator[Inbox[logging.LogRecord]]:
    """The warnings and errors of mmapio."""
    handler = Warnings()
    logging.getLogger("mmapio").addHandler(handler)
    yield handler.records
    logging.getLogger("mmapio").removeHandler(handler)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Inbox[Path]:
    """Which path was examined, once a look is over."""
    done: Inbox[Path] = Inbox()
    examine = MODULE._signature

    def look(path: Path) -> Any:
        try:
            return examine(path)
        finally:
            done.put(path)

    monkeypatch.setattr(MODULE, "_signature", look)
    return done


def wait_for_looks(looks: Inbox[Path]) -> None:
    """Wait for a look that began after the call, and for what it led to."""
    looks.clear()
    for _ in range(3):
        looks.next()


@pytest.fixture
def unnotified(monkeypatch: pytest.MonkeyPatch) -> None:
    """No notifications: what is reported was seen in the file's status."""
    monkeypatch.setattr(MODULE, "_subscribe", lambda path, shown: None)


def overwrite(path: Path, data: bytes = b"x") -> None:
    """One write through a descriptor of its own, and no other change."""
    opened = os.open(path, os.O_RDWR)
    try:
        assert os.pwrite(opened, data, 0) == len(data)
    finally:
        os.close(opened)


def store(path: Path, data: bytes = b"stored") -> None:
    """One store through a mapping of its own, and no write."""
    with path.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped[: len(data)] = data


def append(path: Path) -> None:
    with path.open("ab") as opened:
        opened.write(b"grown")


def allocate(path: Path) -> None:
    with path.open("r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, 3 * SIZE)


def link(path: Path) -> None:
    path.with_name("another name").hardlink_to(path)


def read_times(path: Path) -> None:
    """As a reader would leave them, were its accesses recorded."""
    os.utime(path, ns=(5, path.stat().st_mtime_ns))


def save(path: Path, data: bytes = bytes(SIZE)) -> None:
    """Replace the file as editors do."""
    new = path.with_name("new")
    new.write_bytes(data)
    new.replace(path)


def become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES: dict[str, tuple[Callable[[Path], object], list[ChangeEvent]]] = {
    "write": (overwrite, [MODIFIED]),
    "extend": (append, [ChangeEvent(SIZE, 5, ChangeKind.MODIFIED)]),
    "extend by truncate": (
        lambda path: os.truncate(path, SIZE + 1),
        [ChangeEvent(SIZE, 1, ChangeKind.MODIFIED)],
    ),
    "extend by allocation": (allocate, [ChangeEvent(SIZE, 2 * SIZE, ChangeKind.MODIFIED)]),
    "truncate": (lambda path: os.truncate(path, 100), [ChangeEvent(100, 0, ChangeKind.MODIFIED)]),
    "empty": (lambda path: os.truncate(path, 0), [ChangeEvent(0, 0, ChangeKind.MODIFIED)]),
    "set the time of change": (lambda path: os.utime(path, (1, 1)), [MODIFIED]),
    "set the time of access": (read_times, [METADATA]),
    "chmod": (lambda path: path.chmod(0o400), [METADATA]),
    "link": (link, [METADATA]),
    "unlink": (Path.unlink, [REMOVED]),
    "rename away": (lambda path: path.rename(path.with_name("away")), [REMOVED]),
    "save as editors do": (save, [REMOVED, MODIFIED]),
    "replace by a directory": (become_directory, [REMOVED]),
}


def check_reports(
    path: Path, seen: Inbox[ChangeEvent], change: Callable[[Path], object], expected: list[ChangeEvent]
) -> None:
    """A change is reported as `expected`, and the next thing reported is another change."""
    change(path)
    assert [seen.next() for _ in expected] == expected
    if path.is_file():
        path.chmod(0o640)
        assert seen.next() == METADATA
    else:
        if path.is_dir():
            path.rmdir()
        path.touch()
        assert seen.next() == MODIFIED


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_reported_on_notification(
    path: Path, seen: Inbox[ChangeEvent], change: Callable[[Path], object], expected: list[ChangeEvent]
) -> None:
    """Without the notifications a change would be reported an interval late."""
    with watch(path, seen.put, interval_seconds=NEVER_SECONDS):
        check_reports(path, seen, change, expected)


@pytest.mark.usefixtures("unnotified")
@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_reported_without_notification(
    path: Path, seen: Inbox[ChangeEvent], change: Callable[[Path], object], expected: list[ChangeEvent]
) -> None:
    """A file system of another machine notifies of nothing, nor does a directory that was itself replaced."""
    with watch(path, seen.put, interval_seconds=OFTEN_SECONDS):
        check_reports(path, seen, change, expected)


@pytest.mark.parametrize("change", [overwrite, store])
def test_changes_by_other_processes_are_reported(
    path: Path, seen: Inbox[ChangeEvent], change: Callable[[Path], None]
) -> None:
    """A store through a mapping notifies nobody: only the looks in between can see it, each time."""
    code = f"""
from pathlib import Path
from tests.unit.mmapio.test_watch import {change.__name__} as change
answer(change(Path(arguments[0])))
"""
    with watch(path, seen.put, interval_seconds=OFTEN_SECONDS):
        for _ in range(2):
            run_python(code, path)
            assert seen.next() == MODIFIED
            # The pages are clean now, so the next store is one that the system takes note of.
            with path.open("r+b") as opened:
                os.fsync(opened.fileno())


def test_what_happens_after_the_removal_is_reported(path: Path, seen: Inbox[ChangeEvent]) -> None:
    """The watch is of the path: a file that is saved, or deleted and written anew, must not lose it."""
    with watch(path, seen.put) as handle:
        path.unlink()
        assert seen.next() == REMOVED
        path.touch()
        assert seen.next() == MODIFIED
        append(path)
        assert seen.next() == ChangeEvent(0, 5, ChangeKind.MODIFIED)
        save(path)
        assert [seen.next(), seen.next()] == [REMOVED, MODIFIED]
        path.chmod(0o600)
        assert seen.next() == METADATA
        assert handle.is_active


def test_a_directory_that_is_replaced_takes_the_file_with_it(
    tmp_path: Path, seen: Inbox[ChangeEvent], looks: Inbox[Path], warnings: Inbox[logging.LogRecord]
) -> None:
    """The notifier then stays with the old directory, and tells nothing of the new one."""
    path = tmp_path / "directory" / "file"
    path.parent.mkdir()
    path.touch()
    with watch(path, seen.put, interval_seconds=OFTEN_SECONDS):
        path.parent.rename(tmp_path / "old")
        assert seen.next() == REMOVED
        path.parent.touch()
        wait_for_looks(looks)
        path.parent.unlink()
        path.parent.mkdir()
        path.touch()
        assert seen.next() == MODIFIED
    assert warnings.is_empty()


def test_a_change_during_the_call_is_reported(
    path: Path, seen: Inbox[ChangeEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look and the subscription there is nobody to notify."""
    subscribe = MODULE._subscribe

    def subscribe_late(place: Path, shown: str) -> Any:
        overwrite(path)
        return subscribe(place, shown)

    monkeypatch.setattr(MODULE, "_subscribe", subscribe_late)
    with watch(path, seen.put, interval_seconds=NEVER_SECONDS):
        assert seen.next() == MODIFIED


def test_neighbours_are_not_reported(tmp_path: Path, path: Path, seen: Inbox[ChangeEvent]) -> None:
    """Notifications come for the whole directory."""
    neighbour = tmp_path / "file2"
    neighbour.touch()
    noticed: Inbox[ChangeEvent] = Inbox()
    with watch(path, seen.put), watch(neighbour, noticed.put):
        append(neighbour)
        noticed.next()
        neighbour.unlink()
        noticed.next()
        path.chmod(0o600)
        assert seen.next() == METADATA
    assert seen.is_empty()


def test_what_happens_in_directories_below_causes_no_look(
    tmp_path: Path, path: Path, seen: Inbox[ChangeEvent], looks: Inbox[Path]
) -> None:
    """A file high up in a large tree would cost a subscription for every directory in it."""
    below = tmp_path / "below" / "file"
    below.parent.mkdir()
    below.touch()
    noticed: Inbox[ChangeEvent] = Inbox()
    with (
        watch(path, seen.put, interval_seconds=NEVER_SECONDS),
        watch(below, noticed.put, interval_seconds=NEVER_SECONDS),
    ):
        # Each begins with a look.
        assert {looks.next(), looks.next()} == {path, below}
        append(below)
        noticed.next()
        assert looks.next() == below
        path.chmod(0o600)
        assert seen.next() == METADATA
        assert looks.next() == path


def test_a_busy_directory_delays_no_report_for_long(
    tmp_path: Path, path: Path, seen: Inbox[ChangeEvent]
) -> None:
    """The notifier waits for a pause in what it is told, and in some directories there is none."""
    quiet = threading.Event()

    def be_busy() -> None:
        for number in range(sys.maxsize):
            if quiet.is_set():
                return
            (tmp_path / f"neighbour {number}").touch()

    busy = threading.Thread(target=be_busy)
    with watch(path, seen.put, interval_seconds=NEVER_SECONDS):
        busy.start()
        try:
            for _ in range(3):
                overwrite(path)
                assert seen.next() == MODIFIED
        finally:
            quiet.set()
            busy.join()


def test_the_last_of_many_quick_changes_is_reported(path: Path) -> None:
    """Changes share reports; what a callback reads must still become what the file holds in the end."""
    read: Inbox[bytes] = Inbox()
    with watch(path, lambda event: read.put(path.read_bytes()[:8]), interval_seconds=NEVER_SECONDS):
        for last in range(500, 5001, 500):
            for number in range(last - 499, last + 1):
                overwrite(path, number.to_bytes(8, "little"))
            while read.next() != last.to_bytes(8, "little"):
                pass


@pytest.mark.usefixtures("unnotified")
def test_a_change_with_the_stamp_of_one_that_was_seen_is_reported(
    path: Path, seen: Inbox[ChangeEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where times are those of the last timer tick, a second change within it leaves the status as it was.

    Each first change takes place right before a look, the second right after it.
    """
    tick_ns = 10_000_000
    pending: list[Callable[[Path], None]] = []

    def coarse(place: Path | str) -> SimpleNamespace:
        while pending:
            pending.pop()(path)
        found = os.stat(place)  # noqa: PTH116
        names = ("st_mode", "st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
        status = SimpleNamespace(**{name: getattr(found, name) for name in names})
        # Not whole ticks: one of them is a whole second, which stands for a file system without fractions.
        status.st_mtime_ns += 1 - status.st_mtime_ns % tick_ns
        status.st_ctime_ns += 1 - status.st_ctime_ns % tick_ns
        return status

    def callback(event: ChangeEvent) -> None:
        if path.read_bytes()[:6] == b"first ":
            overwrite(path, b"second")
        seen.put(event)

    monkeypatch.setattr(MODULE, "_os", SimpleNamespace(status=coarse))
    for _ in range(3):
        pending.append(overwrite)
        with watch(path, seen.put, interval_seconds=OFTEN_SECONDS):
            overwrite(path)
            assert seen.next() == MODIFIED
    with watch(path, callback, interval_seconds=OFTEN_SECONDS):
        for _ in range(3):
            pending.append(partial(overwrite, data=b"first "))
            assert [seen.next(), seen.next()] == [MODIFIED, MODIFIED]


@pytest.mark.parametrize(
    ("age_ns", "now_ns", "seconds"),
    [
        (0, 1_700_000_000_500_000_000, 0.02),
        (5_000_000, 1_700_000_000_500_000_000, 0.015),
        (20_000_000, 1_700_000_000_500_000_000, 0),
        (10**18, 1_700_000_000_500_000_000, 0),
        (-(10**12), 1_700_000_000_500_000_000, 0.02),
        (0, 1_700_000_000_000_000_000, 2),
        (500_000_000, 1_700_000_000_500_000_000, 1.5),
        (2_500_000_000, 1_700_000_000_500_000_000, 0),
    ],
)
def test_how_long_a_stamp_may_be_given_out(
    monkeypatch: pytest.MonkeyPatch, age_ns: int, now_ns: int, seconds: float
) -> None:
    """A tick, or two seconds where there are no fractions; a clock that differs must not make it for ever."""
    monkeypatch.setattr(MODULE, "time", SimpleNamespace(time_ns=lambda: now_ns))
    found = MODULE._unsettled_seconds(MODULE._Signature(1, 2, 3, 4, now_ns - age_ns))
    assert found == pytest.approx(seconds)


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
        while handle.is_active:
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


@pytest.mark.usefixtures("unnotified")
def test_a_handle_that_its_callback_refers_to_can_be_dropped(path: Path) -> None:
    """To stop itself the callback must know the handle; that is no reason to run for ever."""
    handles: list[WatchHandle] = []

    def callback(event: ChangeEvent, handles: list[WatchHandle] = handles) -> None:
        handles[0].stop()

    handles.append(watch(path, callback, interval_seconds=NEVER_SECONDS))
    del handles, callback
    gc.collect()
    wait_until_ended()


def test_a_callback_that_raises_is_called_again(
    path: Path, seen: Inbox[ChangeEvent], warnings: Inbox[logging.LogRecord]
) -> None:
    """One bad event must not blind a program for good, nor pass in silence."""

    def callback(event: ChangeEvent) -> None:
        seen.put(event)
        raise ZeroDivisionError("in the callback")

    with watch(path, callback) as handle:
        for _ in range(2):
            overwrite(path)
            assert seen.next() == MODIFIED
            record = warnings.next()
            assert str(path) in record.getMessage()
            assert record.exc_info is not None
            assert isinstance(record.exc_info[1], ZeroDivisionError)
        assert handle.is_active


class Named:
    """Any object that is a path."""

    def __init__(self, path: bytes) -> None:
        self._path = path

    def __fspath__(self) -> bytes:
        return self._path


@pytest.mark.parametrize("kind", [str, os.fsencode, Path, lambda path: Named(os.fsencode(path))])
def test_every_kind_of_path_is_watched(
    path: Path, seen: Inbox[ChangeEvent], kind: Callable[[Path], str | bytes | os.PathLike[str]]
) -> None:
    """And errors name what the caller gave."""
    with watch(kind(path), seen.put, interval_seconds=NEVER_SECONDS):
        overwrite(path)
        assert seen.next() == MODIFIED
    path.unlink()
    with pytest.raises(FileNotFoundError) as raised:
        watch(kind(path), seen.put)
    assert raised.value.filename == os.fspath(kind(path))


def test_a_relative_path_keeps_its_meaning(
    tmp_path: Path, path: Path, seen: Inbox[ChangeEvent], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory that it is relative to is the one of the call."""
    monkeypatch.chdir(tmp_path)
    with watch(path.name, seen.put, interval_seconds=OFTEN_SECONDS):
        monkeypatch.chdir("/")
        overwrite(path)
        assert seen.next() == MODIFIED


def test_a_path_is_taken_as_the_system_takes_it(tmp_path: Path, seen: Inbox[ChangeEvent]) -> None:
    """``link/..`` is where the link's target lies, not where the link does."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    path = tmp_path / "far" / "file"
    path.touch()
    with watch(tmp_path / "link" / ".." / "file", seen.put, interval_seconds=NEVER_SECONDS):
        append(path)
        assert seen.next() == ChangeEvent(0, 5, ChangeKind.MODIFIED)


def test_a_link_is_followed(tmp_path: Path, path: Path, seen: Inbox[ChangeEvent]) -> None:
    """The file is written to in one directory, and the link turned elsewhere in another."""
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "link"
    link.symlink_to(path)
    other = tmp_path / "other"
    other.touch()
    (tmp_path / "links" / "new").symlink_to(other)
    with watch(link, seen.put, interval_seconds=NEVER_SECONDS):
        overwrite(path)
        assert seen.next() == MODIFIED
        (tmp_path / "links" / "new").replace(link)
        assert [seen.next(), seen.next()] == [REMOVED, MODIFIED]


def test_a_name_that_is_not_utf8_can_be_watched(
    tmp_path: Path, seen: Inbox[ChangeEvent], warnings: Inbox[logging.LogRecord]
) -> None:
    """Such names are what bytes are there for; the notifier cannot say them."""
    directory = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(directory)  # noqa: PTH102
    path = Path(os.fsdecode(directory)) / "file"
    path.touch()
    with watch(directory + b"/file", seen.put, interval_seconds=OFTEN_SECONDS):
        assert "no notifications" in warnings.next().getMessage()
        append(path)
        assert seen.next() == ChangeEvent(0, 5, ChangeKind.MODIFIED)


def test_a_notifier_that_fails_is_done_without(
    tmp_path: Path, path: Path, seen: Inbox[ChangeEvent], warnings: Inbox[logging.LogRecord]
) -> None:
    """A neighbour's name is enough to make it fail for good."""
    with watch(path, seen.put, interval_seconds=OFTEN_SECONDS) as handle:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).touch()
        assert "notifications for" in warnings.next().getMessage()
        overwrite(path)
        assert seen.next() == MODIFIED
        assert handle.is_active
    assert warnings.is_empty()


def test_a_path_that_cannot_be_examined_is_not_taken_for_gone(
    tmp_path: Path, seen: Inbox[ChangeEvent], looks: Inbox[Path], warnings: Inbox[logging.LogRecord]
) -> None:
    """REMOVED makes programs close the file; here nobody knows, and it may be back in a moment."""
    (tmp_path / "real").mkdir()
    path = tmp_path / "real" / "file"
    path.touch()
    link = tmp_path / "link"
    new = tmp_path / "new"
    link.symlink_to("real")
    with watch(link / "file", seen.put, interval_seconds=OFTEN_SECONDS):
        new.symlink_to("link")
        new.replace(link)
        assert os.strerror(errno.ELOOP) in warnings.next().getMessage()
        # It is said once, not at every look.
        wait_for_looks(looks)
        new.symlink_to("real")
        new.replace(link)
        append(path)
        assert seen.next() == ChangeEvent(0, 5, ChangeKind.MODIFIED)
    assert warnings.is_empty()


def test_a_missing_file_is_refused(tmp_path: Path, seen: Inbox[ChangeEvent]) -> None:
    """A mistyped name would else be watched in silence for ever."""
    for missing in (tmp_path / "missing", tmp_path / "missing" / "file", ""):
        with pytest.raises(FileNotFoundError):
            watch(missing, seen.put)


def test_what_is_no_regular_file_is_refused(tmp_path: Path, seen: Inbox[ChangeEvent]) -> None:
    """Nothing else can be mapped."""
    with pytest.raises(IsADirectoryError) as raised:
        watch(tmp_path, seen.put)
    assert raised.value.filename == str(tmp_path)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(WatchFailed, match="not a regular file"):
        watch(fifo, seen.put)


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
