# The writing half of a log, which Log completes.

from libc.stdint cimport uint8_t, uint64_t

from mmapio._os cimport Descriptor
from mmaplog.control cimport Control
from mmaplog.pieces cimport Pieces
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet


cdef enum:
    # No record starts at or beyond this offset: a store could not address it. One may reach beyond.
    RECORD_START_END = 512 << 20


cdef class Appender:
    cdef readonly Control control
    cdef readonly SegmentSet segments
    cdef Descriptor directory
    cdef object _path
    cdef object manifest
    cdef object append_lock
    cdef object flush_turn      # a condition: whether somebody is at `flushing`
    cdef readonly bint writable
    cdef bint forked
    cdef bint growing           # the holder of append_lock is finding space
    cdef bint paused            # the holder of append_lock keeps everybody from appending
    cdef unsigned long flushing # the thread that is syncing, or 0
    cdef bint timestamps

    # The writer's position. `room` is where the next record must end at the latest. It is 0 whenever an
    # append must not go ahead, whatever the reason, so that one comparison guards them all.
    cdef Segment tail
    cdef char *base
    cdef uint64_t room
    cdef uint64_t end
    cdef uint64_t last
    cdef uint64_t seq
    cdef uint64_t base_seq
    cdef uint64_t segment_id
    cdef uint64_t time          # of the last record, where they have times
    cdef uint64_t faults        # of the process, when this log's files were last found whole
    cdef list unsynced          # segments before the tail that were written since the last sync
    cdef bint names_unsynced    # the directory has entries that no sync covers

    # What the policy counts.
    cdef uint64_t bytes_bound
    cdef uint64_t writes_bound
    cdef uint64_t bytes_pending
    cdef uint64_t writes_pending

    cdef int make_room(self, uint64_t payload_size) except -1
    cdef int find_room(self, uint64_t need, uint64_t records) except -1
    cdef int refuse_size(self, uint64_t payload_size) except -1
    cdef char *begin(self, uint64_t payload_size) noexcept nogil
    cdef void commit(self, uint64_t payload_size) noexcept nogil
    cdef void write_record(self, uint64_t payload_size, uint8_t flags) noexcept nogil
    cdef void publish(self) noexcept nogil
    cdef object write_many(self, Pieces pieces, bint atomic, bint durable)
    cdef uint64_t write_run(self, Pieces pieces, uint64_t at, bint atomic) noexcept
    cdef int after_commit(self, uint64_t size, bint durable) except -1
    cdef int check(self) except -1
    cdef int check_faults(self) except -1
    cdef int check_writable(self) except -1
    cdef int roll(self, uint64_t need) except -1
    cdef seal(self, Segment segment)
    cdef adopt_unsynced(self)
    cdef mark_clean(self)
    cdef raise_forked(self)
    cdef raise_poisoned(self, poison)
    cdef void restore_room(self) noexcept
    cdef flush_held(self)
    cdef int flush_to(self, uint64_t seq) except -1
    cdef int take_turn(self) except -1
    cdef int give_turn(self) except -1
    cdef reentered(self, what)
    cdef int refuse_within_flush(self, what) except -1
    cdef void move_to(self, Segment segment, uint64_t end, uint64_t last) noexcept


cdef inline uint64_t record_size(uint64_t payload_size, bint timestamps) noexcept nogil:
    return (payload_size + 16 + 8 * timestamps + 7) & ~<uint64_t>7
