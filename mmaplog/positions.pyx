# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""A sparse index of one segment, in memory: it is learnt by walking, and never wrong because it is never stored.

Records have no fixed size, so that the way to one leads over those before it. Walking a full segment of 64 MiB once costs
some milliseconds; from then on no look-up in it passes more than SPACING bytes. Eight bytes for each SPACING of them, whatever the
size of records: less than a hundredth of what is looked up in.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from mmaplog.format cimport SEGMENT_HEADER_SIZE, UNIT

cdef uint64_t FIRST_CAPACITY = 8
# So many guesses are made from how records lie on the average, before the rest is halved until it is found.
cdef int GUESSES = 4


cdef class Positions:
    """Where some of a segment's records start, SPACING bytes or more apart, as far as somebody has walked."""

    def __cinit__(self):
        self.grow()
        self.places[0].index = 0
        self.places[0].unit = SEGMENT_HEADER_SIZE // UNIT
        self.count = 1

    def __dealloc__(self):
        free(self.places)

    cdef int note(self, uint64_t index, uint64_t offset) except -1:
        # Of a record that a walk has come to, which began at one that `nearest` named. What is known, or too near to it, is left alone.
        if offset < <uint64_t>self.places[self.count - 1].unit * UNIT + SPACING:
            return 0
        if self.count == self.capacity:
            self.grow()
        self.places[self.count].index = <uint32_t>index
        self.places[self.count].unit = <uint32_t>(offset // UNIT)
        self.count += 1
        return 0

    cdef int grow(self) except -1:
        cdef uint64_t capacity = max(2 * self.capacity, FIRST_CAPACITY)
        cdef void *grown = realloc(self.places, capacity * sizeof(Place))
        if grown == NULL:
            raise MemoryError
        self.places = <Place *>grown
        self.capacity = capacity
        return 0

    cdef uint64_t nearest(self, uint64_t index, uint64_t *offset) noexcept:
        # The last record known whose number is not above `index`, and where it starts.
        cdef uint64_t low = 0, high = self.count - 1, middle, span
        cdef int guesses = GUESSES
        if self.places[high].index <= index:
            low = high
        # From here on it lies in [low, high): the one at `high` is above.
        while high > low + 1:
            if guesses:
                # Records are often of one size, or of many in no order.
                guesses -= 1
                span = self.places[high].index - self.places[low].index
                middle = low + (index - self.places[low].index) * (high - low) // span
                middle = min(max(middle, low + 1), high - 1)
            else:
                middle = (low + high) // 2
            if self.places[middle].index <= index:
                low = middle
            else:
                high = middle
        offset[0] = <uint64_t>self.places[low].unit * UNIT
        return self.places[low].index
