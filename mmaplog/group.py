"""Groups: several processes read one log, each entry going to one of them."""

from __future__ import annotations

import dataclasses
import errno
import operator
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsIndex, TypeVar

from mmapio import SharedMutex, _os
from mmaplog import bookmark, claims
from mmaplog import bookmark_format as layout
from mmaplog.bookmark import Bookmark
from mmaplog.bookmark_format import Place
from mmaplog.errors import LogError, TooOld
from mmaplog.follow import deadline_after
from mmaplog.subscription import SLICE_SECONDS, Subscription, checked_choice

if TYPE_CHECKING:
    from mmaplog.follow import Follower
    from mmaplog.log import Log
    from mmaplog.replay import Entry, Replay

T = TypeVar("T")

BATCH_MAX = 1 << 32


@dataclass(slots=True)
class _Hand:
    # A claim of this member: what is below `given` was handed out.
    at: int
    stop: int
    given: int


class GroupMember(Subscription):
    """Reads a log with the other members of a group: no two get the same entry. Made by ``Log.group``.

    A member takes the next entries, `batch` at a time, hands them out, and is told by :meth:`commit` which
    were processed. When it is closed or its process dies, what it had not committed goes to the member that
    takes next: each entry at least once. A member that lives keeps what it took, however long it takes.
    Entries of one member come in order, but for those of members that died, which come when they are found.

    Iterate over it, also with ``async for``, or call :meth:`poll` and :meth:`wait`; `timeout` is as of a
    consumer. For one thread or task at a time: each thread opens a member of its own. A commit survives what
    one of a consumer does. Linux only.
    """

    def __init__(
        self,
        log: Log,
        mark: Bookmark,
        slot: int,
        batch: int,
        *,
        auto_commit: bool,
        too_old: str,
        timeout: float | None,
        verify: bool,
    ) -> None:
        super().__init__(log, mark, auto_commit=auto_commit, too_old=too_old, timeout=timeout, verify=verify)
        self._slot = slot
        self._batch = batch
        self._mutex = SharedMutex(mark.file, layout.MUTEX_OFFSET)
        # In the order in which they are handed out.
        self._hands: list[_Hand] = []
        self._reached = 0
        # Of the log, when this member last looked at the group.
        self._epoch = -1
        # The first number that nobody took, then.
        self._following = 0
        # Numbers [from, to), and what reads them.
        self._replay: tuple[int, int, Replay] | None = None
        self._bell: Follower | None = None
        # Whoever had this number before is gone, for this member has its lock.
        self._change(lambda place: claims.release(place, slot))

    @property
    def committed(self) -> int:
        """Everything below this number was processed, by whichever member. Raises Closed."""
        self._check()
        return self._change(lambda place: place.seq)

    @property
    def claims(self) -> list[range]:
        """The numbers that this member took and has not committed. Raises Closed."""
        self._check()
        self._change(lambda _: None)
        return [range(each.at, each.stop) for each in self._hands]

    def lag(self) -> int:
        """How many numbers of the log are not known to be processed, from the first such on.

        Raises Closed.
        """
        return max(self._log.committed - self.committed, 0)

    def poll(self) -> Entry | None:
        """The next entry for this member, or None when there is none now.

        Takes entries when it has none left. With ``auto_commit`` it commits what was handed out before.
        Raises TooOld, CorruptionError, LogError when the group's table is full, MappingFault, Closed.
        """
        self._check()
        if self._auto_commit:
            self._commit(None, durable=False)
        while True:
            entry = self._from_hand()
            if entry is not None:
                return entry
            hand = self._hand()
            if hand is None:
                if not self._take():
                    return None
            elif hand.stop > self._log.committed:
                return None

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until there are entries for this member, at most `timeout` seconds, and take them.

        True when there are some. Looks for what dead members left every half second. Raises what
        :meth:`poll` does.
        """
        self._check()
        if self._auto_commit:
            self._commit(None, durable=False)
        deadline = deadline_after(timeout)
        while self._hand() is None and not self._take():
            left = SLICE_SECONDS if deadline is None else min(deadline - time.monotonic(), SLICE_SECONDS)
            if left <= 0:
                return False
            self._sleep(left)
        return True

    def commit(self, seq: SupportsIndex | None = None, *, durable: bool = False) -> None:
        """Say that this member's entries below `seq` were processed; by default all that it was handed.

        Costs some ten microseconds, and the mutex of the group; with `durable` a sync, while which no member
        takes or commits. Raises ValueError for more than was handed out, FlushFailed, Poisoned, MappingFault,
        Closed.
        """
        self._check()
        wanted = None if seq is None else operator.index(seq)
        if wanted is not None and not 0 <= wanted <= self._reached:
            raise ValueError(
                f"cannot commit {wanted}: {self.name!r} handed this member what is below {self._reached}"
            )
        self._commit(wanted, durable=durable)

    def flush(self) -> None:
        """Make what all members committed durable. Costs a sync. Raises what :meth:`commit` does."""
        self._check()
        self._sync_log()
        self._change(lambda _: None, durable=True)

    def close(self) -> None:
        """Leave the group, and what was not committed to the others; the second time does nothing.

        What was committed is made durable. Raises FlushFailed; the member is closed all the same.
        """
        closed, self._closed = self._closed, True
        try:
            self._replay = self._bell = None
            if closed or self._forked:
                return
            if not self._log.closed and self._log.flushes_on_close:
                self._sync_log()
            self._change(lambda place: claims.release(place, self._slot), durable=True)
        finally:
            if not self._forked:
                # Also when the first time was cut short.
                self._mark.close()

    def _commit(self, seq: int | None, *, durable: bool) -> None:
        if durable:
            self._sync_log()
        elif not any(each.given > each.at for each in self._hands):
            return

        def change(place: Place) -> None:
            done = {each.stop: each.given if seq is None else min(each.given, seq) for each in self._hands}
            for claim in place.claims:
                if claim.member == self._slot:
                    claim.at = max(claim.at, done[claim.stop])

        self._change(change, durable=durable)

    def _sync_log(self) -> None:
        # A place behind records that a power cut takes is worth nothing after it. Only a writer can see to
        # that.
        if self._log.writable and self._log.durable < self._log.committed:
            self._log.flush()

    def _at_hand(self) -> Entry | None:
        self._check()
        # Whoever has the mutex may be syncing.
        if self._auto_commit and any(each.given > each.at for each in self._hands):
            return None
        return self._from_hand()

    def _hand(self) -> _Hand | None:
        # The claim that has something to hand out.
        return next((each for each in self._hands if each.given < each.stop), None)

    def _from_hand(self) -> Entry | None:
        hand = self._hand()
        if hand is not None and self._log.epoch != self._epoch:
            # The log was cut, perhaps where this member was about to read.
            self._change(lambda _: None)
            hand = self._hand()
        if hand is None or hand.stop > self._log.committed:
            return None
        try:
            # One that was made for fewer numbers ends too early.
            if self._replay is None or self._replay[:2] != (hand.given, hand.stop):
                if hand.given < self._log.first_seq:
                    raise TooOld(f"record {hand.given} was dropped from the log", self._log.path)
                made = self._log.replay(hand.given, hand.stop, verify=self._verify)
                self._replay = hand.given, hand.stop, made
            # Whatever ends this early, one that may be ahead of what was handed out is not used again.
            replay, self._replay = self._replay[2], None
            entry = next(replay, None)
            if self._log.epoch != self._epoch:
                # Cut meanwhile: perhaps what was read is not in it any more.
                return None
        except IndexError as error:
            # Unless the log was cut since it was looked at, which who looks again sees.
            if self._log.epoch == self._epoch:
                if not isinstance(error, TooOld):
                    raise
                hand.given = min(self._pass_over(error, hand.given), hand.stop)
            return None
        # Numbers that compaction left out are passed over.
        given = hand.stop if entry is None else entry.seq + 1
        reached = max(self._reached, given)
        # No call from here on: behind one the handler of a signal may raise, and the entry is handed out.
        hand.given = given
        self._replay = None if entry is None else (given, hand.stop, replay)
        self._reached = reached
        return entry

    def _take(self) -> bool:
        def change(place: Place) -> tuple[bool, int]:
            if claims.take_over(place, self._slot, self._batch, self._is_gone):
                return True, place.next
            if place.next < self._log.first_seq:
                return False, place.next
            return claims.take_next(place, self._slot, self._batch, self._log.committed), place.next

        while True:
            try:
                found, following = self._change(change)
            except OverflowError:
                raise LogError(
                    errno.ENOSPC,
                    f"the members of {self.name!r} have {layout.CLAIMS_MAX} ranges of entries that are not "
                    "committed; commit",
                    self._mark.path,
                ) from None
            if not found and following < self._log.first_seq:
                self._skip(following)
                continue
            self._following = following
            # Or an earlier call had, and was cut short before it said so.
            return found or self._hand() is not None

    def _sleep(self, seconds: float) -> None:
        # Until there is an entry that nobody took, or somebody may have died.
        try:
            if self._bell is None or self._bell.seq != self._following:
                self._bell = self._log.follow(self._following, verify=self._verify)
            self._bell.wait(seconds)
        except IndexError:
            # Cut meanwhile, at one end or the other. Who looks next sees it.
            self._bell = None

    def _skip(self, seq: int) -> None:
        error = TooOld(f"record {seq} was dropped from the log before the group read it", self._log.path)
        first = self._pass_over(error, seq)

        def change(place: Place) -> None:
            place.next = max(place.next, first)

        self._change(change)

    def _is_gone(self, member: int) -> bool:
        return member == layout.NOBODY or not _os.byte_is_locked(
            self._mark.lock, layout.FIRST_MEMBER + member
        )

    def _change(self, change: Callable[[Place], T], *, durable: bool = False) -> T:
        # Everything that is looked at or changed in the file is so under the mutex, and stored in one step.
        lost: tuple[int, int] | None = None
        epoch = self._epoch
        with self._mutex:
            if self._mutex.owner_died:
                # What it had not stored to its end does not verify. What it had is whole, but for the sync.
                self._mark.settle()
                self._mutex.mark_consistent()
            stored = self._mark.load()
            place = stored.moved(claims=list(map(dataclasses.replace, stored.claims)))
            if not self._log.closed:
                before = place.next
                epoch = self._bring_up(place, stored)
                lost = (before, place.next) if place.next < before else None
                place.durable = self._log.durable
            self._match(place)
            result = change(place)
            claims.settle(place)
            if durable:
                self._mark.store_durably(place)
            elif _told(place) != _told(stored):
                self._mark.store(place)
            self._match(place)
            if epoch != self._epoch:
                # It would go on in what was cut off, which stays mapped. Until all this is done, who looks
                # next looks at the group again.
                self._replay = None
                self._epoch = epoch
        if lost is not None:
            self._say_used_again(*lost)
        return result

    def _bring_up(self, place: Place, stored: Place) -> int:
        # To the log as it is, of whose epoch: it may have been cut, or recovered.
        epoch, incarnation = self._log.epoch, bookmark.incarnation_of(self._log)
        if (place.epoch, place.incarnation) != (epoch, incarnation):
            agreed = bookmark.agreement(self._log, self._mark.file_id, stored)
            resumed = bookmark.recalled(self._log, place, agreed, place.next)
            if resumed < place.next:
                claims.cut(place, resumed)
            if agreed is not None:
                claims.pass_below(place, agreed.seq)
                # Newer than that, whatever it says.
                place.turn = max(place.turn, agreed.turn + 1)
            place.epoch, place.incarnation = epoch, incarnation
        return epoch

    def _match(self, place: Place) -> None:
        # The file has the last word on what this member has: a change may have been cut short after it was
        # stored.
        hands: list[tuple[int, _Hand]] = []
        for claim in place.claims:
            if claim.member == self._slot:
                for order, hand in enumerate(self._hands):
                    if hand.at < claim.stop and claim.at < hand.stop:
                        given = min(max(hand.given, claim.at), claim.stop)
                        hands.append((order, _Hand(claim.at, claim.stop, given)))
                        break
                else:
                    hands.append((len(self._hands), _Hand(claim.at, claim.stop, claim.at)))
        self._hands = [hand for _, hand in sorted(hands, key=lambda each: each[0])]


def _told(place: Place) -> tuple[object, ...]:
    # What is worth storing.
    return place.seq, place.next, place.epoch, place.incarnation, place.claims


def open_member(
    log: Log,
    name: str,
    *,
    batch: SupportsIndex,
    start: SupportsIndex | None,
    auto_commit: bool,
    too_old: str,
    timeout: float | None,
    verify: bool,
) -> GroupMember:
    """What ``Log.group`` does."""
    checked_choice(too_old)
    count = operator.index(batch)
    if not 1 <= count <= BATCH_MAX:
        raise ValueError(f"a batch must be from 1 to {BATCH_MAX} entries, not {count}")
    begin = None if start is None else operator.index(start)
    mark = bookmark.open_bookmark(log, name, layout.KIND_GROUP, begin, shared=True)
    try:
        return GroupMember(
            log,
            mark,
            _free_slot(mark),
            count,
            auto_commit=auto_commit,
            too_old=too_old,
            timeout=timeout,
            verify=verify,
        )
    except BaseException:
        mark.close()
        raise


def _free_slot(mark: Bookmark) -> int:
    for slot in range(layout.MEMBERS_MAX):
        if _os.lock_byte(mark.lock, layout.FIRST_MEMBER + slot, True):
            return slot
    raise LogError(
        errno.EAGAIN, f"the group has {layout.MEMBERS_MAX} members, and no room for more", mark.path
    )
