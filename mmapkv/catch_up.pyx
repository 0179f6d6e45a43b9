# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Bringing an index up to its log: after a killed writer by a few records, from nothing by all of them."""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from mmapio cimport _memory as memory
from mmapkv.clearance cimport bound_of, count_left, is_clear
from mmapkv.dead_bytes cimport add_written, superseded_size
from mmapkv.format cimport (
    ADDRESS_BITS,
    FLAG_CREATES,
    FLAG_EXPIRY,
    KIND_CLEAR,
    KIND_DELETE,
    KIND_PUT,
    PAYLOAD_FLAG_KNOWN,
    PAYLOAD_HEADER_SIZE,
    PayloadHeader,
    head_size,
    make_address,
    value_offset,
)
from mmapkv.index cimport ABSENT, PRESENT, Hit, Index, Outcome
from mmapkv.moment cimport store_clear
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport FLAG_BATCH, FLAG_BATCH_END, Record
from mmaplog.replay cimport Replay

from mmaplog.errors import CorruptionError, FormatError


cdef int parse(Record *record, Replay replay, PayloadHeader *payload, const char **key) except -1:
    # Splits a verified record of a store into its parts, or says why it is none. The key of a clear has no bytes.
    cdef uint64_t value_at
    if record.payload_size < PAYLOAD_HEADER_SIZE:
        raise FormatError(f"record {record.seq} is too short for a store's; is this a plain log?", replay.segment.path)
    memcpy(payload, record.payload, sizeof(payload[0]))
    if payload.kind not in (KIND_PUT, KIND_DELETE, KIND_CLEAR) or payload.flags & ~<unsigned int>PAYLOAD_FLAG_KNOWN:
        raise FormatError(
            f"record {record.seq} is of kind {payload.kind} with flags {payload.flags:#x}, which this code does not know; "
            "upgrade mmapkv, or is this a plain log?", replay.segment.path)
    key[0] = record.payload + head_size(payload.flags)
    value_at = value_offset(payload.flags, payload.key_length)
    if (not is_clear(record, payload) if payload.kind == KIND_CLEAR
            else payload.key_length == 0 or record.payload_size != value_at + payload.value_length):
        raise CorruptionError(f"record {record.seq} verifies but its lengths do not add up", replay.segment.path)
    return 0


def catch_up(Index index, Replay replay):
    """Enter the records of `replay` into an index that holds all before them. Costs about one put each, writing no log.

    Doing a record again that had been entered, but not counted, changes nothing else. A batch is published as a whole:
    readers may be looking on. Keys are counted as they come and go, not by what the records say of that: where a repair lost some, the
    others know nothing of it.
    """
    cdef Record record
    cdef PayloadHeader payload
    cdef const char *key
    cdef uint64_t seq, count, slot = 0, segment_id = 0
    cdef bint in_batch = False
    index.applied(&seq, &count)
    while replay.read(&record, True):
        parse(&record, replay, &payload, &key)
        if replay.segment.id != segment_id:
            segment_id = replay.segment.id
            slot = index.slot_of(segment_id)
        if payload.kind == KIND_CLEAR:
            # What it takes away is told by what readers were shown before: of a clear that was not published yet the index may know.
            count = count_left(index, replay.segments, bound_of(&record), record.seq, slot, replay.offset, record.size)
            store_clear(index.state, max(bound_of(&record), index.state.cleared), record.seq)
        else:
            enter(index, &record, &payload, key, slot, replay.offset - record.size, &count)
        seq = record.seq + 1
        in_batch = record.flags & FLAG_BATCH and not record.flags & FLAG_BATCH_END
        if not in_batch:
            index.publish(seq, count)
    # Compaction may have removed the last ones, or the last of a batch, and a repair may have found none there; what is committed is whole.
    if in_batch or seq < replay.stop:
        index.publish(max(seq, <uint64_t>replay.stop), count)


cdef int enter(
        Index index, const Record *record, const PayloadHeader *payload, const char *key, uint64_t slot, uint64_t offset,
        uint64_t *count) except -1:
    # Leads the index to the record at `offset` of the segment in `slot`, and counts keys by what was there before.
    cdef uint64_t hash = xxh3(key, payload.key_length, index.seed), address = make_address(slot, offset), tag
    cdef uint64_t *cell
    cdef bint present = False   # the key, before this record
    cdef bint again = False
    cdef Hit hit
    cdef Outcome outcome
    while True:
        outcome = index.find(hash, key, payload.key_length, False, &hit)
        if outcome == PRESENT:
            # What it was before is known by the record alone where it, or a later one, had been entered.
            again = hit.seq >= record.seq
            present = not hit.deleted and hit.seq >= index.state.cleared
            if hit.address != address:
                if present:
                    index.add_dead(hit.slot, superseded_size(index, &hit))
                add_written(index, slot, payload.kind, payload.flags, record.size)
                tag = hit.cell[0] >> ADDRESS_BITS << ADDRESS_BITS
                memory.store_release(hit.cell, tag | address)
            break
        if outcome == ABSENT:
            cell = index.place(hash, &tag)
            if cell != NULL:
                add_written(index, slot, payload.kind, payload.flags, record.size)
                memory.store_release(cell, tag | address)
                break
            if index.has_room():
                index.split(hash)
            else:
                index.make_room()
        else:
            index.settle(outcome, &hit)
    if payload.flags & FLAG_EXPIRY:
        index.state.expiring = record.seq + 1
    # What it says of itself counts only where the index cannot tell any more: of what was there before, compaction leaves nothing.
    if again:
        present = payload.kind == KIND_DELETE or not payload.flags & FLAG_CREATES
    if payload.kind == KIND_PUT:
        count[0] += not present
    else:
        count[0] -= present
    return 0
