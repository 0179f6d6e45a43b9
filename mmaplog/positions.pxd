# Where some of a segment's records start.

from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    SPACING = 1024              # what is remembered lies so many bytes apart, or more


cdef struct Place:
    uint32_t index              # number of a record, counted from the first of the segment
    uint32_t unit               # where it starts


cdef class Positions:
    cdef Place *places          # in order; the first is that of the segment's first record
    cdef uint64_t count
    cdef uint64_t capacity

    cdef int grow(self) except -1
    cdef int note(self, uint64_t index, uint64_t offset) except -1
    cdef uint64_t nearest(self, uint64_t index, uint64_t *offset) noexcept
