from libc.stdint cimport uint64_t

from mmapio.region cimport Region
from mmapkv.format cimport PayloadHeader
from mmapkv.index cimport Index
from mmaplog.format cimport Record


# What became of a record, going by the index alone.
cdef enum Fate:
    CURRENT                     # an entry leads to it
    SUPERSEDED                  # none does, nor will any ever again, and nobody may look for it
    UNDECIDED                   # none does, but a snapshot might need it
    BEYOND                      # the index has grown beyond what is known of it here


cdef struct Ground:
    # An index as it is mapped for as long as somebody holds the region. Read without the GIL, beside a writer.
    char *base
    uint64_t limit
    uint64_t seed
    # For each slot an offset: whatever starts before it is older than any snapshot. NULL where that is not asked.
    const uint64_t *aged


cdef Region ground_of(Index index, Ground *ground)
cdef Fate fate_of(const Ground *ground, uint64_t hash, uint64_t address, uint64_t **cell) noexcept nogil
cdef void fetch_bucket(const Ground *ground, uint64_t hash) noexcept nogil
cdef int forget(Index index, uint64_t segment_id) except -1
cdef bint split_payload(const Record *record, PayloadHeader *payload, const char **key) noexcept nogil
