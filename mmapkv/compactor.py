"""The thread that keeps a store small while it is written to."""

from __future__ import annotations

import atexit
import errno
import logging
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from mmapio import _fork
from mmapio.errors import Closed, FlushFailed
from mmapkv import compaction, hints
from mmapkv.errors import StoreError
from mmapkv.victims import Choice, Limits, Planner, Sealed
from mmaplog.errors import LogError

if TYPE_CHECKING:
    from mmapkv.store import KVStore

logger = logging.getLogger("mmapkv")

#: What says nothing of the store: it is tried again at the next roll, and after so many seconds.
PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})
RETRY_SECONDS = 10.0
#: How long a write waits for compaction at the most, and how often it looks again.
WAIT_SECONDS_MAX = 10.0
WAIT_STEP_SECONDS = 0.001
#: How long a close waits for it to end, which it does within some writes to the disk.
JOIN_SECONDS_MAX = 60.0

_running: weakref.WeakSet[Compactor] = weakref.WeakSet()


@atexit.register
def _stop_at_exit() -> None:
    # No thread is to be frozen with a lock in its hands. The flushers come after.
    for compactor in list(_running):
        compactor.stop()


class Compactor:
    """Compacts the store of one handle in the background, once a roll has found enough dead bytes.

    It holds the store weakly. Destructors and signal handlers may use what it waits on and is told by.
    """

    def __init__(self, store: KVStore, *, automatic: bool) -> None:
        self._automatic = automatic
        self._told: SimpleQueue[None] = SimpleQueue()
        told = self._told

        def is_gone(_: object) -> None:
            told.put(None)

        self._store = weakref.ref(store, is_gone)
        self._thread: threading.Thread | None = None
        self._planner = Planner()
        self._sizes: dict[int, int] = {}
        self._all = False
        # What it was woken for and has not seen to; whether it is to end, or has.
        self._asked: deque[None] = deque()
        self._ending = False
        # Empty once somebody has started the thread, or is about to.
        self._unstarted = [None]
        self.done = 0
        # The errno of what it met last, 0 when it has got over that.
        self.error = 0
        _fork.register(self)

    @property
    def _busy(self) -> bool:
        # Whether it may still find something to do.
        return bool(self._asked) and not self._ending

    def rolled(self, store: KVStore) -> None:
        """Whoever writes, and holds no lock, calls this when the log went on to a new segment.

        Waits where too much is dead.
        """
        if not self._automatic:
            return
        limits, dead = self._look(store)
        store._log.roll_after(limits.segment_bytes)
        if dead < limits.dead_aim or not self._wake():
            return
        me = threading.get_ident()
        if store._caring == me or (self._thread is not None and self._thread.ident == me):
            # A destructor, in the middle of what would be waited for.
            return
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        while dead > limits.dead_max and self._busy and time.monotonic() < deadline:
            time.sleep(WAIT_STEP_SECONDS)
            try:
                limits, dead = self._look(store)
            except Closed:
                # By another thread. What comes next says so.
                return

    def cleared(self, store: KVStore) -> None:
        """Whoever cleared the store calls this. Waits for nothing."""
        if not self._automatic:
            return
        # Closed by another thread: it is cleared all the same.
        with suppress(Closed):
            limits, dead = self._look(store)
            if dead >= limits.dead_aim:
                self._wake()

    def compact_all(self) -> None:
        """Have all that can go removed, as soon as may be.

        StoreError where compaction has ended for good, RuntimeError when there is no thread to be had.
        """
        if self._ending:
            raise StoreError(
                self.error, "compaction in the background has ended; the log named mmapkv says why"
            )
        self._all = True
        if not self._wake():
            raise RuntimeError(
                "no thread can be started for a compaction in the background; compact without it"
            )

    def stop(self) -> None:
        """End the thread and wait for that; what it is at is left as it was. The second time does nothing."""
        thread, self._ending = self._thread, True
        # The thread is frozen by then, and a forked child never had it.
        if thread is None or sys.is_finalizing() or thread is threading.current_thread():
            return
        self._told.put(None)
        thread.join(JOIN_SECONDS_MAX)
        if thread.is_alive():
            raise StoreError(
                errno.EDEADLK,
                f"a compaction in the background did not end within {JOIN_SECONDS_MAX:.0f} s; if this is a "
                "destructor or signal handler, let it leave a note instead, and close later",
            )

    def _look(self, store: KVStore) -> tuple[Limits, int]:
        store._open_parts()
        size, dead, segment_bytes = compaction.usage(store, self._sizes)
        return Limits(size - min(size, dead), segment_bytes), dead

    def _wake(self) -> bool:
        if self._ending:
            return False
        self._asked.append(None)
        self._told.put(None)
        with suppress(IndexError):
            # Several threads may write.
            self._unstarted.pop()
            return self._start()
        return True

    def _start(self) -> bool:
        thread = threading.Thread(target=_run, args=(self,), name="mmapkv-compactor", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # None to be had, or the interpreter is about to end: at the next roll perhaps.
            self._asked.clear()
            self._unstarted.append(None)
            return False
        self._thread = thread
        _running.add(self)
        return True

    def _halted(self) -> None:
        if self._ending:
            raise compaction.Halted

    def _work(self) -> bool:
        # One step; whether there may be another one.
        store = self._store()
        if store is None:
            self._ending = True
            return False
        with store._careful("a compaction"):
            self._halted()
            if self._all:
                self._all = False
                self.done += compaction.compact(store, store._pins, self._halted).segments_written
                hints.sweep(store._log)
                return True
            limits, _ = self._look(store)
            chosen: tuple[Choice, list[Sealed], int] | None = None

            def choose(found: list[tuple[int, int, int, int, int]], needed: int) -> Choice | None:
                nonlocal chosen
                sealed = [Sealed(*each) for each in found]
                choice = self._planner.choose(sealed, needed, limits)
                if choice is not None:
                    chosen = choice, sealed, needed
                return choice

            came = compaction.step(store, store._pins, choose, self._halted)
            if came is None or chosen is None:
                return False
            seen, made, _ = came
            self._planner.learn(*chosen, seen, made)
            if made:
                self.done += 1
                if store._log.shared:
                    # Others make hints too, perhaps of what they do not know to be gone.
                    hints.sweep(store._log)
            return True

    def _after_fork_in_child(self) -> None:
        self._thread, self._ending = None, True


def _run(compactor: Compactor) -> None:
    retry: float | None = None
    try:
        while not compactor._ending:
            try:
                compactor._told.get(timeout=retry)
            except Empty:
                compactor._asked.append(None)
            retry = None
            # What comes while it works may have come too late for that.
            asked = len(compactor._asked)
            try:
                while not compactor._ending and compactor._work():
                    compactor.error = 0
            except (compaction.Halted, Closed):
                return
            except compaction.Replaced:
                retry = 0.0
            except (OSError, MemoryError) as error:
                number = error.errno or errno.EIO if isinstance(error, OSError) else errno.ENOMEM
                compactor.error = number
                # What the log raises by itself may have any number.
                if number not in PASSING or isinstance(error, (FlushFailed, LogError)):
                    logger.error("background compaction ended: %s", error)  # noqa: TRY400
                    return
                logger.warning("background compaction put off: %s", error)
                retry = RETRY_SECONDS
            if retry is None:
                compactor.error = 0
            for _ in range(asked):
                compactor._asked.popleft()
    except Exception:
        compactor.error = errno.EIO
        logger.exception("background compaction ended")
    finally:
        compactor._ending = True
