"""The thread that keeps a store small while it is written to."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from mmapio.errors import Closed, FlushFailed
from mmapkv import compaction, hints, index_file
from mmapkv.errors import StoreError
from mmapkv.victims import BORNE, Choice, Limits, Planner, Sealed
from mmapkv.worker import Worker
from mmaplog.errors import LogError

if TYPE_CHECKING:
    from mmapkv.store import KVStore
    from mmaplog.log import Log

logger = logging.getLogger("mmapkv")

#: What says nothing of the store: it is tried again at the next roll, and after so many seconds.
PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})
RETRY_SECONDS = 10.0
#: How long a write waits for compaction at the most; should it not be woken, it looks again so often.
WAIT_SECONDS_MAX = 10.0
WAIT_STEP_SECONDS = 0.1
#: After a step that nobody waits for, nor will soon, it rests so many times as long as that took.
REST = 3
#: What a writer who waits tells the thread: to hurry, and nothing of the store.
HURRY = True
#: Of the bytes that a step frees, writers may have this part again, while there are more than are borne.
#: What deletions were given is taken back first.
GIVEN_BACK = 0.75


class _Defers(threading.local):
    """Of each thread, whether its writes leave waiting to others."""

    now = False


class Compactor(Worker):
    """Compacts the store of one handle in the background, once a roll has found enough dead bytes.

    Dead bytes are `borne` up to that part of the live ones; 0 has it do nothing but what it is told to.
    When it is stopped, what it is at is left as it was.
    """

    thread_name = "mmapkv-compactor"
    work = "compaction in the background"

    def __init__(self, store: KVStore, borne: float) -> None:
        super().__init__(store)
        self._borne = borne
        self._planner = Planner()
        self._sizes: dict[int, int] = {}
        self._all = False
        # What it was woken for and has not seen to.
        self._asked: deque[None] = deque()
        # So many bytes of records there may be before writers wait: no less than what is borne, and while
        # there are more, as many as there were. -1 before the first look.
        self._ceiling = -1
        # Of these, what deletions were given; and all bytes, and live ones, when a segment was begun.
        self._granted = 0
        self._rolled_at = 0, 0
        self._waiting: deque[SimpleQueue[None]] = deque()
        # Whether a write in this thread, an event loop's, does not wait; and what is owed for those that
        # would have: the ceiling to wait for, and until when.
        self.defers = _Defers()
        self.owed: tuple[int, float] | None = None
        # Since when it has waited for another process that did nothing, by the log's generation then; None
        # while it does not.
        self._kept_out_since: tuple[float, int] | None = None
        self.done = 0
        # The errno of what it met last, 0 when it has got over that.
        self.error = 0

    @property
    def _busy(self) -> bool:
        # Whether it may still find something to do.
        return bool(self._asked) and not self._ending and not self._is_kept_out()

    def rolled(self, store: KVStore) -> None:
        """Whoever writes, and holds no lock, calls this when the log went on to a new segment.

        Waits where the store would grow beyond what it was and what is borne.
        """
        if not self._borne:
            return
        limits, size, dead = self._look(store)
        self._grant(size, size - min(size, dead))
        # As it is now: a step from here on lowers it, and makes the store smaller by more than that.
        ceiling = self._ceiling
        store._log.roll_after(limits.segment_bytes)
        _, index = store._open_parts()
        if (dead < limits.dead_aim and not index_file.expiring_below(index)) or not self.wake():
            return
        me = threading.get_ident()
        if store._caring == me or (self._thread is not None and self._thread.ident == me):
            # A destructor, in the middle of what would be waited for.
            return
        if size > ceiling and self.defers.now:
            self.owed = ceiling, time.monotonic() + WAIT_SECONDS_MAX
            return
        self._wait(store, size, ceiling)

    def settle(self, store: KVStore) -> None:
        """For another thread than the event loop's: wait for what is owed, for a while; it may be still."""
        owed = self.owed
        if owed is None:
            return
        ceiling, deadline = owed
        left = deadline - time.monotonic()
        with suppress(Closed):
            if left > 0 and self._busy and self._look(store)[1] > ceiling:
                self._await_step(min(left, WAIT_STEP_SECONDS))
                return
        # Unless more was written meanwhile.
        if self.owed is owed:
            self.owed = None

    def _wait(self, store: KVStore, size: int, ceiling: int) -> None:
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while size > ceiling and self._busy:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._await_step(min(left, WAIT_STEP_SECONDS))
            try:
                _, size, _ = self._look(store)
            except Closed:
                # By another thread. What comes next says so.
                return
            ceiling = self._ceiling

    def cleared(self, store: KVStore) -> None:
        """Whoever cleared the store calls this. Waits for nothing."""
        if not self._borne:
            return
        # Closed by another thread: it is cleared all the same.
        with suppress(Closed):
            limits, _, dead = self._look(store)
            if dead >= limits.dead_aim:
                self.wake()

    def compact_all(self) -> None:
        """Have all that can go removed, as soon as may be.

        StoreError where compaction has ended for good, RuntimeError when there is no thread to be had.
        """
        if self._ending:
            raise StoreError(
                self.error, "compaction in the background has ended; the log named mmapkv says why"
            )
        self._all = True
        if not self.wake():
            raise RuntimeError(
                "no thread can be started for a compaction in the background; compact without it"
            )

    def _look(self, store: KVStore) -> tuple[Limits, int, int]:
        # And bytes of records, and of dead ones among them.
        store._open_parts()
        size, dead, segment_bytes = compaction.usage(store, self._sizes)
        live = size - min(size, dead)
        limits = Limits(live, segment_bytes, self._borne or BORNE)
        # Who deletes much makes what is borne less than what there is: that is not waited for. The ceiling
        # comes down to it as the thread makes progress.
        bound = live + limits.dead_max
        if dead < limits.dead_aim:
            self._ceiling, self._granted = bound, 0
        else:
            self._ceiling = max(size if self._ceiling < 0 else self._ceiling, bound)
        return limits, size, dead

    def _grant(self, size: int, live: int) -> None:
        # Who deletes writes too. What that takes is no reason to wait, up to what it will give back.
        size_before, live_before = self._rolled_at
        self._rolled_at = size, live
        granted = max(min(size - size_before, live_before - live), 0)
        self._granted += granted
        self._ceiling += granted

    def _await_step(self, seconds: float) -> None:
        woken: SimpleQueue[None] = SimpleQueue()
        self._waiting.append(woken)
        self._told.put(HURRY)
        with suppress(Empty):
            woken.get(timeout=seconds)

    def _tell_waiting(self) -> None:
        with suppress(IndexError):
            while True:
                self._waiting.popleft().put(None)

    def _note(self, called: bool) -> None:
        if called:
            self._asked.append(None)
        else:
            self._asked.clear()

    def _halted(self) -> None:
        if self._ending:
            raise compaction.Halted

    def _is_kept_out(self) -> bool:
        # By somebody who has done nothing for as long as a write waits at the most: he was stopped, say. Then
        # nobody waits for what he has in hand.
        since = self._kept_out_since
        return since is not None and time.monotonic() - since[0] >= WAIT_SECONDS_MAX

    def _keep_out(self, log: Log) -> None:
        # While another process is waited for.
        self._halted()
        changed = log.control.generation
        if self._kept_out_since is None or self._kept_out_since[1] != changed:
            self._kept_out_since = time.monotonic(), changed

    def _work(self) -> bool:
        # One step; whether there may be another one.
        store = self._store()
        if store is None:
            self._ending = True
            return False
        with store._careful("a compaction"):
            self._halted()
            try:
                return self._compact(store) if self._all else self._step(store)
            finally:
                self._kept_out_since = None

    def _compact(self, store: KVStore) -> bool:
        self._all = False
        try:
            done = compaction.compact(store, store._pins, self._halted, partial(self._keep_out, store._log))
        except BaseException:
            # Still to be done, should there be another time.
            self._all = True
            raise
        self.done += done.segments_written
        hints.sweep(store._log)
        return True

    def _step(self, store: KVStore) -> bool:
        chosen: tuple[Choice, list[Sealed], int] | None = None

        def choose(found: list[tuple[int, int, int, int, int]], needed: int) -> Choice | None:
            nonlocal chosen
            # By now nobody else changes what is chosen from; while others did, it took its time.
            self._kept_out_since = None
            limits, _, _ = self._look(store)
            _, index = store._open_parts()
            expiring = index_file.expiring_below(index)
            sealed = [Sealed(*each) for each in found]
            choice = self._planner.choose(sealed, needed, limits, expiring)
            if choice is not None:
                chosen = choice, sealed, needed
            return choice

        kept_out = partial(self._keep_out, store._log)
        came = compaction.step(store, store._pins, choose, self._halted, kept_out)
        if came is None or chosen is None:
            self._ceiling = self._granted = 0
            return False
        seen, made, did = came
        self._planner.learn(*chosen, seen, made)
        if made:
            self.done += 1
            if store._log.shared:
                # Others make hints too, perhaps of what they do not know to be gone.
                hints.sweep(store._log)
        freed = max(did.bytes_freed, 0)
        repaid = min(freed, self._granted)
        self._granted -= repaid
        self._ceiling = max(self._ceiling - repaid - int((1 - GIVEN_BACK) * (freed - repaid)), 0)
        return True

    def _is_urgent(self) -> bool:
        # Whether writers wait for the next step, or will before a segment is full; or somebody asked.
        if self._all or self._waiting:
            return True
        store = self._store()
        if store is None or not self._borne:
            return True
        limits, size, _ = self._look(store)
        return size > self._ceiling - limits.segment_bytes

    def _rest(self, seconds: float) -> None:
        # Work in the background takes some of what writers need too. They end the rest when they wait.
        until = time.monotonic() + seconds
        while not self._ending and (left := until - time.monotonic()) > 0:
            with suppress(Empty):
                # Who waits for what there is to find must not have it looked for again each time.
                if self._told.get(timeout=left) is not HURRY:
                    self._planner.expect()
            if self._is_urgent():
                return

    def _listen(self, timeout: float | None) -> None:
        # Until there may be something to do. Who has begun to wait just now waits for nothing.
        with suppress(Empty):
            while self._told.get(timeout=timeout) is HURRY:
                self._tell_waiting()
            # All that was told until now.
            while True:
                self._told.get_nowait()

    def _serve(self) -> None:
        retry: float | None = None
        try:
            while not self._ending:
                if retry is not None or not self._asked:
                    self._listen(retry)
                # This round, too, is one that may find something to do.
                self._asked.append(None)
                retry = None
                # What comes while it works may have come too late for that.
                asked = len(self._asked)
                self._planner.expect()
                try:
                    self._work_on()
                except (compaction.Halted, Closed):
                    return
                except compaction.Replaced:
                    retry = 0.0
                except (OSError, MemoryError) as error:
                    number = error.errno or errno.EIO if isinstance(error, OSError) else errno.ENOMEM
                    self.error = number
                    # What the log raises by itself may have any number.
                    self._nobody_heard(error)
                    if number not in PASSING or isinstance(error, (FlushFailed, LogError)):
                        logger.error("background compaction ended: %s", error)  # noqa: TRY400
                        return
                    logger.warning("background compaction put off: %s", error)
                    retry = RETRY_SECONDS
                    # Nobody waits for that.
                    self._asked.clear()
                if retry is None:
                    self.error = 0
                    for _ in range(asked):
                        self._asked.popleft()
                self._tell_waiting()
        except Exception:
            self.error = errno.EIO
            raise
        finally:
            self._ending = True
            self._tell_waiting()

    def _work_on(self) -> None:
        while not self._ending:
            begun = time.monotonic()
            if not self._work():
                return
            self.error = 0
            self._tell_waiting()
            if not self._is_urgent():
                self._rest(REST * (time.monotonic() - begun))
