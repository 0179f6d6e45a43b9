# The writing half of a log, which Log completes.

from libc.stdint cimport uint8_t, uint64_t

from mmapio.mutable cimport MappedSliceMut
from mmaplog.format cimport SEGMENT_HEADER_SIZE
from mmaplog.pieces cimport Pieces
from mmaplog.preparer cimport Preparer
from mmaplog.tail cimport TailHolder


cdef enum:
    # No record starts at or beyond this offset: a store could not address it. One may reach beyond.
    RECORD_START_END = 512 << 20
    # What is atomic is in one segment, so no larger than what precedes that.
    BATCH_SIZE_MAX = RECORD_START_END - SEGMENT_HEADER_SIZE


cdef class Appender(TailHolder):
    cdef Preparer preparer      # None until somebody writes fast
    cdef char *scratch          # where records are made that go to the file many at a time, or NULL

    cdef uint64_t discarded     # id of the segment that was removed last because what came was too large for it and it had no record yet
    cdef uint64_t roll_bytes    # a segment gets no longer than this, though it has the capacity

    cdef uint64_t append_from(self, const void *data, uint64_t size, bint durable) except? 0
    cdef uint64_t append_shared(self, const void *data, uint64_t size) except? 0
    cdef int make_room(self, uint64_t payload_size) except -1
    cdef int find_room(self, uint64_t need, uint64_t records, bint ahead) except -1
    cdef int prepare(self) except -1
    cdef int make_ready_now(self) except -1
    cdef int break_up(self) except -1
    cdef int adopt_prepared(self) except -1
    cdef int refuse_size(self, uint64_t payload_size) except -1
    cdef char *begin(self, uint64_t payload_size) noexcept nogil
    cdef void commit(self, uint64_t payload_size) noexcept nogil
    cdef void commit_made(self, char *record, uint64_t payload_size) noexcept nogil
    cdef void seal_next(self, uint64_t payload_size, uint8_t flags) noexcept nogil
    cdef void publish(self) noexcept nogil
    cdef uint64_t write_bulk(self, Pieces pieces, uint64_t at, bint atomic) except? 0
    cdef uint64_t pack(self, Pieces pieces, uint64_t at, bint atomic, int fd, int *result) noexcept nogil
    cdef int fall_back(self) except -1
    cdef bint fits(self, uint64_t size, uint64_t limit) noexcept nogil
    cdef MappedSliceMut begin_in_place(self, uint64_t size)
    cdef uint64_t end_in_place(self, uint64_t size, bint commit, bint abandon) except? 0
    cdef int abandon_rest(self) except -1
    cdef object write_many(self, Pieces pieces, bint atomic, bint durable)
    cdef int refuse_batch(self, uint64_t records, uint64_t size) except -1
    cdef int flush_if_due(self, bint durable) except -1
    cdef uint64_t write_run(self, Pieces pieces, uint64_t at, bint atomic) noexcept
    cdef int after_commit(self, uint64_t size, uint64_t seq, bint durable) except -1
    cdef int roll(self, uint64_t need, bint ahead) except -1


cdef inline uint64_t record_size(uint64_t payload_size, bint timestamps) noexcept nogil:
    return (payload_size + 16 + 8 * timestamps + 7) & ~<uint64_t>7
