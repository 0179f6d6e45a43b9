# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False, cdivision=True
"""Keeping a store within a number of bytes, as a cache: what is oldest goes, unless it was read.

The log is the queue. A hand goes over it from its beginning: a record that was read since it was written is written once more, at
the end, and any other that is current is evicted. That is CLOCK, also called FIFO with reinsertion. After: F. Corbato, A paging experiment with the
Multics system, 1968; that it keeps up with LRU and better on the traces of web caches: J. Yang et al., FIFO queues are all you need for cache
eviction, SOSP 2023, and Y. Zhang et al., SIEVE is simpler than LRU, NSDI 2024, whose hand leaves in place what it spares, which a log
cannot. What the hand has gone over is cleared by one record, and whole segments of that are removed.
"""

from collections import deque

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from mmapio._os cimport now_ns
from mmapkv.clearance cimport Tally
from mmapkv.clearing cimport write_clear
from mmapkv.format cimport EXPIRY_SIZE, FLAG_EXPIRY, KIND_PUT, PAGE, SLOTS, PayloadHeader
from mmapkv.index cimport ABSENT, PRESENT, Hit, Index, Outcome
from mmapkv.marks cimport Marks
from mmapkv.moment cimport read_moment
from mmapkv.relocation cimport split_payload
from mmapkv.slots cimport known_slot
from mmapkv.writer cimport Spot, StoreWriter, Version
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport SEGMENT_HEADER_SIZE, UNIT, Footer, Found, Record, read_record
from mmaplog.log cimport Log
from mmaplog.replay cimport Replay
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet

from mmapkv.clearing import drop_head
from mmaplog.errors import CorruptionError

# Of `max_bytes`: how much is written between two looks at what there is, ...
cdef uint64_t STEP_PART = 64
cdef uint64_t STEP_MAX = 64 << 10
# ... and how much is kept free, so that no put must wait until as much as it needs has been evicted.
cdef uint64_t SLACK_PART = 32
# For each byte that is to be written the hand goes over so many.
cdef uint64_t WORK = 8
# For each byte that it frees it may spare so many, and save up for a run of records that were all read; of that, it is through before
# what is kept free has been used up.
cdef uint64_t SPARED = 3
cdef uint64_t SPARED_PART = 4
# The log without what the hand has gone over has so many eighths of `max_bytes` at most.
cdef uint64_t LOG_EIGHTHS = 11
# From so many eighths on it is looked for what has expired, so many bytes for each that is to be written.
cdef uint64_t REAP_EIGHTHS = 6
cdef uint64_t REAP_WORK = 4
# So much of what the hand has gone over may be on the disk before a put waits for its removal, which begins at a part of that: it costs
# some syncs, however much there is.
cdef uint64_t BEHIND_PART = 4
cdef uint64_t BEHIND_LEAST = 4 << 20
cdef uint64_t BEGIN_PART = 4
# At a time, between which other threads may write.
cdef uint64_t PIECE = 64 << 10
# What a file has on the disk beside its records: a header, what is left of the last page, and a page behind that.
cdef uint64_t AROUND = SEGMENT_HEADER_SIZE + 2 * PAGE


cdef struct Extent:
    # A segment, and the bytes of its records.
    uint64_t id
    uint64_t stop               # the number after its last, of the one that is written to the highest there is
    uint64_t slot               # SLOTS when the index has given it none yet
    uint64_t size


cdef class Eviction:
    """What a store does for its bound.

    Records that are current take at most `max_bytes`, with all that the format adds to key and value; the log three eighths as much again,
    what waits to be removed, and two segments. More only while a snapshot or walk needs it.
    """

    cdef readonly uint64_t max_bytes
    cdef readonly uint64_t evicted  # by this handle
    cdef object remover         # whose thread calls `remove`
    cdef bint second_chances
    cdef bint busy              # a thread is at it
    cdef uint64_t step
    cdef uint64_t live          # bytes of current records, ...
    cdef uint64_t size          # ... of all that the hand has not gone over, ...
    cdef uint64_t passed        # ... and of segments that it has
    cdef uint64_t passed_stop   # where the last of these ends, ...
    cdef uint64_t asked_stop    # ... and did when their removal was last asked for
    cdef bint held              # some are there for a snapshot
    cdef uint64_t credit        # bytes that may be spared
    cdef uint64_t reaper        # from here on it is looked for what has expired, ...
    cdef bint reaped            # ... and on the way there was something that can
    cdef uint64_t below         # what the last clear was below of
    cdef object clears          # (number of a clear, what it is below of), of those not yet removed from the log
    cdef Replay hand            # what reads where the hand is, ...
    cdef uint64_t generation    # ... by segments as they were then
    cdef uint64_t hand_id       # in which segment it is, ...
    cdef uint64_t hand_at       # ... and how many bytes of it that has gone over
    cdef list names             # of segments, when that was last looked at, ...
    cdef uint64_t changes       # ... after so many of this handle's own, ...
    cdef Index index            # ... by this index
    cdef uint64_t tail_id       # the one that was written to then
    cdef Extent *extents
    cdef uint64_t count
    cdef uint64_t capacity

    def __init__(self, remover, uint64_t max_bytes, policy):
        self.remover = remover
        self.max_bytes = max_bytes
        self.second_chances = policy == "clock"
        self.step = min(max_bytes // STEP_PART, STEP_MAX)
        self.credit = max_bytes // SPARED_PART
        self.clears = deque()

    def __dealloc__(self):
        free(self.extents)

    def figures(self, StoreWriter store not None):
        """Counts for `stats`."""
        if not self.busy:
            self.measure(store)
        return {"max_bytes": self.max_bytes, "live_bytes": self.live, "evictions": self.evicted}

    def make_way(self, StoreWriter store not None, uint64_t need):
        """See to it that `need` bytes, and a little more, can be written. Costs a look at some eight times as many, now and then a sync."""
        cdef uint64_t left = WORK * (need + self.step), done, ahead = self.step
        if not self.busy:
            self.busy = True
            try:
                self.measure(store)
                if store.expiring and self.live + need > self.max_bytes // 8 * REAP_EIGHTHS:
                    self.reap(store, REAP_WORK * (need + self.step))
                # Before the next look a step more may be written.
                while self.is_pressed(need) and (left or self.live + need + self.step > self.max_bytes):
                    done = self.advance(store, need, left)
                    if done == 0:
                        break
                    left -= min(left, done)
                ahead = max(ahead, self.headroom(store, need))
            except OSError:
                # Where the disk is full, for one, what can go makes room.
                if self.passed:
                    self.remover.wake()
                raise
            finally:
                self.busy = False
            self.remove_segments(store)
        # Whatever others write until then was allowed for.
        store.due = store.log.end + need + ahead

    cdef uint64_t live_max(self) noexcept:
        return self.max_bytes - self.max_bytes // SLACK_PART

    cdef uint64_t size_max(self) noexcept:
        return self.max_bytes // 8 * LOG_EIGHTHS

    cdef bint is_pressed(self, uint64_t need) noexcept:
        return self.holds_too_much(need) or self.size + need > self.size_max()

    cdef bint holds_too_much(self, uint64_t need) noexcept:
        return self.live != 0 and self.live + need > self.live_max()

    cdef uint64_t headroom(self, StoreWriter store, uint64_t need) noexcept:
        # How much can be written before there may be something to do.
        cdef uint64_t live = self.max_bytes // 8 * REAP_EIGHTHS if store.expiring else self.live_max(), size = self.size_max()
        if self.live + need >= live or self.size + need >= size:
            return 0
        return min(live - self.live, size - self.size) - need

    cdef int measure(self, StoreWriter store) except -1:
        # What there is, by the dead table. That may count too much; what was evicted in vain then is not much.
        cdef Index index = store.index
        cdef Log log = store.log
        cdef SegmentSet segments = log.segments
        cdef Extent *each
        cdef uint64_t seq, count, cleared, at, dead
        if index is None:
            store.raise_closed()
        if segments.names is not self.names or segments.changes != self.changes or index is not self.index:
            self.learn(store, index)
        read_moment(index.state, &seq, &count, &cleared)
        if cleared > self.below:
            self.below = cleared
            self.clears.append((index.state.clear_seq, cleared))
        self.live = self.size = self.passed = self.passed_stop = 0
        for at in range(self.count):
            each = &self.extents[at]
            if each.id == log.segment_id:
                each.size = log.end - SEGMENT_HEADER_SIZE
            if each.stop <= cleared:
                self.passed += each.size + AROUND
                self.passed_stop = each.stop
                continue
            if each.slot == SLOTS:
                each.slot = known_slot(index.state, index.slot_table, each.id)
            dead = 0 if each.slot == SLOTS else <uint64_t>index.dead[each.slot] * UNIT
            self.size += each.size + AROUND
            self.live += each.size - min(dead, each.size)
            if each.id == self.hand_id:
                self.size -= min(self.hand_at, each.size)
        return 0

    cdef int learn(self, StoreWriter store, Index index) except -1:
        # Segments have come or gone.
        cdef SegmentSet segments = store.log.segments
        cdef Marks marks = store.marks
        cdef bint first = self.names is None
        cdef Extent *grown
        cdef uint64_t at = 0, segment_id
        names, changes = segments.names, segments.changes
        listing = list(names)
        known = {self.extents[at].id: self.extents[at].size for at in range(self.count)}
        if <uint64_t>len(listing) > self.capacity:
            grown = <Extent *>realloc(self.extents, 2 * len(listing) * sizeof(Extent))
            if grown == NULL:
                raise MemoryError
            self.extents = grown
            self.capacity = 2 * len(listing)
        self.count = 0
        found = []
        for _, segment_id, _ in listing:
            if segment_id in known and segment_id != self.tail_id:
                found.append(known[segment_id])
                continue
            found.append(self.size_of(segments, segment_id))
            if marks is not None and segment_id not in known and not first:
                marks.forget(index.slot_of(segment_id))
        for at in range(<uint64_t>len(listing)):
            self.extents[at].id = listing[at][1]
            self.extents[at].stop = listing[at + 1][0] if at + 1 < <uint64_t>len(listing) else <uint64_t>-1
            self.extents[at].slot = known_slot(index.state, index.slot_table, self.extents[at].id)
            self.extents[at].size = found[at]
        self.count = len(listing)
        self.names, self.changes, self.index = names, changes, index
        self.tail_id = store.log.segment_id
        return 0

    cdef uint64_t size_of(self, SegmentSet segments, uint64_t segment_id) except? 0:
        cdef Segment segment
        cdef Footer footer
        try:
            segment = segments.by_id(segment_id)
        except CorruptionError:
            # Removed by others just now.
            return 0
        if segment.load_footer(&footer):
            return footer.end - SEGMENT_HEADER_SIZE
        # Not sealed yet, but left by its writer; unless that was another one.
        return (segment.end or segment.limit) - SEGMENT_HEADER_SIZE

    cdef Replay reach(self, Log log, uint64_t start, uint64_t stop):
        # What reads from there on: as a rule it is there.
        cdef uint64_t generation = log.segments.generation_now()
        if self.hand is not None and self.hand.seq == start and self.generation == generation:
            self.hand.extend(stop, log.segment_id)
        else:
            self.hand = None
            self.hand = Replay(log.segments, start, stop, False, log.segment_id)
            self.generation = generation
        return self.hand

    cdef uint64_t advance(self, StoreWriter store, uint64_t need, uint64_t left) except? 0:
        # Moves the hand on, by what has `left` bytes or by a piece of a segment; how many bytes that were, 0 at the end of the log.
        cdef Log log = store.log
        cdef uint64_t seq, count, start, stop, limit = min(max(left, self.step), PIECE), wanted = need + self.step
        cdef uint64_t done = 0, freed = 0, spared = 0, copies = 0, gone = 0, slot = SLOTS, expires, now = now_ns()
        cdef bint live_pressed = self.holds_too_much(need)
        cdef int copied
        cdef Index index = store.index
        cdef Marks marks = store.marks if self.second_chances else None
        cdef Replay hand
        cdef Record record
        cdef PayloadHeader payload
        cdef const char *key
        cdef Tally tally
        if index is None:
            store.raise_closed()
        read_moment(index.state, &seq, &count, &start)
        start = max(start, log.segments.first())
        stop = log.seq
        if start >= stop:
            return 0
        begin_tally(&tally, index, log.segments)
        hand = self.reach(log, start, stop)
        # Of one segment: what is evicted counts as dead there. Its last numbers may be missing, and the next record be of another one.
        hand.stop = min(stop, hand.boundary)
        while done < limit and not (live_pressed and freed >= wanted) and hand.read(&record, False):
            if done == 0:
                slot = known_slot(index.state, index.slot_table, hand.segment.id)
            done += record.size
            if not split_payload(&record, &payload, &key) or payload.kind != KIND_PUT:
                continue
            expires = 0
            if payload.flags & FLAG_EXPIRY:
                memcpy(&expires, key - EXPIRY_SIZE, sizeof(expires))
            if (expires == 0 or expires > now) and (
                    not live_pressed or marks is not None and slot != SLOTS and spared + record.size <= self.credit
                    and marks.seen(slot, hand.start)):
                copied = spare(store, hand, &record, &payload, key, expires)
                if copied >= 0:
                    copies += copied
                    spared += record.size if copied and live_pressed else 0
                    continue
            if self.is_current(store, index, key, payload.key_length, record.seq):
                freed += record.size
                gone += expires == 0 or expires > now
                tally.keys += 1
        start = hand.seq
        self.hand_id = hand.segment.id
        self.hand_at = hand.offset - SEGMENT_HEADER_SIZE
        hand.segment.region.check()
        if start >= hand.boundary:
            # What is removed does not stay mapped.
            self.hand = None
        tally.slot = slot
        tally.dead = freed
        tally.seq = stop + copies
        write_clear(store, False, start, False, &tally)
        self.credit = min(self.credit - spared + SPARED * freed, self.max_bytes // SPARED_PART)
        self.evicted += gone
        self.measure(store)
        return max(done, <uint64_t>1)

    cdef int reap(self, StoreWriter store, uint64_t left) except -1:
        # What has expired goes before what has not, wherever it is: another hand, that goes round and round.
        cdef Log log = store.log
        cdef uint64_t seq, count, start, stop, done = 0, now = now_ns(), expires
        cdef Replay replay
        cdef Record record
        cdef PayloadHeader payload
        cdef const char *key
        cdef bint more = True
        read_moment(store.index.state, &seq, &count, &start)
        start = max(start, log.segments.first())
        stop = log.seq
        if start >= stop:
            return 0
        if not start <= self.reaper < stop:
            self.reaper = start
        replay = Replay(log.segments, self.reaper, stop, False, log.segment_id)
        doomed = []
        while done < min(left, PIECE):
            more = replay.read(&record, False)
            if not more:
                break
            done += record.size
            if split_payload(&record, &payload, &key) and payload.flags & FLAG_EXPIRY:
                self.reaped = True
                memcpy(&expires, key - EXPIRY_SIZE, sizeof(expires))
                if expires <= now:
                    doomed.append(PyBytes_FromStringAndSize(key, payload.key_length))
        self.reaper = replay.seq
        replay.segment.region.check()
        if not more:
            # All the way round; what was written meanwhile is met on the next one.
            store.expiring = self.reaped or store.index is None or store.index.state.expiring > stop
            self.reaped = False
            self.reaper = 0
        for each in doomed:
            store._drop_expired(each)
        self.measure(store)
        return 0

    cdef bint is_current(self, StoreWriter store, Index index, const char *key, uint64_t key_size, uint64_t seq) except -1:
        # By its number: a compaction may be leading the index to copies just now.
        cdef Hit hit
        cdef Outcome outcome
        while True:
            outcome = index.find(xxh3(key, key_size, index.seed), key, key_size, False, &hit)
            if outcome == PRESENT:
                return hit.seq == seq
            if outcome == ABSENT:
                return False
            store.settle(index, outcome, &hit)
            if store.index is not index:
                return False

    cdef int remove_segments(self, StoreWriter store) except -1:
        # The segments that the hand has gone over go in a thread: that syncs. It is waited for only when it is far behind.
        cdef uint64_t behind = max(self.max_bytes // BEHIND_PART, BEHIND_LEAST)
        if self.passed_stop > self.asked_stop and self.passed >= behind // BEGIN_PART and self.remover.wake():
            self.asked_stop = self.passed_stop
        if self.passed > behind and not self.held:
            self.remover.wait(store)
        return 0

    def remove(self, StoreWriter store not None):
        """Remove the segments that the hand has gone over, but for what a snapshot may need. For a thread, while it takes care of the store."""
        cdef Log log = store.log
        cdef Index index
        cdef uint64_t below = 0
        log.begin_care("an eviction")
        try:
            with store._index_lock:
                index = store.index
                if index is None or index.state.moving:
                    return
                needed = store._pins.oldest(index)
                while self.clears and self.clears[0][0] < needed:
                    below = self.clears.popleft()[1]
                self.held = len(self.clears) > 0
                if below:
                    # What is left of it goes with the next segment.
                    self.clears.appendleft((0, below))
                    drop_head(index, log, below)
        finally:
            log.end_care()


cdef void begin_tally(Tally *tally, Index index, SegmentSet segments) noexcept:
    tally.keys = 0
    tally.index = <void *>index
    tally.generation = segments.generation_now()
    # While compaction leads entries elsewhere it is not known whose bytes they are.
    tally.holds = index.state.moving == 0


cdef int spare(
        StoreWriter store, Replay hand, const Record *record, const PayloadHeader *payload, const char *key, uint64_t expires
) except -2:
    # Writes a record once more: 1; 0 when it is not current; -1, and nothing is written, when it is damaged.
    cdef Spot spot
    cdef Version version
    cdef Record whole
    if read_record(
            hand.segment.base, hand.start, hand.segment.limit, hand.segment.id, hand.segment.base_seq, True, &whole) != Found.RECORD:
        return -1
    memset(&version, 0, sizeof(version))
    version.kind = KIND_PUT
    version.key = key
    version.key_size = payload.key_length
    version.value = record.payload + record.payload_size - payload.value_length
    version.value_size = payload.value_length
    version.expires = expires
    version.settled = True
    store.seek(&version, False, &spot)
    if not spot.known or spot.hit.deleted or spot.hit.seq != record.seq:
        store.let_go()
        return 0
    store.commit(&spot, &version, False)
    return 1
