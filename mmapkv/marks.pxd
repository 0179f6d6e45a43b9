cimport cython
from libc.stdint cimport uint8_t, uint64_t

from mmapio.mapping cimport MappedFile


@cython.final
cdef class Marks:
    cdef MappedFile file        # keeps mapped what `bits` points to
    cdef uint8_t *bits
    cdef uint64_t mask          # their number is a power of two
    cdef uint64_t stride        # of them for a log segment

    cdef inline void note(self, uint64_t slot, uint64_t offset) noexcept nogil:
        # The record there was read. Not atomic: of two that are noted in one byte at once, one may be lost, and is evicted in the worst case.
        cdef uint64_t at = (slot * self.stride + offset // MARK_BYTES) & self.mask
        cdef uint8_t bit = <uint8_t>(1 << (at & 7))
        if not self.bits[at >> 3] & bit:
            self.bits[at >> 3] |= bit

    cdef inline bint seen(self, uint64_t slot, uint64_t offset) noexcept nogil:
        cdef uint64_t at = (slot * self.stride + offset // MARK_BYTES) & self.mask
        return self.bits[at >> 3] >> (at & 7) & 1

    cdef void forget(self, uint64_t slot) noexcept nogil


cdef enum:
    # A bit for each stretch of so many bytes in which a record may begin; few records are smaller.
    MARK_BYTES = 64
