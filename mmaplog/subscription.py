"""What a consumer and a member of a group have in common: entries handed out, one after the other."""

from __future__ import annotations

import errno
import logging
from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mmapio import _fork
from mmapio.errors import Closed
from mmaplog.bookmark import Bookmark
from mmaplog.errors import TooOld
from mmaplog.follow import deadline_after, wait_in_thread

if TYPE_CHECKING:
    from mmaplog.log import Log
    from mmaplog.replay import Entry

logger = logging.getLogger("mmaplog")

RAISE = "raise"
SKIP = "skip"
# Who waits looks this often for what nobody tells him of: a log that was cut, a member that died.
SLICE_SECONDS = 0.5


class Subscription(ABC):
    """Hands out the entries of a log, and remembers in a file of the log what was processed."""

    def __init__(
        self,
        log: Log,
        mark: Bookmark,
        *,
        auto_commit: bool,
        too_old: str,
        timeout: float | None,
        verify: bool,
    ) -> None:
        deadline_after(timeout)
        self._log = log
        self._mark = mark
        self._auto_commit = auto_commit
        self._too_old = too_old
        self._verify = verify
        self._closed = False
        self._forked = False
        self.timeout = timeout
        _fork.register(self)

    @property
    def name(self) -> str:
        """The name, as it was given."""
        return self._mark.name

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._closed

    @abstractmethod
    def poll(self) -> Entry | None:
        """The next entry, or None when there is none now."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until there is an entry to hand out, at most `timeout` seconds. True when there is."""

    @abstractmethod
    def close(self) -> None:
        """Make the place durable and let go of it."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Entry:
        entry = self.poll()
        while entry is None:
            if not self.wait(self.timeout):
                raise StopIteration
            entry = self.poll()
        return entry

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Entry:
        entry = self._at_hand()
        while entry is None:
            if not await wait_in_thread(self, self.timeout):
                raise StopAsyncIteration
            entry = self._at_hand()
        return entry

    def _at_hand(self) -> Entry | None:
        # The next entry, when it can be had without waiting for another process.
        return self.poll()

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.name!r} of {self._log.path!r}{' closed' if self._closed else ''}>"
        )

    def __reduce__(self) -> str:
        raise TypeError(f"a {type(self).__name__} cannot be pickled or copied; open it by its name again")

    def _check(self) -> None:
        if self._forked:
            raise Closed(
                errno.EBADF,
                f"{self.name!r} was inherited by fork and belongs to the parent; open the log and it again",
                self._mark.path,
            )
        if self._closed:
            raise Closed(errno.EBADF, f"{self.name!r} is closed", self._mark.path)

    def _pass_over(self, error: TooOld, seq: int) -> int:
        # The number of the first record that is left, when that is what the option says.
        if self._too_old == RAISE:
            raise error
        first = self._log.first_seq
        logger.warning(
            "%s: %r goes on at record %d: records from %d on were dropped from the log before it read them",
            self._log.path,
            self.name,
            first,
            seq,
        )
        return first

    def _say_used_again(self, seq: int, resumed: int) -> None:
        logger.warning(
            "%s: %r goes on at record %d instead of %d: the log lost records from there on, or cannot tell "
            "that it did not",
            self._log.path,
            self.name,
            resumed,
            seq,
        )

    def _after_fork_in_child(self) -> None:
        self._forked = True


def checked_choice(too_old: str) -> str:
    """What to do about records that were dropped. Raises ValueError."""
    if too_old not in (RAISE, SKIP):
        raise ValueError(f"too_old must be {RAISE!r} or {SKIP!r}, not {too_old!r}")
    return too_old
