from libc.stdint cimport uint64_t

from mmapkv.writer cimport StoreWriter, Version


cdef enum Fate:
    OPEN                        # to be looked up
    PLANNED
    VOID                        # nothing is to be written: a later change of the batch has the same key, or it deletes what is absent


cdef struct Change:
    # What is to become of a key, ...
    Version version
    # ... and what was found out about that, with the tail of the log in hand.
    uint64_t hash
    Fate fate
    int flags
    char *segment               # of the index, in which its entry is or will be, ...
    char *line                  # ... and the line to begin with
    uint64_t *cell              # the entry; NULL for a new key
    uint64_t tag
    uint64_t previous_seq
    uint64_t previous
    uint64_t superseded         # bytes of that record, unless they are counted as such already
    uint64_t address            # where its record was written


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


cdef Batch batch_of(StoreWriter store, bint durable)
