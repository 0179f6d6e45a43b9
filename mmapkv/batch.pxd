from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from mmapkv.writer cimport StoreWriter


cdef enum Fate:
    OPEN                        # to be looked up
    PLANNED
    VOID                        # nothing is to be written: a later change of the batch has the same key, or it deletes what is absent


cdef struct Change:
    # What is to become of a key, ...
    const char *key
    const char *value
    uint64_t expires            # nanoseconds since 1970, or 0
    uint32_t value_size
    uint16_t key_size
    uint8_t kind
    # ... and what was found out about that, with the tail of the log in hand.
    uint8_t flags
    Fate fate
    uint32_t superseded         # units of 8 bytes of the record before, unless they are counted as such already
    uint64_t hash
    uint64_t *cell              # the entry; NULL for a new key
    uint64_t previous_seq
    uint64_t previous


cdef class Batch:
    cdef StoreWriter store
    cdef bint durable
    cdef bint clears            # everything that is there goes first
    cdef bint over              # it was committed, or given up
    cdef list objects           # keeps what `changes` points into
    cdef Change *changes
    cdef uint64_t count
    cdef uint64_t capacity

    cdef int add(self, int kind, key, value, uint64_t expires) except -1
    cdef int refuse_late(self) except -1
