# A mapped file in pieces of equal length.

from libc.stdint cimport uint64_t

from mmapio.region cimport Link, Region


cdef class Chunks:
    cdef Region region
    cdef uint64_t at
    cdef uint64_t end
    cdef uint64_t step
    cdef bint owned             # gives copies, not views
    cdef Link link
