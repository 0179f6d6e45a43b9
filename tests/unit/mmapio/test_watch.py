"""A watch reports every change of its file, and none of any other."""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmapio.watch import ChangeEvent, ChangeKind, watch
from tests.unit.mmapio.processes import run_python
from tests.unit.mmapio.watching import (
    METADATA,
    MODIFIED,
    NEVER_SECONDS,
    OFTEN_SECONDS,
    REMOVED,
    SIZE,
    Inbox,
    append,
    nothing_left,
    overwrite,
    save,
    store,
)

# The package may offer the function of the same name.
MODULE: Any = sys.modules["mmapio.watch"]


class Warnings(logging.Handler):
    """What is logged, for a test to wait for."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: Inbox[logging.LogRecord] = Inbox()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.put(record)


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

    def look(path: Path, kind: int) -> Any:
        try:
            return examine(path, kind)
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


def allocate(path: Path) -> None:
    with path.open("r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, 3 * SIZE)


def link(path: Path) -> None:
    path.with_name("another name").hardlink_to(path)


def read_times(path: Path) -> None:
    """As a reader would leave them, were its accesses recorded."""
    os.utime(path, ns=(5, path.stat().st_mtime_ns))


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
    path: Path,
    seen: Inbox[ChangeEvent],
    looks: Inbox[Path],
    change: Callable[[Path], object],
    expected: list[ChangeEvent],
) -> None:
    """Without the notifications a change would be reported an interval late."""
    with watch(path, seen.put, interval_seconds=NEVER_SECONDS):
        # The one that a watch begins with.
        looks.next()
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
from tests.unit.mmapio.watching import {change.__name__} as change
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


def test_a_link_is_followed(tmp_path: Path, path: Path, seen: Inbox[ChangeEvent], looks: Inbox[Path]) -> None:
    """The file is written to in one directory, and the link turned elsewhere in another."""
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "link"
    link.symlink_to(path)
    other = tmp_path / "other"
    other.touch()
    (tmp_path / "links" / "new").symlink_to(other)
    with watch(link, seen.put, interval_seconds=NEVER_SECONDS):
        looks.next()
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


def test_a_directory_tells_of_its_entries(tmp_path: Path, seen: Inbox[ChangeEvent]) -> None:
    """Those that come, go and are renamed; and a file in its place is none of it."""
    directory = tmp_path / "watched"
    directory.mkdir()
    with watch(directory, seen.put, interval_seconds=NEVER_SECONDS):
        for change in (
            lambda: (directory / "new").touch(),
            lambda: (directory / "new").rename(directory / "other"),
            lambda: (directory / "other").unlink(),
        ):
            change()
            assert seen.next().kind is ChangeKind.MODIFIED
        directory.rmdir()
        assert seen.next() == REMOVED
        directory.touch()
        directory.unlink()
        directory.mkdir()
        assert seen.next() == MODIFIED
    assert seen.is_empty()
