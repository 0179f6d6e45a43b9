# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False, cdivision=True
"""Keeping a store within a number of bytes, as a cache: what is oldest goes, unless it was read.

The log is the queue. A hand goes over it from its beginning: a record that was read since it was written is written once more, at
the end, and any other that is current is evicted. That is CLOCK, also called FIFO with reinsertion. After: F. Corbato, A paging experiment with the
Multics system, 1968; that it keeps up with LRU and better on the traces of web caches: J. Yang et al., FIFO queues are all you need for cache
eviction, SOSP 2023, and Y. Zhang et al., SIEVE is simpler than LRU, NSDI 2024, whose hand leaves in place what it spares, which a log
cannot. What the hand has gone over is cleared by one record, and whole segments of that are removed.
"""

import logging
from collections import deque
from threading import Thread

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from mmapio._os cimport now_ns
from mmapkv.batch cimport Batch, batch_of
from mmapkv.clearing cimport write_clear
from mmapkv.format cimport EXPIRY_SIZE, FLAG_EXPIRY, KIND_PUT, PayloadHeader
from mmapkv.index cimport ABSENT, PRESENT, Hit, Index, Outcome
from mmapkv.marks cimport Marks
from mmapkv.moment cimport read_moment
from mmapkv.relocation cimport split_payload
from mmapkv.writer cimport StoreWriter
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport SEGMENT_HEADER_SIZE, UNIT, Footer, Record
from mmaplog.log cimport Log
from mmaplog.replay cimport Replay
from mmaplog.segment cimport Segment

from mmapio.errors import Closed
from mmapkv.clearing import drop_head
from mmapkv.errors import Conflict
from mmaplog.errors import CorruptionError

logger = logging.getLogger("mmapkv")

# Of `max_bytes`: how much is written between two looks at what there is, ...
cdef uint64_t STEP_PART = 1024
cdef uint64_t STEP_MIN = 4 << 10
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
# So much of what the hand has gone over may be on the disk before a put waits for its removal.
cdef uint64_t BEHIND_PART = 4
cdef uint64_t BEHIND_LEAST = 256 << 10
# At a time, between which other threads may write.
cdef uint64_t PIECE = 64 << 10


cdef class Eviction:
    """What a store does for its bound.

    Records that are current take at most `max_bytes`, with all that the format adds to key and value; the log three quarters as much again, and two
    segments. More only while a snapshot or walk needs it.
    """

    cdef StoreWriter store
    cdef object pins
    cdef readonly uint64_t max_bytes
    cdef readonly uint64_t evicted  # by this handle
    cdef bint second_chances
    cdef bint busy              # a thread is at it
    cdef uint64_t step
    cdef uint64_t live          # bytes of current records, ...
    cdef uint64_t size          # ... and of all
    cdef uint64_t credit        # bytes that may be spared
    cdef uint64_t reaper        # from here on it is looked for what has expired, ...
    cdef bint reaped            # ... and on the way there was something that can
    cdef uint64_t below         # what the last clear of this handle was below of
    cdef object remover         # the thread that removes segments, or None; ...
    cdef bint waiting           # ... it lets a compaction, or a close, go first
    cdef object clears          # (number of a clear of this handle, what it is below of), of those not yet removed from the log
    cdef uint64_t tail_id       # the one that was written to then
    cdef uint64_t hand_id       # the segment that the hand is in, ...
    cdef uint64_t hand_at       # ... and how many bytes of it that has gone over
    cdef object listing         # of segments, when that was last looked at, ...
    cdef list spans             # ... what numbers each has, ...
    cdef dict sizes             # ... and the bytes of its records

    def __init__(self, StoreWriter store not None, pins, uint64_t max_bytes, policy):
        self.store = store
        self.pins = pins
        self.max_bytes = max_bytes
        self.second_chances = policy == "clock"
        self.step = min(max(max_bytes // STEP_PART, STEP_MIN), STEP_MAX)
        self.credit = max_bytes // SPARED_PART
        self.clears = deque()
        self.sizes = {}

    def figures(self):
        """Counts for `stats`."""
        if not self.busy:
            self.measure()
        return {"max_bytes": self.max_bytes, "live_bytes": self.live, "evictions": self.evicted}

    def make_way(self, uint64_t need):
        """See to it that `need` bytes, and a little more, can be written. Costs a look at some eight times as many, now and then a sync."""
        cdef StoreWriter store = self.store
        cdef uint64_t left = WORK * (need + self.step), done
        if not self.busy:
            self.busy = True
            try:
                self.measure()
                if store.expiring and self.live + need > self.max_bytes // 8 * REAP_EIGHTHS:
                    self.reap(REAP_WORK * (need + self.step))
                while self.is_pressed(need) and (left or self.live + need > self.max_bytes):
                    done = self.advance(need, left)
                    if done == 0:
                        break
                    left -= min(left, done)
                self.remove_segments()
            finally:
                self.busy = False
        # Whatever others write until then was allowed for.
        store.due = store.log.end + need + self.step

    cdef bint is_pressed(self, uint64_t need) noexcept:
        return self.holds_too_much(need) or self.size + need > self.max_bytes // 8 * LOG_EIGHTHS

    cdef bint holds_too_much(self, uint64_t need) noexcept:
        return self.live != 0 and self.live + need > self.max_bytes - self.max_bytes // SLACK_PART

    cdef int measure(self) except -1:
        # What there is, by the dead table. That may count too much; what was evicted in vain then is not much.
        cdef Index index = self.store.index
        cdef Log log = self.store.log
        cdef uint64_t seq, count, cleared, size, dead
        if index is None:
            self.store.raise_closed()
        listing = log.segments.listing()
        if listing != self.listing:
            self.learn(listing)
        read_moment(index.state, &seq, &count, &cleared)
        self.sizes[log.segment_id] = log.end - SEGMENT_HEADER_SIZE
        self.live = self.size = 0
        for base, segment_id, stop in self.spans:
            if stop <= cleared:
                continue
            size = self.sizes[segment_id]
            dead = <uint64_t>index.dead[<uint64_t>index.slot_of(segment_id)] * UNIT
            self.size += size
            self.live += size - min(dead, size)
            if segment_id == self.hand_id:
                self.size -= min(self.hand_at, size)
        return 0

    cdef int learn(self, listing) except -1:
        # Segments have come or gone.
        cdef Marks marks = self.store.marks
        cdef bint first = self.listing is None
        stops = [entry[0] for entry in listing[1:]] + [<uint64_t>-1]
        self.spans = [(entry[0], entry[1], stop) for entry, stop in zip(listing, stops)]
        known, self.sizes = self.sizes, {}
        for base, segment_id, stop in self.spans:
            if segment_id in known and segment_id != self.tail_id:
                self.sizes[segment_id] = known[segment_id]
                continue
            self.sizes[segment_id] = self.size_of(segment_id)
            if marks is not None and segment_id not in known and not first:
                marks.forget(self.store.index.slot_of(segment_id))
        self.listing = listing
        self.tail_id = self.store.log.segment_id
        return 0

    cdef uint64_t size_of(self, uint64_t segment_id) except? 0:
        cdef Segment segment
        cdef Footer footer
        try:
            segment = self.store.log.segments.by_id(segment_id)
        except CorruptionError:
            # Removed by others just now.
            return 0
        if segment.load_footer(&footer):
            return footer.end - SEGMENT_HEADER_SIZE
        # Not sealed yet, but left by its writer; unless that was another one.
        return (segment.end or segment.limit) - SEGMENT_HEADER_SIZE

    cdef uint64_t advance(self, uint64_t need, uint64_t left) except? 0:
        # Moves the hand on, by what has `left` bytes or by a piece; how many bytes that were, 0 at the end of the log.
        cdef StoreWriter store = self.store
        cdef Log log = store.log
        cdef uint64_t seq, count, hand, stop, done = 0, freed = 0, expired, now = now_ns(), slot = 0, known = 0, gone
        cdef bint live_pressed
        cdef Index index = store.index
        cdef Marks marks = store.marks
        cdef Batch batch = batch_of(store, False)
        cdef Replay replay
        cdef Record record
        cdef PayloadHeader payload
        cdef const char *key
        if index is None:
            store.raise_closed()
        read_moment(index.state, &seq, &count, &hand)
        stop = log.seq
        live_pressed = self.holds_too_much(need)
        if max(hand, log.segments.first()) >= stop:
            return 0
        replay = Replay(log.segments, max(hand, log.segments.first()), stop, True, 0)
        gone = 0
        while (done < min(max(left, self.step), PIECE) and not (live_pressed and freed >= need + self.step)
               and replay.read(&record, True)):
            hand = record.seq + 1
            done += record.size
            if replay.segment.id != known:
                known = replay.segment.id
                slot = index.slot_of(known)
            if not split_payload(&record, &payload, &key) or payload.kind != KIND_PUT:
                continue
            if not self.is_current(key, payload.key_length, record.seq):
                continue
            expired = 0
            if payload.flags & FLAG_EXPIRY:
                memcpy(&expired, key - EXPIRY_SIZE, sizeof(expired))
            if expired and expired <= now:
                freed += record.size
            elif live_pressed and not (
                    self.second_chances and marks is not None and record.size <= self.credit
                    and marks.seen(slot, replay.start)):
                freed += record.size
                gone += 1
            else:
                if live_pressed:
                    self.credit -= record.size
                batch.add(
                    KIND_PUT, PyBytes_FromStringAndSize(key, payload.key_length),
                    PyBytes_FromStringAndSize(record.payload + record.payload_size - payload.value_length, payload.value_length), expired)
        self.hand_id = replay.segment.id
        self.hand_at = replay.offset - SEGMENT_HEADER_SIZE
        if done == 0:
            # Nothing but a gap.
            hand = stop
        replay.segment.region.check()
        batch.over = True
        try:
            store._commit(batch, None, stop)
        except Conflict:
            # Another thread wrote one of them meanwhile: once more, as it is now.
            return max(done, <uint64_t>1)
        write_clear(store, False, hand, False)
        self.credit = min(self.credit + SPARED * freed, self.max_bytes // SPARED_PART)
        self.below = hand
        self.clears.append((log.seq - 1, hand))
        self.evicted += gone
        self.measure()
        return max(done, <uint64_t>1)

    cdef int reap(self, uint64_t left) except -1:
        # What has expired goes before what has not, wherever it is: another hand, that goes round and round.
        cdef StoreWriter store = self.store
        cdef Log log = store.log
        cdef uint64_t seq, count, start, done = 0, now = now_ns(), expires
        cdef Replay replay
        cdef Record record
        cdef PayloadHeader payload
        cdef const char *key
        read_moment(store.index.state, &seq, &count, &start)
        start = max(start, log.segments.first())
        if start >= log.seq:
            return 0
        if self.reaper >= log.seq:
            # All the way round.
            store.expiring = self.reaped
            self.reaped = False
        if not start <= self.reaper < log.seq:
            self.reaper = start
        replay = Replay(log.segments, self.reaper, log.seq, False, 0)
        doomed = []
        while done < min(left, PIECE) and replay.read(&record, False):
            self.reaper = record.seq + 1
            done += record.size
            if split_payload(&record, &payload, &key) and payload.flags & FLAG_EXPIRY:
                self.reaped = True
                memcpy(&expires, key - EXPIRY_SIZE, sizeof(expires))
                if expires <= now:
                    doomed.append(PyBytes_FromStringAndSize(key, payload.key_length))
        replay.segment.region.check()
        if done == 0:
            self.reaper = log.seq
        for each in doomed:
            store._drop_expired(each)
        self.measure()
        return 0

    cdef bint is_current(self, const char *key, uint64_t key_size, uint64_t seq) except -1:
        # By its number: a compaction may be leading the index to copies just now.
        cdef Index index = self.store.index
        cdef Hit hit
        cdef Outcome outcome
        while True:
            outcome = index.find(xxh3(key, key_size, index.seed), key, key_size, False, &hit)
            if outcome == PRESENT:
                return hit.seq == seq
            if outcome == ABSENT:
                return False
            self.store.settle(index, outcome, &hit)
            if self.store.index is not index:
                return False

    cdef int remove_segments(self) except -1:
        # The segments that the hand has gone over go in a thread: that syncs. It is waited for only when it is far behind.
        cdef uint64_t passed = 0
        for base, segment_id, stop in self.spans:
            if stop <= self.below:
                passed += self.sizes[segment_id]
        if passed == 0:
            return 0
        if self.remover is not None and self.remover.is_alive():
            if self.waiting and self.store.log.caring or passed <= max(self.max_bytes // BEHIND_PART, BEHIND_LEAST):
                return 0
            self.remover.join()
        self.waiting = True
        self.remover = Thread(target=self.remove_now, name="mmapkv-evicted", daemon=True)
        self.remover.start()
        return 0

    def remove_now(self):
        """Remove the segments that the hand has gone over, but for what a snapshot may need."""
        try:
            with self.store._careful("removing what was evicted"):
                self.waiting = False
                self.remove_carefully()
        except Closed:
            pass
        except OSError as error:
            # With the next one, then.
            logger.warning("%s: what was evicted could not be removed: %s", self.store._path, error)

    cdef int remove_carefully(self) except -1:
        cdef Log log = self.store.log
        cdef Index index
        cdef uint64_t below = 0
        log.begin_care("an eviction")
        try:
            with self.store._index_lock:
                index = self.store.index
                if index is None or index.state.moving:
                    return 0
                needed = self.pins.oldest(index)
                while self.clears and self.clears[0][0] < needed:
                    below = self.clears.popleft()[1]
                drop_head(index, log, below)
                if below:
                    # What is left of it goes with the next segment.
                    self.clears.appendleft((0, below))
        finally:
            log.end_care()
        return 0
