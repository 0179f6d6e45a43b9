# Where some of a segment's records start.

from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    STRIDE = 64                 # one record in so many is remembered


cdef class Positions:
    cdef uint32_t *indexes      # their numbers, counted from the first of the segment
    cdef uint32_t *units        # where they start
    cdef uint64_t count
    cdef uint64_t capacity

    cdef int grow(self) except -1
    cdef int note(self, uint64_t index, uint64_t offset) except -1
    cdef uint64_t nearest(self, uint64_t index, uint64_t *offset) noexcept
