from libc.stdint cimport uint64_t

from mmapkv.format cimport ADDRESS_BITS
from mmapkv.index cimport Hit, Index, Outcome


# A key on its way to its record, one of many.
cdef struct Probe:
    const char *key
    uint64_t key_size           # may be one that no key has
    uint64_t hash
    uint64_t tag
    uint64_t root
    const uint64_t *place       # the directory word
    uint64_t word
    const uint64_t *line        # the bucket's first; NULL when the look-up had better find the way by itself
    uint64_t entry              # the first in that line with this tag, or 0


cdef void approach(Index index, Probe *probes, uint64_t count) noexcept nogil
cdef void approach_buckets(Index index, Probe *probes, uint64_t count) noexcept nogil
cdef void approach_records(Index index, Probe *probes, uint64_t count) noexcept nogil
cdef Outcome find_near(Index index, const Probe *probe, bint verify, Hit *hit) noexcept nogil


cdef inline bint leads_to(const Probe *probe, uint64_t address) noexcept nogil:
    # Whether the record at this address was the newest of its key at some time since it was approached. False says nothing.
    return probe.entry != 0 and probe.entry & ((<uint64_t>1 << ADDRESS_BITS) - 1) == address
