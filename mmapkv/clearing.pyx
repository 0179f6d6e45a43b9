# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Clearing a store: one record, however many keys there are; and taking what was cleared off the beginning of the log."""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from mmapio cimport _fault
from mmapio cimport _memory as memory
from mmapkv.clearance cimport Tally, count_left
from mmapkv.format cimport (
    BUCKETS,
    CLEAR_SIZE,
    ENTRIES,
    KIND_CLEAR,
    LINE,
    OVERFLOW_LINES,
    PAGE,
    PAYLOAD_HEADER_SIZE,
    SEGMENT_PAGES,
    SLOTS,
    PayloadHeader,
    address_slot,
    top_bits,
    word_depth,
    word_page,
)
from mmapkv.index cimport OUTGROWN, Hit, Index
from mmapkv.moment cimport read_moment, store_clear
from mmapkv.writer cimport NEVER_DUE, StoreWriter
from mmaplog.appender cimport record_size
from mmaplog.log cimport Log

from mmapio import _os as system
from mmapkv import hints

# So many segments of an index at a time are gone through while writers wait: less than a millisecond.
cdef uint64_t PIECE = 64


def clear(StoreWriter store not None, bint durable):
    """Delete every key: what :meth:`mmapkv.KVStore.clear` does."""
    if store.several:
        store.tell_rolled()
    write_clear(store, True, 0, durable, NULL)
    # Of a cache, what is superfluous now is looked at before anything is put.
    if store.due != NEVER_DUE:
        store.due = 0


cdef int write_clear(StoreWriter store, bint everything, uint64_t below, bint durable, const Tally *tally) except -1:
    # Deletes what was last written below number `below`, or `everything`. Nothing is written where nothing would change. `tally` says how much
    # that is, as far as somebody looked; or is NULL.
    cdef Log log = store.log
    cdef uint64_t seq, count, cleared, size = record_size(CLEAR_PAYLOAD_SIZE, False)
    cdef Index index = store.take_tail("a clear")
    try:
        read_moment(index.state, &seq, &count, &cleared)
        if count == 0 if everything else below <= cleared:
            return 0
        try:
            log.find_room(size, 1, True)
        except OSError as error:
            store.draw_room(size, 1, error)
        store.enter_tail(index)
        if everything:
            below = log.seq
        # The last that can fail.
        if tally != NULL and is_right(tally, index, log):
            index.add_dead(store.tail_slot, size)
            index.add_dead(tally.slot, tally.dead)
            count -= tally.keys
        else:
            count = count_left(index, log.segments, below, log.seq, store.tail_slot, log.end + size, size)
        lay_out_clear(log.begin(CLEAR_PAYLOAD_SIZE), below)
        log.commit(CLEAR_PAYLOAD_SIZE)
        # Committed. Until it is published, readers go by what was cleared before.
        store_clear(index.state, below, log.seq - 1)
        index.publish(log.seq, count)
        store.seen = log.seq
        log.bytes_pending += CLEAR_PAYLOAD_SIZE
        log.writes_pending += 1
        if _fault.faults() != store.faults:
            store.check_faults()
    finally:
        log.give_tail()
    log.flush_if_due(durable)
    return 0


cdef bint is_right(const Tally *tally, Index index, Log log) noexcept:
    # Whether nothing has changed since.
    return (tally.holds and tally.index == <void *>index and tally.seq == log.seq and index.state.moving == 0
            and tally.generation == log.segments.generation_now() and (tally.dead == 0 or tally.slot != SLOTS))


cdef void lay_out_clear(char *payload, uint64_t below) noexcept nogil:
    cdef PayloadHeader header
    header.key_length = 0
    header.kind = KIND_CLEAR
    header.flags = 0
    header.value_length = CLEAR_SIZE
    memcpy(payload, &header, sizeof(header))
    memcpy(payload + PAYLOAD_HEADER_SIZE, &below, sizeof(below))


def drop_head(Index index, Log log, uint64_t below):
    """Remove the segments in the log of which every record is below `below`, whose records nobody may look for any more.

    For who takes care of the log. Returns how many there were, the records in them, and the bytes that they had on the disk. Costs a
    look at each entry of the index, a sync of MANIFEST, and no look at a record. Killed in between, it can be done again. None, and nothing is
    removed, when another process has put another index in the place of this one.
    """
    cdef unsigned char doomed[SLOTS]
    cdef uint64_t slot, boundary = 0, first, records = 0, freed = 0
    log.segments.catch_up()
    listing = log.segments.listing()
    for entry in listing:
        if entry[0] <= below:
            boundary = entry[0]
    first = log.segments.first_seq
    if boundary <= first:
        return 0, 0, 0
    left = {entry.segment_id: entry.records for entry in log.segments.manifest.compacted}
    gone = {}
    for entry, after in zip(listing, listing[1:]):
        if entry[0] < boundary:
            gone[entry[1]] = entry[2]
            records += left.get(entry[1], after[0] - max(entry[0], first))
            freed += system.file_usage(log.segments.directory, entry[2])
    # A power cut that took the clear must not find that gone which it cleared.
    log.flush()
    memset(doomed, 0, sizeof(doomed))
    for slot in range(index.state.slots_used):
        doomed[slot] = index.slot_table[slot] in gone
    drop_entries(index, log, doomed)
    log.pause()
    try:
        if log.shared and index.retired:
            return None
        for slot in range(index.state.slots_used):
            if doomed[slot]:
                index.free_slot(slot)
        if log.shared:
            # Another process may be about to build an index, with the tail in hand: it would lead there.
            log.spend_if_full(lambda: log.truncate_to(boundary))
    finally:
        log.unpause()
    index.slots.drop_stale(index.slot_table)
    if not log.shared:
        log.spend_if_full(lambda: log.truncate_to(boundary))
    hints.sweep(log)
    return len(gone), records, freed


cdef int drop_entries(Index index, Log log, const unsigned char *doomed) except -1:
    # All that lead to a segment in one of these slots. By hashes, which holds whatever is split in between.
    cdef uint64_t cursor = 0
    cdef bint more = True, beyond
    cdef Hit hit
    while more:
        log.pause()
        try:
            more = drop_some(index, doomed, &cursor, &beyond)
        finally:
            log.unpause()
        if beyond:
            index.settle(OUTGROWN, &hit)
        index.region.check()
    return 0


cdef bint drop_some(Index index, const unsigned char *doomed, uint64_t *cursor, bint *beyond) noexcept:
    # Whether there is more to do.
    cdef uint64_t root = index.state.root, word, page, depth, left = PIECE, at
    cdef uint64_t *cells
    beyond[0] = False
    while left:
        left -= 1
        word = (<uint64_t *>(index.base + (root >> 8) * PAGE))[top_bits(cursor[0], root & 0x7F)]
        page = word_page(word)
        if (page + SEGMENT_PAGES) * PAGE > index.limit:
            beyond[0] = True
            return True
        cells = <uint64_t *>(index.base + page * PAGE + LINE)
        for at in range((BUCKETS + OVERFLOW_LINES) * (ENTRIES + 1)):
            if at % (ENTRIES + 1) != ENTRIES and cells[at] != 0 and doomed[address_slot(cells[at])]:
                memory.store_release(&cells[at], 0)
        depth = min(word_depth(word), root & 0x7F)
        if depth == 0:
            return False
        cursor[0] = (top_bits(cursor[0], depth) + 1) << (64 - depth)
        if cursor[0] == 0:
            return False
    return True
