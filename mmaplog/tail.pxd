# The end of a log, which one holds at a time.

from libc.stdint cimport uint64_t

from mmapio.sync cimport SharedMutex
from mmaplog.format cimport CommitSlot
from mmaplog.segment cimport Segment
from mmaplog.syncer cimport Syncer


cdef class TailHolder(Syncer):
    cdef object locks           # LockFile
    cdef bint growing           # the holder of append_lock is finding space
    cdef bint paused            # the holder of append_lock keeps everybody from appending
    cdef bint timestamps
    cdef SharedMutex append_mutex   # held by who appends, where several processes do; else None

    # The writer's position, and `seq`, `end`, `tail`.
    cdef char *base
    cdef uint64_t last
    cdef uint64_t base_seq
    cdef uint64_t segment_id
    cdef uint64_t time          # of the last record, where they have times

    cdef int hold_tail(self, what) except -1
    cdef int give_tail(self) except -1
    cdef int take_tail(self, what) except -1
    cdef int let_tail(self) except -1
    cdef int come_up(self) except -1
    cdef int catch_up(self) except -1
    cdef uint64_t time_before(self, uint64_t seq, uint64_t segment_id) except? 0
    cdef int learn_time(self, CommitSlot *slot) except -1
    cdef int take_over(self) except -1
    cdef void restore_room(self) noexcept
    cdef void move_to(self, Segment segment, uint64_t end, uint64_t last) noexcept
