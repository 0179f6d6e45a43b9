# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Leading the entries of an index from segments that were compacted to the one that stands in their place.

The State names that one before MANIFEST lists it. From then on whoever opens the store can do the same again: the old
segments stay until all entries have been led elsewhere.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from mmapio cimport _memory as memory
from mmapio.region cimport Region
from mmapkv.format cimport (
    ADDRESS_BITS,
    BUCKETS,
    ENTRIES,
    KIND_CLEAR,
    KIND_PUT,
    LINE,
    OVERFLOW_LINES,
    PAGE,
    PAYLOAD_FLAG_KNOWN,
    PAYLOAD_HEADER_SIZE,
    SEGMENT_PAGES,
    SLOTS,
    STATE_OFFSET,
    PayloadHeader,
    State,
    address_offset,
    address_slot,
    head_size,
    make_address,
    previous_size,
    tag_of,
    top_bits,
    value_offset,
    word_page,
    word_tag_base,
)
from mmapkv.index cimport Index
from mmapkv.moment cimport store_count
from mmapkv.slots cimport known_slot
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport SEGMENT_HEADER_SIZE, Found, Record, read_record
from mmaplog.log cimport Log
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet

from mmaplog.errors import CorruptionError
from mmaplog.segment import list_segments, open_segment

# So many records at a time are led elsewhere while writers wait: about a millisecond.
cdef uint64_t PIECE = 4_096

cdef enum:
    # So many of them are looked up side by side.
    BLOCK = 32


cdef struct Cursor:
    # Going through an old segment and the new one side by side, by their numbers.
    const char *old
    uint64_t old_limit
    uint64_t old_id
    uint64_t old_base
    uint64_t old_slot
    uint64_t old_offset
    const char *new
    uint64_t new_limit
    uint64_t new_id
    uint64_t new_base
    uint64_t new_slot
    uint64_t new_offset
    uint64_t stop               # the first number that is not in the old segment any more
    uint64_t dead               # bytes of copies that nothing leads to, and of ways back
    uint64_t gone               # keys that are not counted any more: their value had expired
    bint beyond


cdef struct Move:
    # A record of the old segment, to be looked for in the index.
    uint64_t seq
    uint64_t address
    uint64_t hash
    uint64_t size
    int kind
    int flags


cdef Region ground_of(Index index, Ground *ground):
    # Holding what is returned keeps it mapped, should the index be mapped anew elsewhere meanwhile.
    ground.base = index.base
    ground.limit = index.limit
    ground.seed = index.seed
    ground.aged = NULL
    return index.region


cdef Fate fate_of(const Ground *ground, uint64_t hash, uint64_t address, uint64_t **cell) noexcept nogil:
    cdef State *state = <State *>(ground.base + STATE_OFFSET)
    cdef uint64_t root, word, entry, link, page, tag, other
    cdef uint64_t *place
    cdef uint64_t *line
    cdef char *lines
    cdef Fate fate
    cdef int hops, i
    while True:
        root = memory.load_acquire(&state.root)
        place = <uint64_t *>(ground.base + (root >> 8) * PAGE) + top_bits(hash, root & 0x7F)
        if <uint64_t>(<char *>place - ground.base) + 8 > ground.limit:
            return BEYOND
        word = memory.load_acquire(place)
        page = word_page(word)
        if (page + SEGMENT_PAGES) * PAGE > ground.limit:
            return BEYOND
        lines = ground.base + page * PAGE + LINE
        line = <uint64_t *>(lines + (hash & (BUCKETS - 1)) * LINE)
        tag = tag_of(hash, word_tag_base(word))
        fate = SUPERSEDED
        hops = 0
        while fate != CURRENT:
            for i in range(ENTRIES):
                entry = memory.load_acquire(&line[i])
                if entry == tag << ADDRESS_BITS | address:
                    cell[0] = &line[i]
                    fate = CURRENT
                    break
                if entry >> ADDRESS_BITS == tag and entry != 0 and ground.aged != NULL:
                    # Perhaps of the same key. It is as old as what it made superfluous, or newer.
                    other = entry & ((<uint64_t>1 << ADDRESS_BITS) - 1)
                    if address_offset(other) >= ground.aged[address_slot(other)]:
                        fate = UNDECIDED
            link = memory.load_acquire(&line[ENTRIES])
            hops += 1
            if link == 0 or link > OVERFLOW_LINES or hops > OVERFLOW_LINES:
                break
            line = <uint64_t *>(lines + (BUCKETS - 1 + link) * LINE)
        # As for every reader: a split may have gone by.
        memory.fence_acquire()
        if memory.load_relaxed(place) == word and memory.load_relaxed(&state.root) == root:
            return fate


cdef void fetch_bucket(const Ground *ground, uint64_t hash) noexcept nogil:
    # A hint: whatever is there now.
    cdef uint64_t root = memory.load_acquire(&(<State *>(ground.base + STATE_OFFSET)).root)
    cdef uint64_t *place = <uint64_t *>(ground.base + (root >> 8) * PAGE) + top_bits(hash, root & 0x7F)
    if <uint64_t>(<char *>place - ground.base) + 8 <= ground.limit:
        memory.prefetch(ground.base + word_page(place[0]) * PAGE + LINE + (hash & (BUCKETS - 1)) * LINE)


cdef bint split_payload(const Record *record, PayloadHeader *payload, const char **key) noexcept nogil:
    # False for what no store writes.
    if record.payload_size < PAYLOAD_HEADER_SIZE:
        return False
    memcpy(payload, record.payload, sizeof(payload[0]))
    if payload.flags & ~<unsigned int>PAYLOAD_FLAG_KNOWN or not KIND_PUT <= payload.kind <= KIND_CLEAR:
        return False
    key[0] = record.payload + head_size(payload.flags)
    return (payload.key_length == 0) == (payload.kind == KIND_CLEAR) and record.payload_size == value_offset(payload.flags, payload.key_length) + payload.value_length


cdef int relocate_some(Cursor *at, const Ground *ground, uint64_t count) noexcept nogil:
    # 1 when there is more to do. Nobody writes meanwhile.
    cdef Record old
    cdef PayloadHeader payload
    cdef const char *key
    cdef Move moves[BLOCK]
    cdef uint64_t known, i
    cdef bint over = False
    while count >= BLOCK and not over:
        # The lines that are needed come from memory while others are asked for.
        known = 0
        while known < BLOCK:
            if read_record(at.old, at.old_offset, at.old_limit, at.old_id, at.old_base, False, &old) != Found.RECORD or old.seq >= at.stop:
                over = True
                break
            if split_payload(&old, &payload, &key):
                moves[known].seq = old.seq
                moves[known].size = old.size
                moves[known].kind = payload.kind
                moves[known].flags = payload.flags
                moves[known].address = make_address(at.old_slot, at.old_offset)
                moves[known].hash = xxh3(key, payload.key_length, ground.seed)
                fetch_bucket(ground, moves[known].hash)
                known += 1
            at.old_offset += old.size
        for i in range(known):
            if not relocate(at, ground, &moves[i]):
                at.beyond = True
                return 0
        count -= BLOCK
    return 0 if over else 1


cdef bint relocate(Cursor *at, const Ground *ground, const Move *move) noexcept nogil:
    # False when the index leads beyond its end.
    cdef State *state = <State *>(ground.base + STATE_OFFSET)
    cdef Record new
    cdef uint64_t *cell = NULL
    cdef Fate fate = SUPERSEDED
    if move.kind != KIND_CLEAR:
        fate = fate_of(ground, move.hash, move.address, &cell)
    if fate == BEYOND:
        return False
    while (read_record(at.new, at.new_offset, at.new_limit, at.new_id, at.new_base, False, &new) == Found.RECORD
           and new.seq < move.seq):
        at.new_offset += new.size
    if at.new_offset < at.new_limit and new.seq == move.seq:
        if fate != CURRENT or move.kind != KIND_PUT or move.seq < state.cleared:
            at.dead += new.size
        elif new.size == move.size:
            # Somebody may yet go the way back from it.
            at.dead += previous_size(move.flags)
        if fate == CURRENT:
            memory.store_release(cell, cell[0] >> ADDRESS_BITS << ADDRESS_BITS | make_address(at.new_slot, at.new_offset))
    elif fate == CURRENT:
        # What was left out: a tombstone, what was cleared, or a value that had expired. That one is in the count, unless a clear that was
        # published took it out.
        if move.kind == KIND_PUT and move.seq >= state.shown[state.turn & 1]:
            memory.store_release(&state.counting, 1)
            at.gone += 1
        memory.store_release(cell, 0)
    return True


def begin(Index index, Log log, uint64_t segment_id):
    """Say which segment is about to be listed in MANIFEST, and make it known to the index. StoreError when there are too many."""
    log.pause()
    try:
        index.slot_of(segment_id)
        memory.store_release(&index.state.moving, segment_id)
    finally:
        log.unpause()


def give_up(Index index, Log log):
    """Take back what `begin` said of a segment that did not come to be listed."""
    log.pause()
    try:
        take_back(index)
    finally:
        log.unpause()


cdef int take_back(Index index) except -1:
    forget(index, index.state.moving)
    memory.store_release(&index.state.moving, 0)
    return 0


cdef int forget(Index index, uint64_t segment_id) except -1:
    # No entry leads to it any more, if one ever did.
    cdef uint64_t slot
    for slot in range(index.state.slots_used):
        if index.slot_table[slot] == segment_id:
            index.free_slot(slot)
    return 0


def carry_out(Index index, Log log, listed, bint paused, olds=None):
    """Lead every entry that leads to a segment within the range of `listed` to that one; then these slots are free.

    False, and nothing is certain but that the index must be built anew, when one of their files is missing. With `paused`
    nobody can write anyway. `olds` are those segments; without, they are looked for. Doing it again changes nothing. Costs some 0.3 us a record; writers wait for a millisecond at most.
    """
    cdef SegmentSet segments = log.segments
    cdef Segment made, segment
    cdef Ground ground
    cdef Cursor at
    cdef Region held
    cdef uint64_t slot, left = 0
    cdef uint64_t seq, count
    cdef int more
    made = segments.by_id(listed.segment_id)
    at.new = made.base
    at.new_limit = made.limit
    at.new_id = made.id
    at.new_base = made.base_seq
    at.stop = listed.stop
    at.dead = 0
    if olds is None:
        olds = [
            open_segment(segments.directory, name, segments.log_uuid, False)
            for base_seq, segment_id, name in list_segments(segments.directory)
            if listed.base_seq <= base_seq < listed.stop and segment_id != listed.segment_id]
    if not paused:
        log.pause()
    try:
        # Now that nobody rolls, each segment that the index knows is known here.
        at.new_slot = index.slot_of(made.id)
        counting = {segment_id for _, segment_id, _ in segments.listing()}.union(each.id for each in olds)
        for slot in range(index.state.slots_used):
            if index.slot_table[slot] != 0 and index.slot_table[slot] not in counting:
                return False
    finally:
        if not paused:
            log.unpause()
    for segment in olds:
        slot = known_slot(index.state, index.slot_table, segment.id)
        if slot == SLOTS:
            continue
        at.old = segment.base
        at.old_limit = segment.limit
        at.old_id = segment.id
        at.old_base = segment.base_seq
        at.old_slot = slot
        at.old_offset = SEGMENT_HEADER_SIZE
        at.new_offset = SEGMENT_HEADER_SIZE
        more = 1
        while more:
            if not paused:
                log.pause()
            try:
                if index.state.end > index.limit:
                    index.follow()
                held = ground_of(index, &ground)
                at.beyond = False
                at.gone = 0
                with nogil:
                    more = relocate_some(&at, &ground, PIECE)
                if at.gone:
                    index.applied(&seq, &count)
                    store_count(index.state, count - at.gone)
            finally:
                if not paused:
                    log.unpause()
            if at.beyond:
                raise CorruptionError("the index leads beyond its end; delete it, it is rebuilt from the log", index.file.path)
        segment.region.check()
        made.region.check()
        held.check()
    if not paused:
        log.pause()
    try:
        # Copies that were superseded before they were led to.
        index.add_dead(at.new_slot, at.dead)
        for segment in olds:
            forget(index, segment.id)
        memory.store_release(&index.state.counting, 0)
        memory.store_release(&index.state.moving, 0)
    finally:
        if not paused:
            log.unpause()
    index.slots.drop_stale(index.slot_table)
    return True


def is_settled(Index index):
    """Whether no compaction is in the middle of leading entries elsewhere, or was killed there."""
    return memory.load_acquire(&index.state.moving) == 0 and memory.load_acquire(&index.state.counting) == 0


def finish(Index index, Log log):
    """Carry out what a killed compaction has begun, for who keeps all others from writing. False when the index must be built anew.

    That is also when a segment is gone that the index knows. While nobody else compacts.
    """
    cdef uint64_t slot, moving = index.state.moving
    if index.state.counting:
        return False
    if moving:
        for listed in log.segments.manifest.compacted:
            if listed.segment_id == moving:
                return carry_out(index, log, listed, True)
        take_back(index)
    counting = {segment_id for _, segment_id, _ in log.segments.listing()}
    for slot in range(index.state.slots_used):
        if index.slot_table[slot] != 0 and index.slot_table[slot] not in counting:
            return False
    return True
