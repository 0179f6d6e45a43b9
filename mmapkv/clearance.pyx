# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""What a clear does to an index: which keys are left, and what of the log nobody needs any more."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from mmapkv.format cimport CLEAR_SIZE, KIND_PUT, PAYLOAD_HEADER_SIZE, PayloadHeader
from mmapkv.index cimport ABSENT, PRESENT, Hit, Index, Outcome
from mmapkv.moment cimport read_moment
from mmapkv.relocation cimport split_payload
from mmapkv.slots cimport Slot
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport SEGMENT_HEADER_SIZE, UNIT, Record
from mmaplog.replay cimport Replay
from mmaplog.segment_set cimport SegmentSet


# So many units no segment has: its last record begins below 2^OFFSET_BITS of them, and has no more than 2^29.
cdef uint64_t UNITS_MAX = 1 << 30


cdef uint64_t bound_of(const Record *record) noexcept nogil:
    # Of a clear: the number below which every record counts as deleted.
    cdef uint64_t below
    memcpy(&below, record.payload + PAYLOAD_HEADER_SIZE, sizeof(below))
    return below


cdef bint is_clear(const Record *record, const PayloadHeader *payload) noexcept nogil:
    # Whether what says so of itself is one: of no key, and not of records that come after it.
    return (payload.key_length == 0 and payload.flags == 0 and payload.value_length == CLEAR_SIZE
            and record.payload_size == PAYLOAD_HEADER_SIZE + CLEAR_SIZE and bound_of(record) <= record.seq)


cdef uint64_t count_left(
        Index index, SegmentSet segments, uint64_t below, uint64_t seq, uint64_t slot, uint64_t end, uint64_t size
) except? 0xFFFFFFFFFFFFFFFF:
    # How many keys are present once record `seq` clears what is below `below`; what it makes superfluous is counted as that. The record, of
    # `size` bytes, ends at `end` of the segment with this slot. Nobody writes meanwhile. Costs a look at each slot for a clear of everything,
    # for another one a look-up for each record that it is of.
    cdef uint64_t visible, count, start, at
    cdef Slot *row
    cdef Replay replay
    cdef Record record
    cdef PayloadHeader payload
    cdef const char *key
    cdef Hit hit
    read_moment(index.state, &visible, &count, &start)
    if below >= seq:
        for at in range(index.state.slots_used):
            row = &index.slots.slots[at]
            if at == slot:
                index.dead[at] = <uint32_t>((end - SEGMENT_HEADER_SIZE) // UNIT)
            elif index.slot_table[at] != 0:
                # How large that is which was never mapped here is not known: more than any can be.
                index.dead[at] = <uint32_t>(row.limit // UNIT if row.id == index.slot_table[at] else UNITS_MAX)
        return 0
    index.add_dead(slot, size)
    start = max(start, segments.first())
    if start >= below:
        return count
    replay = Replay(segments, start, below, False, 0)
    while replay.read(&record, False):
        if not split_payload(&record, &payload, &key) or payload.kind != KIND_PUT:
            continue
        if leads_to(index, key, payload.key_length, record.seq, &hit):
            count -= 1
            # What is still to be led to a copy is counted there when it is.
            index.add_dead(hit.slot, index.superseded_size(&hit))
    replay.segment.region.check()
    return count


cdef bint leads_to(Index index, const char *key, uint64_t key_size, uint64_t seq, Hit *hit) except -1:
    # Whether this is the newest record of its key. By its number: a compaction may be leading the index to copies just now.
    cdef Outcome outcome
    while True:
        outcome = index.find(xxh3(key, key_size, index.seed), key, key_size, False, hit)
        if outcome == PRESENT:
            return hit.seq == seq
        if outcome == ABSENT:
            return False
        index.settle(outcome, hit)
