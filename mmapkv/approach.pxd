from libc.stdint cimport uint64_t

from mmapio cimport _memory as memory
from mmapkv.bucket cimport candidates_of, lowest_bit
from mmapkv.format cimport (
    ADDRESS_BITS,
    BUCKETS,
    LINE,
    PAGE,
    SEGMENT_PAGES,
    address_offset,
    address_slot,
    tag_of,
    top_bits,
    word_page,
    word_tag_base,
)
from mmapkv.index cimport Hit, Index, Outcome
from mmapkv.slots cimport Slot


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


# For the one writer, by himself: hints, after which `find` costs less.

cdef inline uint64_t *bucket_line(Index index, uint64_t hash, uint64_t *word) noexcept nogil:
    # The first line of a key's bucket, and the directory word that led to it. NULL beyond what is mapped.
    cdef uint64_t root = index.state.root
    cdef uint64_t at = (root >> 8) * PAGE + 8 * top_bits(hash, root & 0x7F), page
    if at + 8 > index.limit:
        return NULL
    word[0] = (<uint64_t *>(index.base + at))[0]
    page = word_page(word[0])
    if (page + SEGMENT_PAGES) * PAGE > index.limit:
        return NULL
    return <uint64_t *>(index.base + page * PAGE + LINE + (hash & (BUCKETS - 1)) * LINE)


cdef inline void fetch_bucket(Index index, uint64_t hash) noexcept nogil:
    cdef uint64_t word
    cdef uint64_t *line = bucket_line(index, hash, &word)
    if line != NULL:
        memory.prefetch(line)


cdef inline void fetch_record(Index index, uint64_t hash) noexcept nogil:
    # The first in the bucket that may be of this key.
    cdef uint64_t word, offset
    cdef uint64_t *line = bucket_line(index, hash, &word)
    cdef unsigned int candidates
    cdef Slot *slot
    if line == NULL:
        return
    candidates = candidates_of(line, tag_of(hash, word_tag_base(word)))
    if candidates == 0:
        return
    word = line[lowest_bit(candidates)]
    slot = &index.slots.slots[address_slot(word)]
    offset = address_offset(word)
    if offset < slot.limit:
        memory.prefetch(slot.base + offset)
        memory.prefetch(slot.base + offset + LINE)
