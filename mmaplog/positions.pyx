# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""A sparse index of one segment, in memory: it is learnt by walking, and never wrong because it is never stored.

Records have no fixed size, so that the way to one leads over those before it. Walking a full segment of 64 MiB once costs
some milliseconds; from then on no look-up in it passes more than STRIDE records. Eight bytes for each STRIDE of them.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from mmaplog.format cimport SEGMENT_HEADER_SIZE, UNIT


cdef class Positions:
    """Where some of a segment's records start, STRIDE numbers or more apart, as far as somebody has walked."""

    def __dealloc__(self):
        free(self.indexes)
        free(self.units)

    cdef int note(self, uint64_t index, uint64_t offset) except -1:
        # Of a record that a walk has come to, which began at one that `nearest` named. What is known, or too near to it, is left alone.
        if self.count and index < <uint64_t>self.indexes[self.count - 1] + STRIDE:
            return 0
        if self.count == self.capacity:
            self.grow()
        self.indexes[self.count] = <uint32_t>index
        self.units[self.count] = <uint32_t>(offset // UNIT)
        self.count += 1
        return 0

    cdef int grow(self) except -1:
        cdef uint64_t capacity = max(2 * self.capacity, 64)
        cdef void *grown = realloc(self.indexes, capacity * sizeof(uint32_t))
        if grown == NULL:
            raise MemoryError
        self.indexes = <uint32_t *>grown
        grown = realloc(self.units, capacity * sizeof(uint32_t))
        if grown == NULL:
            raise MemoryError
        self.units = <uint32_t *>grown
        self.capacity = capacity
        return 0

    cdef uint64_t nearest(self, uint64_t index, uint64_t *offset) noexcept:
        # The last record known whose number is not above `index`, and where it starts.
        cdef uint64_t low = 0, high = self.count, middle
        while low < high:
            middle = (low + high) // 2
            if self.indexes[middle] <= index:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            offset[0] = SEGMENT_HEADER_SIZE
            return 0
        offset[0] = <uint64_t>self.units[low - 1] * UNIT
        return self.indexes[low - 1]
