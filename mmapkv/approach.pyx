# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Many look-ups side by side.

They go in steps, each taken by all keys before the next one, so that the memory which the next step needs is on its
way meanwhile: the bucket, the record. One after another they would wait for each.
"""

from libc.stdint cimport uint64_t

from mmapio cimport _memory as memory
from mmapkv.bucket cimport candidates_of, lowest_bit
from mmapkv.format cimport (
    ADDRESS_BITS,
    BUCKETS,
    ENTRIES,
    LINE,
    PAGE,
    ROOT_MOVED,
    SEGMENT_PAGES,
    address_offset,
    address_slot,
    tag_of,
    top_bits,
    word_page,
    word_tag_base,
)
from mmapkv.index cimport ABSENT, PRESENT, REPLACED, Hit, Index, Outcome, is_doubtful
from mmapkv.slots cimport Slot
from mmaplog.checksum cimport xxh3


cdef void approach(Index index, Probe *probes, uint64_t count) noexcept nogil:
    # All steps but the last, for the keys in `probes`.
    approach_buckets(index, probes, count)
    approach_records(index, probes, count)


cdef void approach_buckets(Index index, Probe *probes, uint64_t count) noexcept nogil:
    cdef uint64_t root = memory.load_acquire(&index.state.root), at, page, i
    cdef bint doubtful = is_doubtful(index)
    cdef Probe *probe
    for i in range(count):
        probe = &probes[i]
        probe.hash = xxh3(probe.key, probe.key_size, index.seed)
        probe.line = NULL
        probe.entry = 0
        probe.root = root
        at = (root >> 8) * PAGE + 8 * top_bits(probe.hash, root & 0x7F)
        if doubtful or root & ROOT_MOVED or at + 8 > index.limit:
            continue
        probe.place = <const uint64_t *>(index.base + at)
        probe.word = memory.load_acquire(probe.place)
        page = word_page(probe.word)
        if (page + SEGMENT_PAGES) * PAGE > index.limit or index.check_pages and not index.sound_page(page):
            continue
        probe.tag = tag_of(probe.hash, word_tag_base(probe.word))
        probe.line = <const uint64_t *>(index.base + page * PAGE + LINE + (probe.hash & (BUCKETS - 1)) * LINE)
        memory.prefetch(probe.line)


cdef void approach_records(Index index, Probe *probes, uint64_t count) noexcept nogil:
    cdef uint64_t offset, i
    cdef unsigned int candidates
    cdef Probe *probe
    cdef Slot *slot
    for i in range(count):
        probe = &probes[i]
        if probe.line == NULL:
            continue
        candidates = candidates_of(probe.line, probe.tag)
        if candidates == 0:
            continue
        probe.entry = memory.load_acquire(&probe.line[lowest_bit(candidates)])
        slot = &index.slots.slots[address_slot(probe.entry)]
        offset = address_offset(probe.entry)
        if offset < slot.limit:
            # Of a record of the usual size all; of a longer one the processor sees by itself what is wanted next.
            memory.prefetch(slot.base + offset)
            memory.prefetch(slot.base + offset + LINE)
            memory.prefetch(slot.base + offset + 2 * LINE)


cdef Outcome find_near(Index index, const Probe *probe, bint verify, Hit *hit) noexcept nogil:
    # The last step. What was approached may be out of date by now, but an entry that was in a bucket led to what its key had
    # at some time since then, whatever became of the bucket. That there is none has to be true of one moment.
    if probe.entry != 0:
        hit.address = probe.entry & ((<uint64_t>1 << ADDRESS_BITS) - 1)
        if index.match(hit.address, probe.key, probe.key_size, verify, hit) == PRESENT:
            return PRESENT
    elif probe.line != NULL and memory.load_acquire(&probe.line[ENTRIES]) == 0 and not candidates_of(probe.line, probe.tag):
        memory.fence_acquire()
        if memory.load_relaxed(probe.place) == probe.word and memory.load_relaxed(&index.state.root) == probe.root:
            return ABSENT
    if is_doubtful(index):
        return REPLACED
    return index.find(probe.hash, probe.key, probe.key_size, verify, hit)
