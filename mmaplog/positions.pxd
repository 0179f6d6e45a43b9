# Where some of a segment's records start.

from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    STRIDE = 1024               # one record in so many is remembered


cdef class Positions:
    cdef uint32_t *units        # of record 0, STRIDE, 2 * STRIDE, ... of the segment
    cdef uint64_t count
    cdef uint64_t capacity

    cdef int note(self, uint64_t index, uint64_t offset) except -1
    cdef uint64_t nearest(self, uint64_t index, uint64_t *offset) noexcept
