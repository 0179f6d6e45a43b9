"""Named consumers: readers that go on where they were, whatever became of them."""

from __future__ import annotations

import dataclasses
import operator
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, SupportsIndex

from mmapio import _os
from mmaplog import bookmark
from mmaplog import bookmark_format as layout
from mmaplog.bookmark import Bookmark
from mmaplog.bookmark_format import Header, Place
from mmaplog.errors import TooOld
from mmaplog.follow import deadline_after
from mmaplog.subscription import SLICE_SECONDS, Subscription, checked_choice

if TYPE_CHECKING:
    from mmaplog.follow import Follower
    from mmaplog.log import Log
    from mmaplog.replay import Entry


class Consumer(Subscription):
    """Reads a log from where it last committed on, under a name. Made by ``Log.consumer``.

    Iterate over it, also with ``async for``, or call :meth:`poll` and :meth:`wait`; when `timeout` is not
    None an iteration ends when no record came for so many seconds, and can be gone on with. What was handed
    out and not committed is handed out again after a crash: each entry at least once. One handle at a time
    holds a name, in all processes, and the kernel takes it back when its process ends. For one thread or task
    at a time.

    A commit survives the end of the process, and a power cut when it was durable, or followed by
    :meth:`flush` or :meth:`close`.
    """

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
        super().__init__(log, mark, auto_commit=auto_commit, too_old=too_old, timeout=timeout, verify=verify)
        self._follower: Follower | None = None
        self._place = mark.load()
        # Whether that is what the file says, and whether it is synced.
        self._stored = True
        self._synced = False
        # Before the question whether numbers were used again, so that what happens meanwhile is noticed next.
        epoch = log.epoch
        stored = self._place
        agreed = bookmark.agreement(log, mark.file_id, stored)
        self._position = bookmark.recalled(log, stored, agreed, stored.seq)
        if agreed is not None:
            # Whatever is stored from now on is newer than that, though it were less.
            self._place = dataclasses.replace(stored, turn=agreed.turn)
        if (stored.seq, stored.epoch, stored.incarnation) != (
            self._position,
            epoch,
            bookmark.incarnation_of(log),
        ):
            self._store(self._place_now(self._position, epoch))
        if self._position < stored.seq:
            self._say_used_again(stored.seq, self._position)

    @property
    def position(self) -> int:
        """The number of the entry that is handed out next."""
        return self._position

    @property
    def committed(self) -> int:
        """Everything below this number was processed."""
        return self._place.seq

    def lag(self) -> int:
        """How many numbers of the log are not committed. Raises Closed."""
        self._check()
        return max(self._log.committed - self._place.seq, 0)

    def poll(self) -> Entry | None:
        """The next entry, or None when there is none yet.

        With ``auto_commit`` it commits what was handed out before. Raises TooOld, CorruptionError,
        MappingFault, Closed.
        """
        self._check()
        if self._auto_commit:
            self._commit(self._position, durable=False)
        while True:
            try:
                follower = self._following()
                # Whatever ends this early, one that may be ahead of the position is not used again.
                self._follower = None
                entry = follower.poll()
            except IndexError as error:
                self._go_round(error)
                continue
            if entry is not None:
                self._position = entry.seq + 1
            self._follower = follower
            return entry

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until there is a next entry, at most `timeout` seconds. True when there is.

        Sleeps as ``Log.follow`` does. Raises TooOld, Closed.
        """
        self._check()
        if self._auto_commit:
            self._commit(self._position, durable=False)
        deadline = deadline_after(timeout)
        while True:
            left = SLICE_SECONDS if deadline is None else min(deadline - time.monotonic(), SLICE_SECONDS)
            try:
                if self._following().wait(max(left, 0)):
                    return True
            except IndexError as error:
                self._go_round(error)
                continue
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def commit(self, seq: SupportsIndex | None = None, *, durable: bool = False) -> None:
        """Say that everything below `seq` was processed; by default all that was handed out.

        Less than was committed takes that back. Costs some microseconds; with `durable` a sync, and in a
        handle that writes the log one of the log where it lacks. Raises ValueError for more than was handed
        out, FlushFailed, Poisoned, MappingFault, Closed.
        """
        self._check()
        wanted = self._position if seq is None else operator.index(seq)
        if not 0 <= wanted <= self._position:
            raise ValueError(
                f"cannot commit {wanted}: {self.name!r} handed out what is below {self._position}, no more"
            )
        self._commit(wanted, durable=durable)

    def flush(self) -> None:
        """Make the committed position durable.

        Costs a sync where there is something to sync. Raises what :meth:`commit` does.
        """
        self._check()
        self._commit(self._place.seq, durable=True)

    def seek(self, seq: SupportsIndex) -> None:
        """Go on at `seq`, earlier or later, without committing it.

        Raises IndexError when that is not in the log, Closed.
        """
        self._check()
        wanted = operator.index(seq)
        # It is a number of the log as it is now.
        self._catch_up()
        first, committed = self._log.first_seq, self._log.committed
        if not first <= wanted <= committed:
            raise IndexError(f"record {wanted} is not in the log, which holds [{first}, {committed})")
        self._move(wanted)

    def close(self) -> None:
        """Make the committed position durable and let go of the name; the second time does nothing.

        Raises FlushFailed; the consumer is closed all the same.
        """
        closed, self._closed = self._closed, True
        try:
            self._follower = None
            if closed or self._forked:
                return
            if not self._log.closed:
                if self._log.flushes_on_close:
                    self._sync_log(self._place.seq)
                self._store_durably(self._place_now(self._place.seq))
            elif not self._synced:
                self._store_durably(self._place.moved())
        finally:
            if not self._forked:
                # Also when the first time was cut short.
                self._mark.close()

    def _commit(self, seq: int, *, durable: bool) -> None:
        if durable:
            self._sync_log(seq)
            self._store_durably(self._place_now(seq))
        elif seq != self._place.seq or not self._stored:
            self._store(self._place_now(seq))

    def _store_durably(self, place: Place) -> None:
        if not self._synced or place != self._place.moved():
            self._store(place, durable=True)

    def _store(self, place: Place, *, durable: bool = False) -> None:
        # Whatever cuts this short: no two that differ have one turn, and what may not be synced is not taken
        # for it.
        self._stored = self._synced = False
        self._place = dataclasses.replace(self._place, turn=place.turn)
        if durable:
            self._mark.store_durably(place)
        else:
            self._mark.store(place)
        self._place = place
        self._stored, self._synced = True, durable

    def _place_now(self, seq: int, epoch: int | None = None) -> Place:
        # By default as of the epoch in which it was read.
        # What is durable is asked for before the rest: it must not cover what comes later.
        durable = self._log.durable
        return self._place.moved(
            seq=seq,
            next=seq,
            durable=durable,
            incarnation=bookmark.incarnation_of(self._log),
            epoch=self._place.epoch if epoch is None else epoch,
        )

    def _sync_log(self, seq: int) -> None:
        # A place behind records that a power cut takes is worth nothing after it. Only a writer can see to
        # that.
        if self._log.writable and self._log.durable < seq:
            self._log.flush()

    def _move(self, seq: int) -> None:
        self._follower = None
        self._position = seq

    def _go_round(self, error: IndexError) -> None:
        # Unless the log was cut behind what was read, which looking anew takes care of.
        if self._log.epoch == self._place.epoch:
            if not isinstance(error, TooOld):
                raise error
            self._move(self._pass_over(error, self._position))

    def _following(self) -> Follower:
        self._catch_up()
        if self._follower is None:
            self._follower = self._log.follow(self._position, verify=self._verify)
        return self._follower

    def _catch_up(self) -> None:
        # The log may have been cut while it was read. Whatever ends this early, a number of before never
        # stands beside the newer epoch.
        epoch, before, place = self._log.epoch, self._position, self._place
        if epoch == place.epoch:
            return
        resumed = self._log.resume(place.epoch, before)
        self._move(resumed)
        self._store(self._place_now(self._log.resume(place.epoch, place.seq), epoch))
        if resumed < before:
            self._say_used_again(before, resumed)


@dataclass(frozen=True)
class ConsumerInfo:
    """What ``Log.consumers`` tells of a consumer or group.

    `kind` is "consumer" or "group"; `committed` the number below which it needs nothing any more; `holder`
    who has it open, in words, or None.
    """

    name: str
    kind: str
    committed: int
    holder: str | None


def open_consumer(
    log: Log,
    name: str,
    *,
    start: SupportsIndex | None,
    auto_commit: bool,
    too_old: str,
    timeout: float | None,
    verify: bool,
) -> Consumer:
    """What ``Log.consumer`` does."""
    checked_choice(too_old)
    begin = None if start is None else operator.index(start)
    mark = bookmark.open_bookmark(log, name, layout.KIND_CONSUMER, begin, shared=False)
    try:
        made = Consumer(log, mark, auto_commit=auto_commit, too_old=too_old, timeout=timeout, verify=verify)
        mark.sign(f"process {os.getpid()}")
    except BaseException:
        mark.close()
        raise
    return made


class Found(NamedTuple):
    """The file of a consumer or group, and how far it has come."""

    name: str
    opened: _os.Descriptor
    header: Header
    place: Place
    committed: int


def places(log: Log) -> Iterator[Found]:
    """The file of every consumer and group of a log, by name. Costs reading each.

    Raises FormatError and CorruptionError for a file that cannot be understood, Closed.
    """
    directory = log.segments.directory
    log.committed  # noqa: B018 - raises what stands in the way
    for file_name in sorted(_os.list_directory(directory)):
        name = layout.name_of(file_name)
        if name is None:
            continue
        try:
            opened = _os.open_file(file_name, False, follow=False, directory=directory)
        except FileNotFoundError:
            continue  # removed meanwhile
        header = bookmark.read_header(log, opened)
        place = bookmark.read_place(opened, header)
        agreed = bookmark.agreement(log, header.file_id, place)
        committed = bookmark.recalled(log, place, agreed, place.seq)
        yield Found(name, opened, header, place, committed)


def consumers(log: Log) -> list[ConsumerInfo]:
    """Every consumer and group of a log, by name. Costs and raises what :func:`places` does."""
    return [
        ConsumerInfo(
            each.name, bookmark.KINDS[each.header.kind], each.committed, bookmark.holder(each.opened)
        )
        for each in places(log)
    ]


def slowest(log: Log) -> int | None:
    """The least number that a consumer or group of a log has still to process; None when there are none.

    Records below it may go. Raises what :func:`places` does.
    """
    return min((each.committed for each in places(log)), default=None)


def remove_consumer(log: Log, name: str) -> None:
    """Remove a consumer or group and its position, durably.

    Raises FileNotFoundError when there is none, Locked (naming who holds it), TypeError and ValueError for
    what cannot be a name, PermissionError.
    """
    file_name = layout.checked_name(name) + layout.SUFFIX
    directory = log.segments.directory
    log.committed  # noqa: B018 - raises what stands in the way
    while True:
        # For writing, to hold it; whatever it contains.
        opened = _os.open_file(file_name, True, follow=False, directory=directory)
        bookmark.hold(log, name, opened, shared=False)
        if bookmark.is_named(directory, file_name, opened):
            break
    _os.remove_file(directory, file_name)
    _os.sync(directory)
