# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Going through a sealed segment of a store: which records stay; and copying one."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from mmapkv.format cimport (
    EXPIRY_SIZE,
    FLAG_CREATES,
    FLAG_EXPIRY,
    FLAG_PREVIOUS,
    KIND_CLEAR,
    KIND_DELETE,
    PAYLOAD_HEADER_SIZE,
    PREVIOUS_SIZE,
    PayloadHeader,
    make_address,
    previous_size,
)
from mmapkv.relocation cimport Fate, Ground, fate_of, fetch_bucket, split_payload
from mmaplog.checksum cimport xxh3
from mmaplog.draft cimport Draft
from mmaplog.format cimport FLAG_TIME, RECORD_HEADER_SIZE, TIME_SIZE, UNIT, Found, Record, RecordHeader, read_record
from mmaplog.segment cimport Segment


cdef enum:
    # So many records are looked up side by side.
    BLOCK = 32


cdef struct Seen:
    Record record
    PayloadHeader payload
    const char *key
    uint64_t hash


cdef Pause scan_some(Scan *scan, const Ground *ground, uint64_t records, uint64_t count) noexcept nogil:
    # Judges so many records. One that does not verify is damage: the segment is sealed.
    cdef Seen block[BLOCK]
    cdef Seen *seen
    cdef const Told *told
    cdef uint64_t *cell
    cdef uint64_t known, ahead, i
    cdef Fate fate
    while scan.offset < scan.end:
        if count < BLOCK:
            return MORE
        count -= BLOCK
        # The lines that are needed come from memory while others are asked for.
        known = 0
        ahead = scan.offset
        while known < BLOCK and ahead < scan.end:
            seen = &block[known]
            if (read_record(scan.base, ahead, scan.end, scan.id, scan.base_seq, True, &seen.record) != Found.RECORD
                    or not split_payload(&seen.record, &seen.payload, &seen.key) or scan.count + known >= records):
                if known == 0:
                    return DAMAGED_HERE
                break
            seen.hash = xxh3(seen.key, seen.payload.key_length, ground.seed)
            fetch_bucket(ground, seen.hash)
            ahead += seen.record.size
            known += 1
        for i in range(known):
            seen = &block[i]
            if seen.record.seq < scan.floor:
                drop(scan, &seen.record)
                continue
            if seen.payload.kind == KIND_CLEAR:
                judge_clear(scan, seen)
                continue
            fate = fate_of(ground, seen.hash, make_address(scan.slot, scan.offset), &cell)
            if fate == Fate.BEYOND:
                return OUTGROWN_HERE
            if fate == Fate.UNDECIDED:
                told = &scan.told[seen.hash % TOLD]
                if (told.key_size != seen.payload.key_length or seen.record.seq >= told.below
                        or memcmp(told.key, seen.key, told.key_size) != 0):
                    return ASKING
                settle(scan, &seen.record, &seen.payload, seen.record.seq == told.seq)
                continue
            if fate == Fate.CURRENT and not (seen.record.seq < scan.sweepable and may_go(scan, seen)):
                if seen.record.seq < scan.cleared:
                    # Somebody looks at the store as it was before that.
                    scan.held += seen.record.size
                keep(scan, &seen.record, &seen.payload, seen.payload.kind == KIND_DELETE or seen.record.seq < scan.cleared)
            else:
                if fate == Fate.CURRENT and not is_first(seen):
                    scan.swept = seen.record.seq + 1
                drop(scan, &seen.record)
    return DONE


cdef void settle(Scan *scan, const Record *record, const PayloadHeader *payload, bint reached) noexcept nogil:
    # What nothing leads to but, perhaps, a snapshot.
    if reached:
        scan.held += record.size
        keep(scan, record, payload, True)
    else:
        drop(scan, record)


cdef void judge_clear(Scan *scan, const Seen *seen) noexcept nogil:
    # A tombstone of all keys; an older one says nothing that a newer one does not.
    if scan.floor and (seen.record.seq < scan.clear_seq or seen.record.seq < scan.sweepable):
        if seen.record.seq >= scan.clear_seq:
            scan.swept = seen.record.seq + 1
        drop(scan, &seen.record)
        return
    if scan.floor == 0:
        scan.held += seen.record.size
    keep(scan, &seen.record, &seen.payload, True)


cdef bint may_go(const Scan *scan, const Seen *seen) noexcept nogil:
    # Though it is the newest of its key: a deletion, or what is over.
    cdef uint64_t expires
    if seen.payload.kind == KIND_DELETE:
        return True
    if not seen.payload.flags & FLAG_EXPIRY:
        return False
    memcpy(&expires, seen.key - EXPIRY_SIZE, sizeof(expires))
    return expires <= scan.expired


cdef bint is_first(const Seen *seen) noexcept nogil:
    # Whether the key was never put before, as far as the log went back then: who has no value of it misses nothing when this one leaves.
    return (seen.payload.flags & (FLAG_CREATES | FLAG_PREVIOUS)) == FLAG_CREATES


cdef void keep(Scan *scan, const Record *record, const PayloadHeader *payload, bint dead) noexcept nogil:
    cdef uint64_t link = previous_size(payload.flags), size = record.size
    scan.places[scan.count] = <uint32_t>(scan.offset // UNIT)
    scan.count += 1
    if record.seq < scan.needed:
        # Nobody goes that way any more.
        size -= link
        scan.removed_bytes += link
        link = 0
    scan.size += size
    if dead:
        scan.dead += size
    else:
        scan.dead += link
        scan.held += link
    scan.offset += record.size


cdef void drop(Scan *scan, const Record *record) noexcept nogil:
    scan.removed += 1
    scan.removed_bytes += record.size
    scan.offset += record.size


cdef bint copy_one(Segment source, const char *record, Draft target, uint64_t needed) noexcept nogil:
    # False when there is no place for it.
    cdef RecordHeader header
    cdef PayloadHeader payload
    cdef uint64_t head, size
    cdef char *place
    cdef bint trims
    memcpy(&header, record, sizeof(header))
    size = <uint64_t>header.length * UNIT
    head = RECORD_HEADER_SIZE + (TIME_SIZE if header.flags & FLAG_TIME else 0)
    memcpy(&payload, record + head, sizeof(payload))
    trims = payload.flags & FLAG_PREVIOUS and source.base_seq + header.seq < needed
    if trims and size > head + PAYLOAD_HEADER_SIZE + PREVIOUS_SIZE:
        size -= PREVIOUS_SIZE
    else:
        trims = False
    place = target.place(size)
    if place == NULL:
        return False
    if trims:
        payload.flags &= <uint8_t>~(FLAG_PREVIOUS | FLAG_CREATES)
        memcpy(place, record, head)
        memcpy(place + head, &payload, sizeof(payload))
        head += PAYLOAD_HEADER_SIZE
        memcpy(place + head, record + head + PREVIOUS_SIZE, size - head)
    else:
        memcpy(place, record, size)
    target.settle(source, size)
    return True
