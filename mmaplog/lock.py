"""LOCK: who has the log open. Locks on single bytes of a file that is never unlinked.

Open-file-description locks, so the kernel lets go of them however a process ends, and two handles of one
process exclude each other. The writer's name is kept in the file too, only to be shown in errors.
"""

from __future__ import annotations

import errno
import os

from mmapio import _fork, _os
from mmapio.errors import Closed
from mmaplog.errors import Locked

NAME = "LOCK"
# The bytes, by what holding one means.
INITIALISING = 0
WRITER = 1
ATTACHED = 2
CARE = 3
# The first of as many bytes as there are numbers. Who looks at a log as it was below one shares its byte.
PAST = 1 << 32
# Where the writer leaves its name; far from the bytes that are locked.
OWNER_OFFSET = 64
OWNER_SIZE = 64

_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class LockFile:
    """The locks that one handle of a log holds; :meth:`close` or the end of the process drops them all."""

    def __init__(self, directory: _os.Descriptor, path: str, *, create: bool) -> None:
        self._path = path
        self._directory = directory
        self._writes = False
        self._inherited = False
        self.writable = True
        try:
            opened = _os.open_file(NAME, True, create=create, follow=False, directory=directory)
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT,
                "the file is missing; open the log once with mode 'w', which makes it again",
                directory.locate(NAME),
            ) from None
        except OSError as error:
            if create or error.errno not in _READ_ONLY:
                raise
            opened = _os.open_file(NAME, False, follow=False, directory=directory)
            self.writable = False
        self._opened: _os.Descriptor | None = opened
        _fork.register(self)

    def claim_writer(self, *, shared: bool = False) -> None:
        """Become the one writer, or one of those who share, or raise Locked naming the process that is."""
        if not _os.lock_byte(self._file, WRITER, not shared):
            raise Locked(
                f"open for writing by {self._owner()}; close it there, or open with mode 'r', "
                "or have every writer share it",
                self._path,
            )
        self._writes = True
        name = f"process {os.getpid()}".encode().ljust(OWNER_SIZE, b"\0")
        _os.write_at(self._file, name, OWNER_OFFSET)

    def has_writer(self) -> bool:
        """Whether another handle is the writer."""
        return _os.byte_is_locked(self._file, WRITER)

    def release_writer(self) -> None:
        """Stop being the writer while staying attached."""
        self._writes = False
        _os.unlock_byte(self._file, WRITER)

    def begin(self) -> None:
        """Wait until no other handle is being opened or closed.

        A file that is open read-only is waited for, not held against others.
        """
        _os.lock_byte(self._file, INITIALISING, self.writable, wait=True)

    def end(self) -> None:
        """Let the next handle be opened or closed."""
        _os.unlock_byte(self._file, INITIALISING)

    def begin_care(self) -> None:
        """Wait until no other process truncates or compacts, and keep them from it."""
        _os.lock_byte(self._file, CARE, True, wait=True)

    def try_care(self) -> bool:
        """The same without waiting: whether nobody did."""
        return _os.lock_byte(self._file, CARE, True)

    def end_care(self) -> None:
        """Let others truncate and compact again."""
        _os.unlock_byte(self._file, CARE)

    def hold_past(self, seq: int) -> None:
        """Tell those who compact that the log is looked at as it was below this number."""
        _os.lock_byte(self._file, PAST + seq, False, wait=True)

    def let_past(self, seq: int) -> None:
        """Stop telling that."""
        _os.unlock_byte(self._file, PAST + seq)

    def oldest_past(self, stop: int) -> int:
        """The lowest number below `stop` that another handle holds, or `stop`."""
        if stop == 0 or not _os.byte_is_locked(self._file, PAST, stop):
            return stop
        low, high = 0, stop
        # Up to `low` nobody holds any; one is held below `high`, or nothing below `stop` is.
        while low < high:
            middle = (low + high) // 2
            if _os.byte_is_locked(self._file, PAST + low, middle + 1 - low):
                high = middle
            else:
                low = middle + 1
        return low

    def attach(self) -> bool:
        """Be counted among those who have the log open; True when there is nobody else.

        Between begin and end.
        """
        alone = self.alone()
        _os.lock_byte(self._file, ATTACHED, False, wait=True)
        return alone

    def detach(self) -> None:
        """No longer be counted."""
        _os.unlock_byte(self._file, ATTACHED)

    def alone(self) -> bool:
        """Whether no other handle has the log open. Between begin and end."""
        return not _os.byte_is_locked(self._file, ATTACHED)

    def close(self) -> None:
        """Drop every lock. The second time does nothing."""
        self._opened = None
        self._inherited = False

    def _after_fork_in_child(self) -> None:
        # Closing the child's copy leaves the parent's locks alone; unlocking would take them away. Dropping
        # the reference is not enough: a thread that was at a lock just then left one.
        opened = self._opened
        inherited = (self._inherited or opened is not None) and not self._writes
        if opened is not None:
            opened.close_in_child()
        self.close()
        self._inherited = inherited

    @property
    def held(self) -> _os.Descriptor:
        """What holds the locks; they are dropped with the last reference to it, whoever closes this."""
        return self._file

    @property
    def _file(self) -> _os.Descriptor:
        if self._opened is None and self._inherited:
            # A reader in a forked child reads without a lock. The first that it needs makes it one more
            # reader, whom the parent's end does not detach.
            opened = _os.open_file(NAME, self.writable, follow=False, directory=self._directory)
            _os.lock_byte(opened, ATTACHED, False)
            self._opened = opened
        if self._opened is None:
            raise Closed(
                errno.EBADF,
                "the log is closed, or belongs to the parent of a fork; open it again",
                self._path,
            )
        return self._opened

    def _owner(self) -> str:
        raw = _os.read_at(self._file, OWNER_SIZE, OWNER_OFFSET).rstrip(b"\0").decode("ascii", "replace")
        if not raw:
            return "another process"
        return f"{raw}, which is this one" if raw == f"process {os.getpid()}" else raw
