# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""A sparse index of one segment, in memory: it is learnt by walking, and never wrong because it is never stored.

Records have no fixed size, so that the way to one leads over those before it. Walking a full segment of 64 MiB once costs
some milliseconds; from then on no look-up in it passes more than STRIDE records. Four bytes for each STRIDE of them.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from mmaplog.format cimport SEGMENT_HEADER_SIZE, UNIT


cdef class Positions:
    """Where the records of a segment start whose numbers, counted from its first, are multiples of STRIDE."""

    def __dealloc__(self):
        free(self.units)

    cdef int note(self, uint64_t index, uint64_t offset) except -1:
        # Of a record that a walk has come to. What is known, or comes out of turn, is left alone.
        cdef uint64_t capacity
        cdef void *grown
        if index % STRIDE or index // STRIDE != self.count:
            return 0
        if self.count == self.capacity:
            capacity = max(2 * self.capacity, 64)
            grown = realloc(self.units, capacity * sizeof(uint32_t))
            if grown == NULL:
                raise MemoryError
            self.units = <uint32_t *>grown
            self.capacity = capacity
        self.units[self.count] = <uint32_t>(offset // UNIT)
        self.count += 1
        return 0

    cdef uint64_t nearest(self, uint64_t index, uint64_t *offset) noexcept:
        # The last record known that is not beyond `index`, and where it starts.
        cdef uint64_t at
        if self.count == 0:
            offset[0] = SEGMENT_HEADER_SIZE
            return 0
        at = min(index // STRIDE, self.count - 1)
        offset[0] = <uint64_t>self.units[at] * UNIT
        return at * STRIDE
