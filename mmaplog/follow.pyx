# cython: language_level=3, auto_pickle=False
"""Reading a log as it grows: asleep until the writer, of whichever process, says that there is more."""

import errno as _errno
import time

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint64_t

from mmapio cimport _memory as memory
from mmapio.bounds cimport deadline_of
from mmaplog.control cimport Control
from mmaplog.format cimport CommitSlot
from mmaplog.replay cimport Entry, Replay

from mmaplog.errors import LogError, TooOld

# A sleeper looks around this often: for signals, and whether its handle was closed by another thread.
cdef double SLICE_SECONDS = 0.1


def deadline_after(timeout):
    """When `timeout` seconds from now are over; None for None. TypeError for what is no number, ValueError for NaN, which never is over."""
    return None if timeout is None else deadline_of(timeout)


cdef double time_to_sleep(deadline) except? -1:
    # Until who waits looks around again, in seconds; none is left when it is not above 0. None is no deadline.
    return SLICE_SECONDS if deadline is None else min(deadline - time.monotonic(), SLICE_SECONDS)


cdef class Follower:
    """Iterates over the records from a number on, and waits for those that are still to come. Made by ``Log.follow``.

    `seq` is the number of the next one. With a timeout the iteration ends when there was no record for so many seconds, and can
    be gone on with. For ``async for`` there is the same in a thread. For one thread or task at a time.
    """

    def __cinit__(self, log, Control control not None, Replay replay not None, timeout):
        deadline_after(timeout)
        self.generation = memory.load_acquire(&control.hot.generation)
        self.epoch = log.epoch
        self.log = log
        self.control = control
        self.replay = replay
        self.timeout = timeout

    @property
    def seq(self):
        """The number of the record that comes next."""
        return self.replay.seq

    def poll(self):
        """The next entry, or None when there is none yet. Raises CorruptionError, MappingFault, Closed."""
        cdef Entry entry = None
        # Behind what was there, compaction may have left none.
        while entry is None and self.fetch():
            entry = self.replay.take()
        return entry

    def wait(self, timeout=None):
        """Sleep until there is a next record, at most `timeout` seconds. True when there is.

        Raises LogError where none can come: a reader that may not write found the end by itself. And Closed.
        """
        deadline = deadline_after(timeout)
        cdef uint64_t turn
        while True:
            turn = memory.load_acquire(&self.control.hot.turn)
            if self.fetch():
                return True
            left = time_to_sleep(deadline)
            if left <= 0:
                return False
            self.sleep(turn, left)

    def __iter__(self):
        return self

    def __next__(self):
        cdef Entry entry = None
        while entry is None:
            if not self.fetch() and not self.wait(self.timeout):
                raise StopIteration
            entry = self.replay.take()
        return entry

    def __aiter__(self):
        return self

    async def __anext__(self):
        entry = self.poll()
        while entry is None:
            if not await wait_in_thread(self, self.timeout):
                raise StopAsyncIteration
            entry = self.poll()
        return entry

    cdef bint fetch(self) except -1:
        # Whether the next record is there.
        cdef CommitSlot slot
        cdef bint changed = memory.load_acquire(&self.control.hot.generation) != self.generation
        if self.replay.seq < self.replay.stop and not changed:
            return True
        self.log.committed  # raises what stands in the way of reading
        if changed:
            self.look_back()
        slot = self.control.committed()
        if slot.seq <= self.replay.seq:
            # What it knew of beyond was dropped.
            self.replay.stop = self.replay.seq
            return False
        self.replay.extend(slot.seq, slot.segment_id)
        return True

    cdef int look_back(self) except -1:
        # Segments were replaced or removed: perhaps the numbers that were read are in use again.
        cdef uint64_t generation = memory.load_acquire(&self.control.hot.generation), seq = self.replay.seq
        # In this order: what is used again between the two is found the next time.
        epoch = self.log.epoch
        # What it has read is of the epoch that it has come to: a replay goes into another one only where that begins.
        resumed = self.log.resume(self.epoch if self.replay.segment is None else self.replay.segment.epoch, seq)
        if resumed < seq:
            raise TooOld(
                f"records from {resumed} on were truncated after they had been read, and their numbers are used again; "
                f"follow the log anew from {resumed}", self.log.path)
        self.generation = generation
        self.epoch = epoch
        # Where its segment ends is to be asked again.
        self.replay.followed = False
        return 0

    cdef bint sleep(self, uint64_t turn, double seconds) except -1:
        cdef Control control = self.control
        cdef int64_t span = <int64_t>(seconds * 1e9)
        if control.private:
            raise LogError(
                _errno.EACCES, "this reader may not write, and found the end of the log by itself: it sees nothing that is appended "
                "later, and would wait for ever; open the log again once a writer was at work", self.log.path)
        with nogil:
            control.wait_for_turn(turn, span)
        PyErr_CheckSignals()
        return True


async def wait_in_thread(follower, timeout):
    """`follower.wait` in a thread, whatever it waits for, so that an event loop goes on. Can be cancelled within 0.1 s. Unsupported without anyio."""
    from mmapio.aio import in_thread, waiting

    deadline = deadline_after(timeout)
    while True:
        left = max(time_to_sleep(deadline), 0)
        if await in_thread(lambda: follower.wait(left), limiter=waiting()):
            return True
        if deadline is not None and time.monotonic() >= deadline:
            return False
