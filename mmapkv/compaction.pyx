# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Rewriting the segments of a store without what nobody needs any more: superseded values, and deletions at last.

A record is needed while the index leads to it, or while a walk or snapshot may still come to it. What stays is copied, sealed
and synced before MANIFEST names it; then the entries are led to the copies, and the old files go.
"""

import array
from functools import partial

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from mmapio cimport _memory as memory
from mmapio.region cimport Region
from mmapkv.format cimport (
    FLAG_CREATES,
    FLAG_PREVIOUS,
    KIND_CLEAR,
    KIND_DELETE,
    KIND_PUT,
    PAYLOAD_HEADER_SIZE,
    PREVIOUS_SIZE,
    SLOTS,
    PayloadHeader,
    make_address,
)
from mmapkv.index cimport ABSENT, PRESENT, STRAY, TOO_OLD, UNMAPPED, Hit, Index, Outcome
from mmapkv.relocation cimport Fate, Ground, fate_of, ground_of, split_payload
from mmapkv.writer cimport StoreWriter
from mmaplog.checksum cimport xxh3
from mmaplog.compaction cimport settle_copy
from mmaplog.format cimport (
    FLAG_TIME,
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    TIME_SIZE,
    UNIT,
    Footer,
    Found,
    Record,
    RecordHeader,
    read_record,
)
from mmaplog.log cimport Log
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet

from mmapkv import relocation
from mmapkv.clearing import drop_head
from mmapkv.errors import SnapshotTooOld
from mmaplog.compaction import Compaction, Group, fits, rewrite, sealed_segments
from mmaplog.errors import CorruptionError

# So many records are looked at before others may have the GIL, and a signal be noticed.
cdef uint64_t PIECE = 10_000
# A segment with nothing to remove is taken along when it is smaller than this part of a full one.
cdef uint64_t SMALL_PART = 4
# The index is built anew under a compaction when keys collide, and that more often than this is no accident.
cdef int ATTEMPTS = 3


class Replaced(Exception):
    """The index that was gone by is not the store's any more."""


cdef enum Pause:
    DONE
    MORE
    ASKING                      # the record at `offset` is for the caller to decide
    DAMAGED_HERE
    OUTGROWN_HERE


cdef struct Scan:
    # Going through one segment.
    const char *base
    uint64_t end
    uint64_t id
    uint64_t base_seq
    uint64_t slot
    uint64_t offset
    uint64_t needed             # what was current at this number or later is needed
    uint64_t cleared            # what is below is dead; ...
    uint64_t floor              # ... and nobody looks for it any more, if it is below this
    uint64_t clear_seq          # the record that says so
    bint drop_tombstones
    uint32_t *places            # of what stays
    uint64_t count
    uint64_t size               # of the copies
    uint64_t removed
    uint64_t removed_bytes
    uint64_t dead               # bytes of what stays though nothing leads to it, or only to say that a key is absent


def require_writer(StoreWriter store):
    """Raise Closed, InvalidMode or Poisoned for a store that cannot be compacted."""
    if store.index is None:
        store.raise_closed()
    store.log.check_writable()


def compact(StoreWriter store, pins):
    """Rewrite every segment of the log that has something to remove: what :meth:`mmapkv.KVStore.compact` does."""
    cdef Log log = store.log
    cdef Pass current
    cdef int attempt
    cdef uint64_t segment_id, seq, end
    counts = [0, 0, 0, 0]
    log.begin_care("a compaction")
    try:
        for attempt in range(ATTEMPTS):
            make_ready(store)
            if store.index.dead[store.tail_slot]:
                log.roll_tail()
            log.flush()
            segment_id, seq, end = log.segment_id, log.seq, log.end
            current = Pass(store, pins.oldest(store.index), counts)
            if current.needed >= seq:
                current.learn_age(segment_id, end)
            try:
                current.drop_head()
                current.run()
            except Replaced:
                if attempt + 1 == ATTEMPTS:
                    raise
            else:
                break
        return Compaction(*counts)
    finally:
        log.end_care()


cdef int make_ready(StoreWriter store) except -1:
    # The index is one that is written to, and leads nowhere but to segments that count.
    cdef Log log = store.log
    cdef Index index
    with store._index_lock:
        while store.tail_id != log.segment_id:
            store.prepare(store.index)
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
    cdef list counts
    cdef object group           # that is to become one segment, or None

    def __cinit__(self, StoreWriter store, uint64_t needed, list counts):
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
        with self.store._index_lock:
            if self.store.index is not self.index:
                raise Replaced
            segments, records, size = drop_head(self.index, self.log, self.floor)
        self.counts[0] += segments
        self.counts[2] += records
        self.counts[3] += size
        return 0

    cdef int run(self) except -1:
        cdef SegmentSet segments = self.log.segments
        cdef Segment segment
        cdef Scan scan
        cdef uint64_t stop, before, slot, segment_bytes = segments.manifest.segment_bytes
        # Nothing in the segments so far could bring a deleted key back, were the index built from the log.
        cdef bint clean = True, small
        sealed = sealed_segments(self.log)
        self.learn_ages()
        for segment in sealed:
            stop = segments.boundary_of(segment, 0)
            slot = self.slot_in(segment.id)
            before = 0 if slot == SLOTS else self.index.dead[slot]
            small = self.group is not None and segment.limit < segment_bytes // SMALL_PART
            if before == 0 and not small:
                self.rewrite_group()
                continue
            memset(&scan, 0, sizeof(scan))
            scan.slot = slot
            scan.needed = self.needed
            scan.cleared = self.cleared
            scan.floor = self.floor
            scan.clear_seq = self.clear_seq
            scan.drop_tombstones = clean
            places = self.survey(segment, &scan)
            if slot != SLOTS:
                # What writers added meanwhile may be in both parts, but in one at least.
                self.index.dead[slot] += <uint32_t>((scan.dead + scan.removed_bytes) // UNIT) - <uint32_t>before
            clean = clean and scan.dead == 0
            if scan.removed == 0 and not small:
                self.rewrite_group()
                continue
            if self.group is not None and not fits(self.group, segment, stop, scan.size, segment_bytes):
                self.rewrite_group()
            if self.group is None:
                self.group = Group([], [], 0, 0, 0, 0)
            self.group.segments.append(segment)
            self.group.kept.append(places)
            self.group.size += scan.size
            self.group.records += scan.count
            self.group.removed += scan.removed
            self.group.stop = stop
        self.rewrite_group()
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

    cdef object survey(self, Segment segment, Scan *scan):
        # Where the records start that stay.
        cdef Footer footer
        cdef Ground ground
        cdef Region held
        cdef unsigned int[::1] view
        cdef Pause pause = MORE
        cdef uint64_t known = 0
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
        while pause != DONE:
            held = ground_of(self.index, &ground)
            ground.aged = self.aged
            with nogil:
                pause = scan_some(scan, &ground, footer.records, PIECE)
            segment.region.check()
            held.check()
            if pause == ASKING:
                self.decide(scan)
            elif pause == DAMAGED_HERE:
                raise CorruptionError(
                    f"the record at offset {scan.offset} does not verify, or is no store's; restore the segment from a backup",
                    segment.path)
            elif pause == OUTGROWN_HERE:
                if known == self.index.limit:
                    raise CorruptionError(
                        f"the index leads beyond its {known} bytes; delete it, it is rebuilt from the log", self.index.file.path)
                known = self.index.limit
            PyErr_CheckSignals()
            if self.store.index is not self.index:
                raise Replaced
        view = None
        return places[:scan.count]

    cdef int decide(self, Scan *scan) except -1:
        # Of a record that nothing leads to, whether a snapshot would come to it.
        cdef Record record
        cdef PayloadHeader payload
        cdef const char *key = NULL
        read_record(scan.base, scan.offset, scan.end, scan.id, scan.base_seq, False, &record)
        split_payload(&record, &payload, &key)
        if self.is_reached(record.seq, key, payload.key_length):
            scan.dead += record.size if payload.kind == KIND_PUT and record.seq >= scan.cleared else 0
            keep(scan, &record, &payload)
        else:
            drop(scan, &record)
        return 0

    cdef bint is_reached(self, uint64_t seq, const char *key, uint64_t key_size) except -1:
        cdef Index index = self.index
        cdef Hit hit
        cdef Outcome outcome
        while True:
            outcome = index.find(xxh3(key, key_size, index.seed), key, key_size, False, &hit)
            while outcome == PRESENT:
                if hit.seq == seq:
                    return True
                if hit.seq < self.needed or hit.seq < seq:
                    return False
                outcome = index.version_before(hit.seq, 0, False, &hit)
                if outcome == STRAY or outcome == UNMAPPED:
                    try:
                        index.settle(outcome, &hit)
                    except SnapshotTooOld:
                        return False
                    outcome = PRESENT
            if outcome == ABSENT or outcome == TOO_OLD:
                return False
            self.store.settle(index, outcome, &hit)
            if self.store.index is not index:
                raise Replaced

    def copy(self, Segment source, offsets, Segment target, uint64_t end):
        """Copy records as `copy_records` of the log does, and take the way to versions away that nobody needs any more."""
        cdef const unsigned int[::1] places = offsets
        cdef Py_ssize_t at, count = len(offsets)
        cdef uint64_t size
        cdef bint fitted = True
        with nogil:
            for at in range(count):
                size = copy_one(source, source.base + <uint64_t>places[at] * UNIT, target, end, self.needed)
                if size == 0:
                    fitted = False
                    break
                end += size
        source.region.check()
        target.region.check()
        if not fitted:
            raise CorruptionError("the segment was written to by others while its records were copied", source.path)
        return end

    def replace(self, Segment made, listed, names):
        """Put a segment in the place of others in MANIFEST, then in the index; then they go."""
        cdef Log log = self.log
        with self.store._index_lock:
            if self.store.index is not self.index:
                raise Replaced
            relocation.begin(self.index, made.id)
            try:
                log.replace_segments(made, listed, names, partial(self.lead, listed))
            except BaseException:
                log.segments.relist()
                if listed not in log.segments.manifest.compacted:
                    relocation.give_up(self.index)
                raise

    def lead(self, listed):
        """Lead the index to the segment that is listed now."""
        if not relocation.carry_out(self.index, self.log, listed, False):
            self.store._rebuild_index(self.index)


cdef Pause scan_some(Scan *scan, const Ground *ground, uint64_t records, uint64_t count) noexcept nogil:
    # Judges so many records. One that does not verify is damage: the segment is sealed.
    cdef Record record
    cdef PayloadHeader payload
    cdef const char *key
    cdef uint64_t *cell
    cdef Fate fate
    while scan.offset < scan.end:
        if count == 0:
            return MORE
        count -= 1
        if (read_record(scan.base, scan.offset, scan.end, scan.id, scan.base_seq, True, &record) != Found.RECORD
                or not split_payload(&record, &payload, &key) or scan.count == records):
            return DAMAGED_HERE
        if record.seq < scan.floor:
            drop(scan, &record)
            continue
        if payload.kind == KIND_CLEAR:
            # As a tombstone, of all keys; an older one says nothing that a newer one does not.
            if scan.floor and (scan.drop_tombstones or record.seq < scan.clear_seq):
                drop(scan, &record)
            else:
                keep(scan, &record, &payload)
            continue
        fate = fate_of(
            ground, xxh3(key, payload.key_length, ground.seed), make_address(scan.slot, scan.offset), &cell)
        if fate == Fate.BEYOND:
            return OUTGROWN_HERE
        if fate == Fate.UNDECIDED:
            return ASKING
        if fate == Fate.CURRENT and not (payload.kind == KIND_DELETE and scan.drop_tombstones and record.seq < scan.needed):
            keep(scan, &record, &payload)
        else:
            drop(scan, &record)
    return DONE


cdef void keep(Scan *scan, const Record *record, const PayloadHeader *payload) noexcept nogil:
    scan.places[scan.count] = <uint32_t>(scan.offset // UNIT)
    scan.count += 1
    scan.size += record.size
    if payload.flags & FLAG_PREVIOUS and record.seq < scan.needed:
        scan.size -= PREVIOUS_SIZE
    if payload.kind != KIND_PUT or record.seq < scan.cleared:
        scan.dead += record.size
    scan.offset += record.size


cdef void drop(Scan *scan, const Record *record) noexcept nogil:
    scan.removed += 1
    scan.removed_bytes += record.size
    scan.offset += record.size


cdef uint64_t copy_one(Segment source, const char *record, Segment target, uint64_t end, uint64_t needed) noexcept nogil:
    # How many bytes the copy has; 0 when there is no room for it.
    cdef RecordHeader header
    cdef PayloadHeader payload
    cdef uint64_t head, size
    cdef bint trims
    memcpy(&header, record, sizeof(header))
    size = <uint64_t>header.length * UNIT
    head = RECORD_HEADER_SIZE + (TIME_SIZE if header.flags & FLAG_TIME else 0)
    memcpy(&payload, record + head, sizeof(payload))
    trims = payload.flags & FLAG_PREVIOUS and source.base_seq + header.seq < needed
    if size - (PREVIOUS_SIZE if trims else 0) > target.limit - end:
        return 0
    if trims:
        payload.flags &= <uint8_t>~(FLAG_PREVIOUS | FLAG_CREATES)
        header.length -= PREVIOUS_SIZE // UNIT
        memcpy(target.base + end, record, head)
        memcpy(target.base + end, &header, sizeof(header))
        memcpy(target.base + end + head, &payload, sizeof(payload))
        head += PAYLOAD_HEADER_SIZE
        size -= PREVIOUS_SIZE
        memcpy(target.base + end + head, record + head + PREVIOUS_SIZE, size - head)
    else:
        memcpy(target.base + end, record, size)
    settle_copy(source, target, end)
    return size
