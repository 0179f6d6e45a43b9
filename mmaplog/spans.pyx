# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Which segment has which numbers, as far as that was found out: what a look-up by number asks first."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

from mmaplog.segment cimport Segment

cdef uint64_t FIRST_CAPACITY = 16


cdef class Spans:
    """The numbers of some segments. Holds as long as the same segments count; whoever changes which do has all of it forgotten."""

    def __cinit__(self):
        self.segments = []

    def __dealloc__(self):
        free(self.spans)

    cdef int note(self, Segment segment, uint64_t stop) except -1:
        cdef Py_ssize_t count = len(self.segments), at = count
        while at and self.spans[at - 1].start >= segment.base_seq:
            at -= 1
        if at < count and self.spans[at].start == segment.base_seq:
            self.segments[at] = segment
        else:
            if <uint64_t>count == self.capacity:
                self.grow()
            self.segments.insert(at, segment)
            memmove(self.spans + at + 1, self.spans + at, (count - at) * sizeof(Span))
        self.spans[at].start = segment.base_seq
        self.spans[at].stop = stop
        self.spans[at].id = segment.id
        return 0

    cdef int grow(self) except -1:
        cdef uint64_t capacity = max(2 * self.capacity, FIRST_CAPACITY)
        cdef void *grown = realloc(self.spans, capacity * sizeof(Span))
        if grown == NULL:
            raise MemoryError
        self.spans = <Span *>grown
        self.capacity = capacity
        return 0

    cdef void forget(self) noexcept:
        self.turn += 1
        self.segments.clear()

    cdef Segment find(self, uint64_t seq, uint64_t tail_id):
        # The segment with this number, or None when it is not known which has it. `tail_id` is the id of the last one there is now.
        cdef Py_ssize_t low = 0, high = len(self.segments), middle
        while low < high:
            middle = (low + high) // 2
            if self.spans[middle].start <= seq:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return None
        low -= 1
        if self.spans[low].stop:
            return <Segment>self.segments[low] if seq < self.spans[low].stop else None
        return <Segment>self.segments[low] if self.spans[low].id == tail_id else None
