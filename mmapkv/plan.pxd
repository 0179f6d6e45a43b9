from libc.stdint cimport uint32_t, uint64_t

from mmapkv.batch cimport Batch
from mmapkv.index cimport Index


cdef struct Claim:
    char *place                 # a bucket's first line, or an index segment; NULL: free
    uint64_t count              # of the entries, or overflow lines, that will be taken there


cdef class Plan:
    cdef Batch batch
    cdef Claim *claims          # an open hash table of 2^claim_bits, at most half full
    cdef Claim *others          # another one of that size
    cdef int claim_bits
    cdef uint32_t *newest       # likewise, of the changes of different keys: their numbers plus one
    cdef int newest_bits

    cdef void begin(self, Index index) noexcept
    cdef void reopen(self, char *segment) noexcept
    cdef bint claim(self, uint64_t hash, char *segment) noexcept
    cdef Claim *claim_of(self, char *place) noexcept


cdef Plan plan_of(Batch batch)
