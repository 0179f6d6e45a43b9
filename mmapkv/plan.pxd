from libc.stdint cimport uint8_t, uint32_t, uint64_t

from mmapkv.batch cimport Batch
from mmapkv.format cimport BUCKETS
from mmapkv.index cimport Index


cdef struct Room:
    # What is left of an index segment when the entries that were counted are in it. Of a bucket nothing is known before it is looked at.
    uint8_t lines[BUCKETS]      # of its chain; 0: not looked at
    uint8_t empty[BUCKETS]      # entries at the end of the last one
    uint64_t overflow_used


cdef class Plan:
    cdef Batch batch
    cdef uint32_t *newest       # an open hash table of 2^newest_bits, at most half full, of the changes of different keys: their numbers plus one
    cdef int newest_bits
    cdef uint64_t *fresh        # the hashes of the keys that have no entry yet
    cdef uint64_t *other        # as much again, to sort them
    cdef uint64_t count         # of these

    cdef void begin(self, Index index) noexcept nogil
    cdef int reserve(self, Index index) except -1


cdef Plan plan_of(Batch batch)
