# Which segment has which numbers, as far as that was found out.

from libc.stdint cimport uint64_t

from mmaplog.segment cimport Segment


cdef struct Span:
    uint64_t start              # the first number ...
    uint64_t stop               # ... and the first that is not in it; 0: it is the last one, as long as CONTROL names it
    uint64_t id


cdef class Spans:
    cdef Span *spans            # in order
    cdef list segments          # that belong to them
    cdef uint64_t capacity
    cdef uint64_t turn          # raised whenever all was forgotten

    cdef int note(self, Segment segment, uint64_t stop) except -1
    cdef int grow(self) except -1
    cdef void forget(self) noexcept
    cdef Segment find(self, uint64_t seq, uint64_t tail_id)
