# What a log's handle knows of its files, and how it makes them durable.

from libc.stdint cimport uint32_t, uint64_t

from mmapio._os cimport Descriptor
from mmapio.sync cimport SharedMutex
from mmaplog.control cimport Control
from mmaplog.format cimport CommitSlot
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet


cdef class Syncer:
    cdef readonly Control control
    cdef readonly SegmentSet segments
    cdef Descriptor directory
    cdef object _path
    cdef object append_lock
    cdef SharedMutex sync_mutex # held by the process that syncs, where several write; else None
    cdef uint32_t arrivals      # raised by who begins to wait: what the one who syncs sleeps on while he waits for others
    cdef uint64_t gathering     # he waits for more than so many records, or 0
    cdef uint64_t sleepers      # threads that wait
    cdef uint64_t expected      # how many did when the last sync ended
    cdef uint32_t turns         # raised when `flushing` ends: what those sleep on who wait for that
    cdef readonly bint writable
    cdef bint forked
    cdef uint64_t flushing      # the thread that is syncing, or 0

    # Where the next record goes. `room` is where it must end at the latest. It is 0 whenever an append must not go ahead, whatever
    # the reason, so that one comparison guards them all.
    cdef uint64_t room
    cdef Segment tail
    cdef uint64_t end
    cdef uint64_t seq

    cdef uint64_t faults        # of the process, when this log's files were last found whole
    cdef list unsynced          # segments before the tail that were written since the last sync
    cdef bint names_unsynced    # the directory has entries that no sync covers
    cdef bint marked            # the tail is marked as closed cleanly
    cdef CommitSlot sync_target # what the sync under way covers, ...
    cdef Segment last_to_sync   # ... and the last segment of that
    cdef object policy
    cdef object flusher         # the thread of a policy on time, once there may be something for it
    cdef uint64_t bytes_bound   # so much may be pending by the policy
    cdef uint64_t writes_bound
    cdef uint64_t bytes_pending
    cdef uint64_t writes_pending
    cdef uint64_t syncs         # of the tail, since room was last made in it
    cdef uint64_t large_end     # up to here in the tail the kernel may keep several pages together, and write them together
    cdef bint narrow            # that is to end, before the next record: each sync covers little now
    cdef bint heard             # a call of this handle has told its user of a sync that failed

    cdef int check(self) except -1
    cdef int check_faults(self) except -1
    cdef int check_writable(self) except -1
    cdef raise_forked(self)
    cdef raise_poisoned(self, poison)
    cdef reentered(self, what)
    cdef int refuse_within_flush(self, what) except -1
    cdef flush_held(self, uint64_t seq)
    cdef flush_last(self)
    cdef int tell_unheard(self) except -1
    cdef int keep_flushing(self) except -1
    cdef int begin_sync(self) except -1
    cdef int hold_sync(self) except -1
    cdef int repeat_sync(self) except -1
    cdef int fail_sync(self, error) except -1
    cdef int end_sync(self) except -1
    cdef gather_unsynced(self)
    cdef flush_now(self)
    cdef list open_to_sync(self, list before, Segment last)
    cdef int flush_to(self, uint64_t seq) except -1
    cdef int await_others(self) except -1
    cdef int take_turn(self) except -1
    cdef int wait_for_turn(self, uint64_t seq) except -1
    cdef int give_turn(self) except -1
    cdef int sync_names(self) except -1
    cdef seal(self, Segment segment)
    cdef adopt_unsynced(self)
    cdef bint is_marked(self) noexcept
    cdef int begin_writing(self) except -1
    cdef int start_flusher(self) except -1
    cdef int unmark(self) except -1
    cdef mark_clean(self)
    cdef int sync_mark(self, uint64_t seq, uint64_t end) except -1


cdef uint64_t end_of_records(Segment segment, uint64_t seq) noexcept nogil
