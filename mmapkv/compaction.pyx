# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Rewriting the segments of a store without what nobody needs any more: superseded values, and deletions at last.

A record is needed while the index leads to it, or while a walk or snapshot may still come to it. What stays is copied, sealed
and synced before MANIFEST names it; then the entries are led to the copies, and the old files go. :mod:`mmapkv.compactor` does so
in the background, a few segments at a time.
"""

import array
from functools import partial

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from mmapio cimport _memory as memory
from mmapio._os cimport now_ns
from mmapio.region cimport Region
from mmapkv.format cimport SLOTS, PayloadHeader
from mmapkv.index cimport ABSENT, PRESENT, STRAY, TOO_OLD, UNMAPPED, Hit, Index, Outcome
from mmapkv.relocation cimport Ground, ground_of, split_payload
from mmapkv.survey cimport TOLD, Pause, Scan, Told, copy_one, scan_some, settle
from mmapkv.writer cimport StoreWriter
from mmaplog.checksum cimport xxh3
from mmaplog.draft cimport Draft
from mmaplog.format cimport SEGMENT_HEADER_SIZE, UNIT, CommitSlot, Footer, Record, read_record
from mmaplog.log cimport Log
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet

from mmapkv import hints, relocation
from mmapkv.clearing import drop_head
from mmapkv.errors import SnapshotTooOld
from mmaplog.compaction import Compaction, Group, fits, rewrite, sealed_segments
from mmaplog.errors import CorruptionError

# So many records are looked at before a signal is noticed, or that the handle is being closed.
cdef uint64_t PIECE = 100_000
# A segment with nothing to remove is taken along when it is smaller than this part of a full one.
cdef uint64_t SMALL_PART = 4
# The index is built anew under a compaction when keys collide, and that more often than this is no accident.
cdef int ATTEMPTS = 3
# Where more versions of a key than this are gone through for one record, it is found out for all of them in the segment.
cdef int HOPS_LONG = 16
# No record has this number.
cdef uint64_t NONE = <uint64_t>-1


class Replaced(Exception):
    """The index that was gone by is not the store's any more."""


class Halted(Exception):
    """Whoever asked for it does not want it any more; what was not finished is as it was."""


def usage(StoreWriter store, dict sizes):
    """(bytes of the log's records, bytes of dead records in them, how large a segment may grow). `sizes` remembers of segments by id what does not change any more.

    Costs a look at the header of each segment that it was not called with before. Also for readers; what is dead is as the writer counted it.
    """
    cdef Log log = store.log
    cdef Index index = store.index
    cdef SegmentSet segments = log.segments
    cdef Segment segment
    cdef Footer footer
    cdef CommitSlot slot
    cdef uint64_t at, end, size = 0, dead = 0
    ends = {}
    # Others may have made it smaller.
    segments.follow_changes()
    segments.tail(&slot)
    for entry in segments.listing():
        segment_id = entry[1]
        if segment_id == slot.segment_id:
            end = <uint64_t>slot.end * UNIT
        elif segment_id in sizes:
            end = sizes[segment_id]
        else:
            segment = segments.open(entry)
            if segment is None:
                continue
            end = segment.limit
            if segment.end:
                # Rolled past by this handle, and perhaps not sealed for a while.
                end = sizes[segment_id] = segment.end
            elif segment.load_footer(&footer):
                end = sizes[segment_id] = footer.end
        ends[segment_id] = end
        size += end - SEGMENT_HEADER_SIZE
        if segment_id == slot.segment_id:
            # One behind it was begun meanwhile.
            break
    for segment_id in sizes.keys() - ends.keys():
        del sizes[segment_id]
    for at in range(min(index.state.slots_used, <uint64_t>SLOTS)):
        segment_id = index.slot_table[at]
        if segment_id in ends:
            dead += dead_bytes(index.dead[at], ends.pop(segment_id))
    for segment_id, end in ends.items():
        # The index has forgotten it, and it is about to go. Of the last one it may not know yet.
        if segment_id != slot.segment_id:
            dead += end - SEGMENT_HEADER_SIZE
    return size, dead, segments.manifest.segment_bytes


cdef uint64_t dead_bytes(uint64_t units, uint64_t end) noexcept:
    # Of a segment that ends there: a clear may count more than there is.
    return min(UNIT * units, end - SEGMENT_HEADER_SIZE)


def require_writer(StoreWriter store not None):
    """Raise Closed, InvalidMode or Poisoned for a store that cannot be compacted."""
    if store.index is None:
        store.raise_closed()
    store.log.check_writable()


def compact(StoreWriter store, pins, halted=None, kept_out=None, progress=None):
    """Rewrite every segment of the log that has something to remove: what :meth:`mmapkv.KVStore.compact` does.

    `halted` and `kept_out` are as of :func:`step`; `progress` is called with (records looked at, records in all).
    """
    cdef Log log = store.log
    cdef Pass current
    cdef int attempts = 0
    cdef uint64_t segment_id, seq, end
    counts = [0, 0, 0, 0]
    log.begin_care("a compaction", kept_out)
    try:
        while True:
            make_ready(store)
            if store.index.dead[store.tail_slot] or store.index.state.expiring > log.base_seq:
                log.spend_if_full(log.roll_tail)
            log.flush()
            current = begin_pass(store, pins, counts)
            current.halted = halted
            try:
                current.drop_head()
                current.run(progress)
            except Replaced:
                attempts += 1
                # By another process it may be built anew for reasons of its own.
                if attempts == ATTEMPTS and not store.several:
                    raise
            else:
                break
        return Compaction(*counts)
    finally:
        log.end_care()


def step(StoreWriter store, pins, choose, halted, kept_out=None):
    """Rewrite the few segments that `choose` chooses, as one.

    `choose` is called with the sealed segments in order, as (first number, first number after it, id, size, bytes of it that are
    dead), and with the number from which on a walk or snapshot may need what was current. What it returns says which `segments`
    to take, by id, which of them is `wanted`, below which number tombstones may go, `sweepable`, how many bytes must be freed for anything
    to be written, `bytes_least`, and how large that may be, `size_max`: where there is no room for all, those next to `wanted` are left out.
    Or None, when there are none to take.

    Returns None then, and else for each segment that was looked at how many bytes stay dead in it, and how many of these for a snapshot's
    sake; the id of the segment that was written, or 0; and what that did. `halted` is called now and then, and may raise; so is, and may,
    `kept_out` while another process is at such a step.
    """
    cdef Log log = store.log
    cdef Pass current
    cdef SegmentSet segments = log.segments
    cdef Segment segment
    cdef Footer footer
    cdef uint64_t slot
    log.begin_care("a compaction", kept_out)
    try:
        make_ready(store)
        current = begin_pass(store, pins, [0, 0, 0, 0])
        current.halted = halted
        if log.has_unsealed:
            # Now, and so the sync that is needed before anything goes is made.
            log.flush()
        current.drop_head()
        found, ahead = [], {}
        for segment in sealed_segments(log):
            if segment.load_footer(&footer):
                slot = current.slot_in(segment.id)
                dead = 0 if slot == SLOTS else dead_bytes(current.index.dead[slot], footer.end)
                found.append((segment.base_seq, segments.boundary_of(segment, segments.tail_id()), segment.id, footer.end, dead))
                ahead[segment.id] = segment
        segment = None
        choice = choose(found, current.needed)
        if choice is None:
            return None
        chosen = [ahead[each] for each in choice.segments]
        # What was replaced takes its room for as long as it is mapped.
        ahead = None
        return current.rewrite_chosen(choice, chosen)
    finally:
        log.end_care()


cdef Pass begin_pass(StoreWriter store, pins, list counts):
    cdef Log log = store.log
    cdef uint64_t segment_id = log.segment_id, seq = log.seq, end = log.end
    # Whoever begins to look at the store from here on does so later than that.
    cdef uint64_t now = now_ns()
    cdef Pass made = Pass(store, pins.oldest(store.index), counts)
    if not pins.any_below(made.needed + 1):
        made.expired = now
    if made.needed >= seq:
        made.learn_age(segment_id, end)
    made.learn_ages()
    return made


cdef int make_ready(StoreWriter store) except -1:
    # The index is one that is written to, and leads nowhere but to segments that count.
    cdef Log log = store.log
    cdef Index index
    with store._index_lock:
        store.get_ready()
        index = store.index
        log.pause()
        try:
            finished = relocation.finish(index, log)
        finally:
            log.unpause()
        if not finished:
            store._rebuild_index(index)
        log.drop_strays()
    return 0


cdef class Pass:
    # One way through the log, by one index and for one oldest snapshot.
    cdef StoreWriter store
    cdef Log log
    cdef Index index
    cdef uint64_t needed
    cdef uint64_t cleared       # and since which record
    cdef uint64_t clear_seq
    cdef uint64_t floor         # nobody looks for what is below
    cdef uint64_t *aged
    cdef uint64_t expired       # what had expired at this time may leave; 0: nothing
    cdef list counts
    cdef object group           # that is to become one segment, or None
    cdef object halted          # raises when this is not wanted any more, or None
    cdef uint64_t made          # id of the segment that was written last
    cdef dict reached           # by key, of the segment that is looked at: which of its versions are reached, where that takes long to tell

    def __cinit__(self, StoreWriter store not None, uint64_t needed, list counts):
        require_writer(store)
        self.store = store
        self.log = store.log
        self.index = store.index
        self.needed = needed
        self.cleared = memory.load_acquire(&self.index.state.cleared)
        self.clear_seq = memory.load_acquire(&self.index.state.clear_seq)
        self.floor = self.cleared if self.clear_seq < needed else 0
        self.counts = counts
        self.aged = <uint64_t *>calloc(SLOTS, sizeof(uint64_t))
        if self.aged == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.aged)

    cdef int drop_head(self) except -1:
        # Segments of which nothing is needed since a clear go as they are.
        with self.store._index_lock:
            if self.store.index is not self.index or self.index.retired:
                raise Replaced
            dropped = drop_head(self.index, self.log, self.floor)
        if dropped is None:
            raise Replaced
        segments, records, size = dropped
        self.counts[0] += segments
        self.counts[2] += records
        self.counts[3] += size
        return 0

    cdef int run(self, progress) except -1:
        cdef SegmentSet segments = self.log.segments
        cdef Segment segment
        cdef Scan scan
        cdef uint64_t stop, before, slot, first = segments.first_seq, last = self.log.base_seq
        cdef uint64_t segment_bytes = min(<uint64_t>segments.manifest.segment_bytes, self.log.roll_bytes)
        # Nothing in the segments so far could bring a deleted key back, were the index built from the log.
        cdef bint clean = True, small
        for segment in sealed_segments(self.log):
            if progress is not None:
                progress(max(segment.base_seq, first) - first, last - first)
            stop = segments.boundary_of(segment, segments.tail_id())
            slot = self.slot_in(segment.id)
            before = 0 if slot == SLOTS else self.index.dead[slot]
            small = self.group is not None and segment.limit < segment_bytes // SMALL_PART
            if before == 0 and not small and (self.expired == 0 or segment.base_seq >= self.index.state.expiring):
                self.rewrite_group()
                continue
            places = self.survey(segment, &scan, self.needed if clean else 0)
            clean = clean and scan.held == 0
            if scan.removed_bytes == 0 and not small:
                self.rewrite_group()
                continue
            if self.group is not None and not fits(self.group, segment, stop, scan.size, segment_bytes):
                self.rewrite_group()
            self.gather(segment, stop, places, &scan)
        self.rewrite_group()
        if progress is not None and first < last:
            progress(last - first, last - first)
        return 0

    cdef object rewrite_chosen(self, choice, chosen):
        # What :func:`step` does.
        cdef SegmentSet segments = self.log.segments
        cdef Segment segment
        cdef Scan scan
        cdef Footer footer
        cdef uint64_t stop, size_max = choice.size_max, sweepable = min(<uint64_t>choice.sweepable, self.needed), before = 0
        seen = {}
        while chosen:
            segment = chosen.pop(0)
            stop = segments.boundary_of(segment, segments.tail_id())
            places = self.survey(segment, &scan, sweepable)
            if self.group is not None and not fits(self.group, segment, stop, scan.size, size_max):
                if choice.wanted in seen:
                    break
                # More stays of those before than was thought, and what a tombstone hides is left in them.
                self.group = None
                seen, before = {}, 0
                if sweepable:
                    sweepable = 0
                    places = self.survey(segment, &scan, sweepable)
            seen[segment.id] = scan.dead, scan.held
            segment.load_footer(&footer)
            before += footer.end
            self.gather(segment, stop, places, &scan)
        segment = None
        self.made = 0
        if before >= SEGMENT_HEADER_SIZE + <uint64_t>self.group.size + <uint64_t>choice.bytes_least:
            self.rewrite_group()
        return seen, self.made, Compaction(*self.counts)

    cdef int gather(self, Segment segment, uint64_t stop, places, Scan *scan) except -1:
        if self.group is None:
            self.group = Group([], [], 0, 0, 0, 0)
        self.group.segments.append(segment)
        self.group.kept.append(places)
        self.group.size += scan.size
        self.group.records += scan.count
        self.group.removed += scan.removed
        self.group.stop = stop
        self.group.swept = max(<uint64_t>self.group.swept, scan.swept)
        self.group.trims = self.group.trims or scan.removed_bytes != 0
        return 0

    cdef int rewrite_group(self) except -1:
        group, self.group = self.group, None
        if group is not None:
            self.log.spend_if_full(partial(rewrite, self.log, group, self.counts, self.copy, self.replace))
        return 0

    cdef int learn_ages(self) except -1:
        # Of each slot, up to where its records are older than what a snapshot could need.
        cdef uint64_t slot
        listing = self.log.segments.listing()
        stops = {entry[1]: after[0] for entry, after in zip(listing, listing[1:])}
        for slot in range(self.index.state.slots_used):
            if stops.get(self.index.slot_table[slot], self.needed + 1) <= self.needed:
                self.aged[slot] = <uint64_t>-1
        return 0

    cdef int learn_age(self, uint64_t segment_id, uint64_t end) except -1:
        # Of the segment being written.
        cdef uint64_t slot = self.slot_in(segment_id)
        if slot != SLOTS:
            self.aged[slot] = end
        return 0

    cdef uint64_t slot_in(self, uint64_t segment_id) noexcept:
        cdef uint64_t slot
        for slot in range(self.index.state.slots_used):
            if self.index.slot_table[slot] == segment_id:
                return slot
        return SLOTS

    cdef object survey(self, Segment segment, Scan *scan, uint64_t sweepable):
        # Where the records start that stay.
        cdef Footer footer
        cdef Ground ground
        cdef Region held
        cdef unsigned int[::1] view
        cdef Pause pause = Pause.MORE
        cdef uint64_t known = 0, slot = self.slot_in(segment.id), found, counted
        cdef uint64_t before = 0 if slot == SLOTS else self.index.dead[slot]
        memset(scan, 0, sizeof(scan[0]))
        self.reached = {}
        scan.slot = slot
        scan.needed = self.needed
        scan.sweepable = min(sweepable, self.needed)
        scan.expired = self.expired
        scan.cleared = self.cleared
        scan.clear_seq = self.clear_seq
        scan.floor = self.floor
        if not segment.load_footer(&footer) or footer.end > segment.limit:
            raise CorruptionError("a sealed segment has no footer that verifies; restore it from a backup", segment.path)
        scan.base = segment.base
        scan.end = footer.end
        scan.id = segment.id
        scan.base_seq = segment.base_seq
        scan.offset = SEGMENT_HEADER_SIZE
        places = array.array("I", bytes(4 * footer.records))
        if footer.records == 0:
            return places
        view = places
        scan.places = <uint32_t *>&view[0]
        while pause != Pause.DONE:
            held = ground_of(self.index, &ground)
            ground.aged = self.aged
            with nogil:
                pause = scan_some(scan, &ground, footer.records, PIECE)
            segment.region.check()
            held.check()
            if pause == Pause.ASKING:
                self.decide(scan, footer.seq)
            elif pause == Pause.DAMAGED_HERE:
                raise CorruptionError(
                    f"the record at offset {scan.offset} does not verify, or is no store's; restore the segment from a backup",
                    segment.path)
            elif pause == Pause.OUTGROWN_HERE:
                self.index.follow()
                if known == self.index.limit:
                    raise CorruptionError(
                        f"the index leads beyond its {known} bytes; delete it, it is rebuilt from the log", self.index.file.path)
                known = self.index.limit
            PyErr_CheckSignals()
            if self.halted is not None:
                self.halted()
            if self.store.index is not self.index:
                raise Replaced
        if slot != SLOTS:
            # What writers added meanwhile was found where it lay ahead, and not where it lay behind. A count that can be right is: were
            # anything counted twice, a cache would take that for room. Of a clear since this pass began nothing was seen.
            self.log.pause()
            if self.index.state.clear_seq == self.clear_seq:
                found = (scan.dead + scan.removed_bytes) // UNIT
                counted = self.index.dead[slot]
                self.index.dead[slot] = <uint32_t>min(max(counted, found), found + counted - before)
            self.log.unpause()
        view = None
        return places[:scan.count]

    cdef int decide(self, Scan *scan, uint64_t stop) except -1:
        # Of a record that nothing leads to, whether a snapshot would come to it. `stop` is the first number behind its segment.
        cdef Record record
        cdef PayloadHeader payload
        cdef const char *key = NULL
        cdef Told *told
        cdef int hops = 0
        read_record(scan.base, scan.offset, scan.end, scan.id, scan.base_seq, False, &record)
        split_payload(&record, &payload, &key)
        known = self.reached.get(PyBytes_FromStringAndSize(key, payload.key_length)) if self.reached else None
        if known is None:
            reached = self.is_reached(record.seq, key, payload.key_length, &hops)
            if hops <= HOPS_LONG:
                settle(scan, &record, &payload, reached)
                return 0
            # A key that is written to all the time: each of its records here would ask, and go through all that came since.
            known = self.reached_in(scan.base_seq, stop, key, payload.key_length)
            self.reached[PyBytes_FromStringAndSize(key, payload.key_length)] = known
        told = &scan.told[xxh3(key, payload.key_length, self.index.seed) % TOLD]
        told.key, told.key_size, told.below, told.seq = key, payload.key_length, self.needed, known[1]
        settle(scan, &record, &payload, record.seq in known[0])
        return 0

    cdef bint is_reached(self, uint64_t seq, const char *key, uint64_t key_size, int *hops) except -1:
        # Whether the way from the newest version of a key to what is needed leads over this one; and how long it was.
        cdef Hit hit
        cdef Outcome outcome = self.newest(key, key_size, &hit)
        while outcome == PRESENT:
            if hit.seq == seq:
                return True
            if hit.seq < self.needed or hit.seq < seq:
                return False
            hops[0] += 1
            outcome = self.before(key, key_size, &hit)
        return False

    cdef tuple reached_in(self, uint64_t start, uint64_t stop, const char *key, uint64_t key_size):
        # The numbers in [start, stop) of the versions on that way, and which of them was current at `needed`, or NONE.
        cdef Hit hit
        cdef Outcome outcome = self.newest(key, key_size, &hit)
        numbers = set()
        while outcome == PRESENT and hit.seq >= start:
            if hit.seq < stop:
                numbers.add(hit.seq)
            if hit.seq < self.needed:
                return numbers, hit.seq
            outcome = self.before(key, key_size, &hit)
        return numbers, NONE

    cdef Outcome newest(self, const char *key, uint64_t key_size, Hit *hit) except *:
        # The newest version of a key: PRESENT or ABSENT.
        cdef Index index = self.index
        cdef Outcome outcome
        while True:
            outcome = index.find(xxh3(key, key_size, index.seed), key, key_size, False, hit)
            if outcome == PRESENT or outcome == ABSENT:
                return outcome
            self.store.settle(index, outcome, hit)
            if self.store.index is not index:
                raise Replaced

    cdef Outcome before(self, const char *key, uint64_t key_size, Hit *hit) except *:
        # The version before one: PRESENT, or ABSENT when there is none any more.
        cdef Index index = self.index
        cdef Outcome outcome
        while True:
            outcome = index.version_before(hit.seq, 0, False, hit)
            if outcome == PRESENT:
                return PRESENT
            if outcome == ABSENT or outcome == TOO_OLD:
                return ABSENT
            if outcome == STRAY or outcome == UNMAPPED:
                try:
                    index.settle(outcome, hit)
                except SnapshotTooOld:
                    return ABSENT
            else:
                self.store.settle(index, outcome, hit)
                if self.store.index is not index:
                    raise Replaced

    def copy(self, Segment source, offsets, Draft target):
        """Copy records as `copy_records` of the log does, and take the way to versions away that nobody needs any more."""
        cdef const unsigned int[::1] places = offsets
        cdef Py_ssize_t at, count = len(offsets)
        cdef bint placed = True
        with nogil:
            for at in range(count):
                placed = copy_one(source, source.base + <uint64_t>places[at] * UNIT, target, self.needed)
                if not placed:
                    break
        source.region.check()
        if not placed:
            target.refuse(source)

    def replace(self, Draft made, listed, replaced, swept):
        """Put a segment in the place of others in MANIFEST, then in the index; then they go, with their hints."""
        cdef Log log = self.log
        # What was left out is superfluous for records below that: a power cut must not take these.
        log.flush_to(self.needed)
        with self.store._index_lock:
            if self.store.index is not self.index or self.index.retired:
                raise Replaced
            relocation.begin(self.index, self.log, made.id)
            try:
                log.replace_segments(made, listed, replaced, swept, partial(self.lead, listed, replaced))
                self.made = made.id
            except BaseException:
                log.segments.relist()
                if listed not in log.segments.manifest.compacted:
                    relocation.give_up(self.index, log)
                raise
        hints.remove(log, [each.name for each in replaced])

    def lead(self, listed, replaced):
        """Lead the index to the segment that is listed now, from those it replaces."""
        cdef Index index = self.index
        while True:
            if not relocation.carry_out(index, self.log, listed, False, replaced):
                self.store._rebuild_index(index)
            if not (self.store.several and index.retired):
                return
            # Another process has put another one in its place, which may lead to what was there before. One that is built from now
            # on does not.
            self.store._reload_index(index)
            index = self.store.index
