"""Telling a callback that a file was changed from outside: by another handle, another process, or by hand.

Two sources are joined. What decides is the file's status: device, inode, size, and the times of the last
change of content and of inode. It is compared at least once an interval, because a store through a mapping
moves the time of change and is told to nobody. Notifications of the file's directory, from the package
``watchfiles``, only make the comparison early. They decide nothing, so one that is lost, doubled, or about a
neighbour does no harm, and a path is watched all the same where the system sends none.
"""

from __future__ import annotations

import atexit
import errno
import importlib
import logging
import math
import os
import re
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

from mmapio import _os
from mmapio.errors import WatchFailed

__all__ = ["ChangeEvent", "ChangeKind", "WatchHandle", "watch"]

logger = logging.getLogger("mmapio")

_Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

#: How often the file's status is compared when nobody says otherwise.
INTERVAL_SECONDS = 0.1

#: The bounds of an interval: below the first it would only burn time.
INTERVAL_SECONDS_MIN, INTERVAL_SECONDS_MAX = 0.001, 86_400

# How often the thread looks for a notification, or whether it should end.
_STEP_MS = 10

# A notification is passed on once a step brought no more of them, or after this time in a busy directory.
_DEBOUNCE_MS = 20

# Kernels before 6.13, and many file systems after it, stamp a change with the time of the last timer tick, at
# most 10 ms ago; twice that, for a timer that is late. Some file systems keep whole seconds, FAT even ones.
_TICK_NS, _COARSE_TICK_NS, _SECOND_NS = 20_000_000, 2_000_000_000, 1_000_000_000

# How long the interpreter's end waits for a callback that does not return.
_EXIT_SECONDS = 5

_REMEDIES = {
    errno.EMFILE: "; stop other watches, or raise the limit on open files or fs.inotify.max_user_instances",
    errno.ENOSPC: "; stop other watches, or raise fs.inotify.max_user_watches",
    errno.EACCES: "; watching a file takes permission to read its directory",
}


class ChangeKind(Enum):
    """What happened to a watched file."""

    MODIFIED = "modified"
    """Its content: written, stored to through a mapping, extended, truncated; or a file is there again."""

    METADATA = "metadata"
    """Its permissions, owner, links or attributes; size and time of modification are as they were."""

    REMOVED = "removed"
    """The path no longer leads to the file: unlinked, renamed, or another file was renamed over it."""


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """One change, or several that happened between two looks at the file.

    `offset` and `len` name what is known of the place, in bytes, else they are None. A file that grew reports
    its old size and the bytes gained; one that shrank reports its new size and 0. Bytes before `offset` may
    have changed as well.
    """

    offset: int | None
    len: int | None
    kind: ChangeKind


class _Signature(NamedTuple):
    """What is compared. Every change of a file moves `changed_ns`, which no program can set."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class _Notifier(Protocol):
    """What is used of ``watchfiles._rust_notify.RustNotify``."""

    def watch(self, debounce_ms: int, step_ms: int, timeout_ms: int, stop_event: object, /) -> object: ...
    def close(self) -> None: ...


class WatchHandle:
    """A watch, as :func:`watch` begins it. It ends with :meth:`stop`, the ``with`` block, or the handle.

    Dropping the last reference ends the watch without waiting: a callback that is running is not cut short.
    A handle that only its own callback refers to is dropped too, by the garbage collector.
    """

    __slots__ = ("__weakref__", "_callback", "_path", "_stopping", "_thread")

    def __init__(
        self, path: str | bytes, callback: Callable[[ChangeEvent], object], dispatcher: _Dispatcher
    ) -> None:
        self._path = path
        self._callback = callback
        self._stopping = False
        dispatcher.handle = weakref.ref(self)
        self._thread = threading.Thread(target=dispatcher.run, name="mmapio-watch", daemon=True)
        self._thread.start()
        _threads.add(self._thread)

    @property
    def is_active(self) -> bool:
        """Whether changes are still reported. False in a forked child: the watch stays with the parent."""
        return not self._stopping and self._thread.is_alive()

    def stop(self) -> None:
        """End the watch and wait for its thread; afterwards no callback runs. The second time does nothing.

        Takes some 10 ms, or as long as a callback that is running takes to return. Called by the callback
        itself it does not wait, and the callback is not called again. Do not call it while holding a lock
        that the callback needs.
        """
        # A plain flag: the lock of an event could be held at the moment of a fork, for ever in the child.
        self._stopping = True
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<WatchHandle {self._path!r} {'active' if self.is_active else 'stopped'}>"


def watch(
    path: _Path,
    callback: Callable[[ChangeEvent], object],
    *,
    interval_seconds: float = INTERVAL_SECONDS,
) -> WatchHandle:
    """Call `callback` with a :class:`ChangeEvent` after each change of the file or directory at `path`.

    No change after the return goes unreported. Changes that follow quickly upon each other may share a
    report, but a report always follows the last. What the system notifies of (writes, truncation,
    attributes, removal) is reported after some 20 to 40 ms; what it does not, such as a store through a
    mapping, at the next look, which takes place every `interval_seconds`. A store is seen when it is the
    first to its page since the page was last written back, so flush between stores that must each be seen;
    in tmpfs, where nothing is written back, when it is the first to the page through its mapping. Where a
    file system keeps times in whole seconds, reports come up to 2 s later.

    The watch is of the path, not of the file that happens to be there. When the file is removed or renamed,
    REMOVED is reported and the watch stays; a file that is there later is reported as MODIFIED. Another file
    renamed over the path, as editors save, is both: REMOVED, then MODIFIED. A mapping made before still
    shows the removed file: on REMOVED close it, on MODIFIED open the path anew. A symbolic link is followed.
    When the path cannot be examined for a reason other than absence, a warning is logged and the watch
    goes on. Of a directory, entries that come, go or are renamed are changes; what is in them is not.

    Callbacks run one after the other on a thread of the watch's own. What one raises is logged (logger
    ``mmapio``), and the watch goes on; changes during a callback are reported after it.

    Costs a thread, an inotify instance, and below 1 % of a processor core; the call itself up to 20 ms (2 s
    with whole seconds) when the file was changed just before. A forked child inherits nothing that runs.

    `interval_seconds` is between 0.001 and 86,400. Raises FileNotFoundError, or what else the system
    answers, when the path cannot be examined, WatchFailed when it is neither a regular file nor a directory,
    when the package ``watchfiles`` is absent, or when the system refuses notifications.
    """
    if not callable(callback):
        raise TypeError(f"the callback must be callable, not {type(callback).__name__}")
    if not INTERVAL_SECONDS_MIN <= interval_seconds <= INTERVAL_SECONDS_MAX:
        raise ValueError(
            f"interval_seconds must be between {INTERVAL_SECONDS_MIN} and {INTERVAL_SECONDS_MAX}, "
            f"not {interval_seconds}"
        )
    shown = os.fspath(path)
    mode, known = _examine(shown)
    kind = stat.S_IFMT(mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise WatchFailed(
            errno.EINVAL, "is neither a regular file nor a directory, so it cannot be watched", shown
        )
    time.sleep(_unsettled_seconds(known))
    # The current directory may be another one by the time of the next look.
    place = Path(os.fsdecode(shown)).absolute()
    notifier = _subscribe(place, shown)
    try:
        return WatchHandle(shown, callback, _Dispatcher(place, kind, known, notifier, interval_seconds))
    except RuntimeError as error:
        if notifier is not None:
            notifier.close()
        raise WatchFailed(errno.EAGAIN, f"cannot start a thread to watch it: {error}", shown) from error


class _Dispatcher:
    """The thread's side of a watch. It knows the handle weakly: that the handle has gone ends the thread."""

    handle: weakref.ref[WatchHandle]

    def __init__(
        self,
        path: Path,
        kind: int,
        known: _Signature,
        notifier: _Notifier | None,
        interval_seconds: float,
    ) -> None:
        self._path = path
        self._kind = kind
        self._known: _Signature | None = known
        self._notifier = notifier
        self._interval_seconds = interval_seconds
        self._trouble: int | None = None

    def run(self) -> None:
        """Look and wait in turn. The first look covers the time before the subscription."""
        try:
            while not self.is_set():
                self._look()
                self._wait()
        finally:
            self._unsubscribe()

    def is_set(self) -> bool:
        """Whether to end. The notifier asks at every step, by this name."""
        handle = self.handle()
        return handle is None or handle._stopping or _leaving.is_set()

    def _wait(self) -> None:
        """Until a notification, the end of the interval, or the end of the watch."""
        if self._notifier is not None:
            try:
                self._notifier.watch(_DEBOUNCE_MS, _STEP_MS, math.ceil(self._interval_seconds * 1000), self)
                return
            except Exception as error:
                # A neighbour whose name is not UTF-8 is enough; the notifier fails from then on.
                logger.warning(
                    "notifications for %s failed, so it is examined every %s s: %s",
                    self._path,
                    self._interval_seconds,
                    error,
                )
                self._unsubscribe()
        self._pause(self._interval_seconds)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.is_set() and (rest := end - time.monotonic()) > 0:
            time.sleep(min(rest, _STEP_MS / 1000))

    def _unsubscribe(self) -> None:
        if self._notifier is not None:
            self._notifier.close()
            self._notifier = None

    def _look(self) -> None:
        """Compare the file's status with what was last reported, and report the difference."""
        try:
            seen = _signature(self._path, self._kind)
        except OSError as error:
            # Neither there nor gone, as far as can be told: what is known stays, and is said once.
            if error.errno != self._trouble:
                logger.warning("a watched file cannot be examined: %s", error)
            self._trouble = error.errno
            return
        self._trouble = None
        if seen == self._known:
            return
        if seen is not None:
            self._pause(_unsettled_seconds(seen))
        # Before the callback: a change that it makes, or that happens while it runs, is the next difference.
        before, self._known = self._known, seen
        for event in _differences(before, seen):
            self._report(event)

    def _report(self, event: ChangeEvent) -> None:
        handle = self.handle()
        if self.is_set() or handle is None:
            return
        callback = handle._callback
        # The callback may be the last to drop the handle.
        del handle
        try:
            callback(event)
        except Exception:
            logger.exception("the callback of a watch of %s failed", self._path)


def _differences(before: _Signature | None, after: _Signature | None) -> Iterator[ChangeEvent]:
    """The events that lead from one status to another, unequal one; None stands for no file."""
    if before is not None and (after is None or after[:2] != before[:2]):
        # A number is given to another file only once the file is gone for good. Whoever has it mapped or open
        # keeps it, so to them no other file looks like theirs.
        yield ChangeEvent(None, None, ChangeKind.REMOVED)
        before = None
    if after is None:
        return
    if before is None:
        yield ChangeEvent(None, None, ChangeKind.MODIFIED)
    elif after.size > before.size:
        yield ChangeEvent(before.size, after.size - before.size, ChangeKind.MODIFIED)
    elif after.size < before.size:
        yield ChangeEvent(after.size, 0, ChangeKind.MODIFIED)
    elif after.modified_ns != before.modified_ns:
        yield ChangeEvent(None, None, ChangeKind.MODIFIED)
    else:
        yield ChangeEvent(None, None, ChangeKind.METADATA)


def _unsettled_seconds(seen: _Signature) -> float:
    """How long a later change could still bear the stamp of this one.

    It would leave the status as it is, and never be noticed. Once that time is over, whatever bears the stamp
    precedes the report, and what follows differs.
    """
    tick_ns = _TICK_NS if seen.changed_ns % _SECOND_NS else _COARSE_TICK_NS
    # A stamp of the future is another machine's, or the clock was set back.
    age_ns = max(0, time.time_ns() - seen.changed_ns)
    return max(0, tick_ns - age_ns) / _SECOND_NS


def _signature(path: Path, kind: int) -> _Signature | None:
    """The status of what is at `path`, None when it is not of this kind. OSError when that cannot be told."""
    try:
        mode, found = _examine(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found if stat.S_IFMT(mode) == kind else None


def _examine(path: _Path) -> tuple[int, _Signature]:
    """The mode of what is at `path`, links followed, and what is compared of it."""
    found = _os.status(path)
    return found.st_mode, _Signature(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )


def _subscribe(path: Path, shown: str | bytes) -> _Notifier | None:
    """Notifications of the directory of `path`; None where its name keeps the package from giving any."""
    try:
        # The package's own `watch` subscribes no sooner than it waits, and logs every change. This class is
        # documented for direct use.
        native: Any = importlib.import_module("watchfiles._rust_notify")
    except ImportError as error:
        raise WatchFailed(
            errno.ENOSYS, f"watching needs the package watchfiles: pip install mmapkv[watch] ({error})", shown
        ) from error
    # The package can poll where there are no notifications. The comparison of the status does that already.
    debug = force_polling = recursive = ignore_permission_denied = False
    try:
        # A link's target may be written to in its own directory, and the link be replaced in this one.
        directories = {str(path.parent.resolve()), str(path.resolve().parent)}
        if path.is_dir():
            directories.add(str(path.resolve()))
        notifier: _Notifier = native.RustNotify(
            sorted(directories), debug, force_polling, 0, recursive, ignore_permission_denied
        )
    except UnicodeEncodeError as error:
        logger.warning("no notifications for %r, so it is examined at intervals only: %s", shown, error)
        return None
    except (OSError, RuntimeError, TypeError, AttributeError) as error:
        # The package keeps the system's error number in the text alone.
        number = re.search(r"\(os error (\d+)\)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise WatchFailed(
            code, f"cannot be notified of changes: {error}{_REMEDIES.get(code, '')}", shown
        ) from error
    return notifier


_leaving = threading.Event()
# Entries go when a thread has ended and its handle is gone.
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _end_at_exit() -> None:
    # A thread that is inside the notifier when the interpreter is torn down aborts the process.
    _leaving.set()
    for thread in list(_threads):
        thread.join(_EXIT_SECONDS)
