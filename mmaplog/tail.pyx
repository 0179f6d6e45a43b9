# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""The end of a log, which one holds at a time: a thread, and where several processes write, a process."""

import threading

from libc.stdint cimport uint64_t

from mmapio cimport _fault
from mmaplog.format cimport UNIT, CommitSlot, Found, Record, read_record
from mmaplog.segment cimport Segment
from mmaplog.syncer cimport Syncer

from mmaplog import recovery, truncation
from mmaplog.errors import TooOld
from mmaplog.replay import backwards


cdef class TailHolder(Syncer):
    """Where a log's handle appends, and who may. :class:`mmaplog.appender.Appender` does."""

    @property
    def shared(self):
        """Whether other handles may append too, in this process and others."""
        return self.append_mutex is not None

    def pause(self):
        """For layers above: hold off every append, of all threads and processes, until `unpause`. Not reentrant."""
        self.take_tail("a close or a rebuild")
        self.paused = True
        self.room = 0

    def unpause(self):
        """Let appends go on after `pause`."""
        self.paused = False
        self.restore_room()
        self.let_tail()

    def refuse_within_tail(self, what):
        """For layers above: LogError where this thread holds the tail.

        A destructor interrupted it; others that it would wait for may be waiting for the tail.
        """
        if not self.append_lock.acquire(False):
            return
        held = self.growing or self.paused
        self.append_lock.release()
        if held:
            raise self.reentered(what)

    cdef void restore_room(self) noexcept:
        self.room = 0
        if (self.control is not None and self.writable and not self.forked and not self.control.hot.poison
                and self.append_mutex is None and not self.growing and not self.paused and not self.marked and not self.narrow and _fault.faults() == self.faults):
            self.room = self.tail.limit

    cdef int hold_tail(self, what) except -1:
        # From here to give_tail nobody else appends, and this thread may let go of the GIL: there is no room for those who do not ask.
        self.take_tail(what)
        self.growing = True
        self.room = 0
        return 0

    cdef int take_tail(self, what) except -1:
        self.check_writable()  # before it waits: in a forked child nobody gives the lock back
        self.refuse_within_flush(what)
        self.append_lock.acquire()
        try:
            self.check_writable()
            if self.growing or self.paused:
                raise self.reentered(what)
            if self.append_mutex is not None:
                self.append_mutex.take(True, None)
                try:
                    # Again: whoever held it may have failed in something that must not be followed by an append.
                    self.check_writable()
                    self.catch_up()
                except BaseException:
                    self.append_mutex.give()
                    raise
        except BaseException:
            self.append_lock.release()
            raise
        return 0

    cdef int give_tail(self) except -1:
        self.growing = False
        self.restore_room()
        return self.let_tail()

    cdef int let_tail(self) except -1:
        try:
            if self.append_mutex is not None:
                self.append_mutex.give()
        finally:
            self.append_lock.release()
        return 0

    cdef int come_up(self) except -1:
        # For who keeps the threads of this process from appending. Where he keeps all others from it, too, he has done so.
        if self.paused:
            return 0
        self.append_mutex.take(True, None)
        try:
            return self.catch_up()
        finally:
            self.append_mutex.give()

    cdef int catch_up(self) except -1:
        # With the mutex in hand: to where the other processes have come. Where one died, what it left half done is settled first.
        cdef CommitSlot slot
        if self.append_mutex.owner_died:
            self.take_over()
            self.append_mutex.mark_consistent()
        slot = self.control.committed()
        if slot.seq == self.seq and slot.segment_id == self.segment_id:
            return 0
        if slot.segment_id != self.segment_id:
            self.segments.follow_changes()
            self.tail.release()
        self.seq = slot.seq
        self.move_to(self.segments.by_id(slot.segment_id), <uint64_t>slot.end * UNIT, <uint64_t>slot.last * UNIT)
        self.tail.refresh()
        if self.timestamps:
            self.learn_time(&slot)
        return 0

    cdef int learn_time(self, CommitSlot *slot) except -1:
        # Of the last record, whoever wrote it: times must not go back. CONTROL says where it is, but for the first after a roll.
        cdef Record record
        record.time = 0
        if not (slot.last and read_record(
                self.base, self.last, self.tail.limit, self.segment_id, self.base_seq, True, &record) == Found.RECORD):
            # Or compaction removed it.
            record.time = self.time_before(slot.seq, slot.segment_id)
        self.time = max(self.time, record.time)
        return 0

    cdef uint64_t time_before(self, uint64_t seq, uint64_t segment_id) except? 0:
        # Of the last record below, 0 when there is none.
        cdef uint64_t first
        while True:
            first = self.segments.first()
            try:
                for entry in backwards(self.segments, first, seq, True, segment_id):
                    return entry.timestamp or 0
                return 0
            except TooOld:
                # Others drop the beginning meanwhile, which is none of this one's business: it reads on from where there is something.
                if self.segments.first() == first:
                    raise

    cdef int take_over(self) except -1:
        # From one who died with the mutex in hand, whatever he was at. Until it is done nobody appends.
        cdef bint syncing = self.flushing == threading.get_ident()
        self.segments.relist()
        if not syncing:
            self.take_turn()
        try:
            self.hold_sync()
            try:
                manifest = self.segments.manifest_now()
                if manifest.cut is None:
                    recovery.cleanse(self.segments, self.control, ())
                else:
                    # It counts since MANIFEST says so: what would be appended before it is finished would be dropped by it.
                    truncation.finish_cut(self.segments, manifest, self.control)
                    self.unsynced = []
                    self.names_unsynced = False
            finally:
                self.end_sync()
        finally:
            if not syncing:
                self.give_turn()
        return 0

    cdef void move_to(self, Segment segment, uint64_t end, uint64_t last) noexcept:
        self.tail = segment
        self.base = segment.base
        self.segment_id = segment.id
        self.base_seq = segment.base_seq
        self.end = end
        self.last = last
        self.large_end = 0
        self.narrow = False
