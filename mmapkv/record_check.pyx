# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Looking at every record of a store: what it says, the version before it, and the entry of its key."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from mmapio cimport _fault
from mmapio cimport _memory as memory
from mmapkv.catch_up cimport parse
from mmapkv.clearance cimport bound_of
from mmapkv.dead_bytes cimport way_size
from mmapkv.format cimport (
    FLAG_CREATES,
    FLAG_PREVIOUS,
    KIND_CLEAR,
    KIND_DELETE,
    KIND_PUT,
    PAYLOAD_HEADER_SIZE,
    PayloadHeader,
    Previous,
    head_size,
)
from mmapkv.index cimport ABSENT, OUTGROWN, PRESENT, REPLACED, STRAY, UNMAPPED, Hit, Index, Outcome
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport Record
from mmaplog.log cimport Log
from mmaplog.replay cimport Replay
from mmaplog.segment cimport Segment

from mmaplog.errors import CorruptionError, FormatError, TooOld

# So many records are looked at before other threads may run.
cdef int STEP = 256
# Of a key that was changed more often than that meanwhile it is not asked what it was before: each of its records would ask.
cdef int HOPS_MAX = 64


class Replaced(Exception):
    """The index was built anew meanwhile; the one to check is another."""


cdef bint key_of(Record *record, const char **key, uint64_t *key_size) noexcept:
    # The key in a record that verifies, False when it is not one of a store.
    cdef PayloadHeader payload
    cdef uint64_t head
    if record.payload_size < PAYLOAD_HEADER_SIZE:
        return False
    memcpy(&payload, record.payload, sizeof(payload))
    head = head_size(payload.flags)
    if payload.key_length == 0 or head + payload.key_length > record.payload_size:
        return False
    key[0] = record.payload + head
    key_size[0] = payload.key_length
    return True


cdef class RecordCheck:
    """Walks over the records below `stop`: invariants 3 and 8.

    `found` says what is wrong, as (path, offset, reason, whether it is the index that is wrong). That each version of a key is followed by one at most is kept account of
    for the `numbers` record numbers from `window` on, a bit for each; with `chains_only` nothing else is looked at. Costs a
    look-up for each record, one more for the version before it, and one by its number where the hint to that is out of date.
    """

    cdef Index index
    cdef Log log
    cdef Replay replay
    cdef uint64_t first_seq, stop, window, numbers, faults
    cdef uint64_t shown         # records below counted as deleted when `stop` was yet to come
    cdef uint64_t cleared       # by the clears that were come to so far
    cdef bint chains_only
    cdef bint incomplete        # records were skipped
    cdef set missing            # slots whose log segment cannot be opened
    cdef unsigned char *followed
    cdef uint64_t followed_count, in_window
    cdef readonly uint64_t records
    cdef readonly uint64_t keys         # that were present when the record `stop` was yet to come
    cdef readonly uint64_t live_bytes
    cdef readonly uint64_t unseen       # records of which it is not known: for damage that is reported elsewhere, or changes meanwhile
    cdef readonly list found

    def __dealloc__(self):
        free(self.followed)

    def __cinit__(
            self, Index index not None, Log log not None, uint64_t stop, uint64_t window, uint64_t numbers, bint chains_only, uint64_t shown):
        self.index = index
        self.log = log
        self.stop = stop
        self.window = window
        self.numbers = numbers
        self.chains_only = chains_only
        self.shown = shown
        self.first_seq = log.first_seq
        self.found = []
        self.missing = set()
        self.faults = _fault.faults()
        self.replay = log.replay(stop=stop)
        self.followed = <unsigned char *>calloc(numbers // 8 + 1, 1)
        if self.followed == NULL:
            raise MemoryError

    @property
    def seq(self):
        """The number of the record to come."""
        return self.replay.seq

    def step(self):
        """Look at some more records; False when there are none left. CorruptionError where the log is damaged."""
        cdef Record record
        cdef int count
        for count in range(STEP):
            if not self.replay.read(&record, True):
                return False
            self.look_at(&record)
        if _fault.faults() != self.faults:
            self.check_faults()
        return True

    def skip_segment(self):
        """Go on with the next segment, after damage; False when there is none."""
        bases = [base for base in self.log.segments.bases() if self.replay.seq < base < self.stop]
        self.incomplete = True
        if not bases:
            return False
        self.replay = self.log.replay(bases[0], self.stop)
        return True

    def skip_removed(self):
        """Go on with what is left, where the beginning left the log since `seq` was come to; False when nothing is."""
        cdef uint64_t start = max(self.replay.seq, <uint64_t>self.log.first_seq)
        # Of these numbers nothing is known to be missing.
        self.incomplete = True
        if start >= self.stop:
            return False
        self.replay = self.log.replay(start, self.stop)
        return True

    cdef int look_at(self, Record *record) except -1:
        cdef PayloadHeader payload
        cdef const char *key
        cdef uint64_t seq = record.seq
        cdef bint newest
        self.records += 1
        try:
            parse(record, self.replay, &payload, &key)
        except (CorruptionError, FormatError) as error:
            self.incomplete = True
            self.add(record, f"is none of a store: {error.strerror}")
            return 0
        if payload.kind == KIND_CLEAR:
            # Of no key: nothing follows it.
            self.cleared = max(self.cleared, bound_of(record))
            if self.window <= seq < self.window + self.numbers:
                self.in_window += 1
                self.mark(seq)
            return 0
        newest = self.look_up(record, key, payload.key_length)
        if newest and payload.kind == KIND_PUT and seq >= self.shown:
            self.keys += 1
            self.live_bytes += record.size - way_size(self.index, payload.flags)
        if self.window <= seq < self.window + self.numbers:
            self.in_window += 1
            if newest:
                self.mark(seq)
        self.look_back(record, &payload, key)
        return 0

    cdef bint look_up(self, Record *record, const char *key, uint64_t key_size) except -1:
        # Whether the record was the newest of its key when `stop` was yet to come.
        cdef Hit hit, older
        cdef Outcome outcome
        cdef int hops = 0
        while True:
            outcome = self.index.find(xxh3(key, key_size, self.index.seed), key, key_size, False, &hit)
            if outcome == PRESENT:
                break
            if outcome == ABSENT and record.seq < self.index.state.cleared:
                # Entries go before the segments do. What followed it is not looked for; of what was cleared since `stop` was yet to come,
                # nor whether anything did.
                self.incomplete = True
                self.unseen += record.seq >= self.shown
                return False
            if outcome == ABSENT:
                self.add(record, f"is of key {shown(key, key_size)!r}, which has no entry in the index", True)
                return False
            if not self.settle(outcome, &hit):
                self.unseen += 1
                return False
        if hit.seq < record.seq:
            self.add(record, f"is newer than record {hit.seq}, to which the index leads for its key {shown(key, key_size)!r}", True)
            return False
        while hit.seq >= self.stop:
            # Changed meanwhile.
            hops += 1
            if hit.previous == 0 or hops > HOPS_MAX:
                self.unseen += 1
                return False
            outcome = self.index.match(hit.previous, hit.key, hit.key_size, False, &older)
            if outcome == PRESENT and older.seq == hit.previous_seq:
                hit = older
            elif outcome != UNMAPPED or not self.settle(outcome, &older):
                self.unseen += 1
                return False
        return hit.seq == record.seq

    cdef bint settle(self, Outcome outcome, Hit *hit) except -1:
        # Whether it is worth looking again. Damage that is in the way is found by who looks at that.
        if outcome == REPLACED or self.index.is_replaced():
            raise Replaced
        if outcome not in (UNMAPPED, OUTGROWN, STRAY) or (outcome == UNMAPPED and hit.slot in self.missing):
            return False
        try:
            self.index.settle(outcome, hit)
        except (CorruptionError, FormatError, TooOld):
            if outcome == UNMAPPED and self.index.slots.slots[hit.slot].base == NULL:
                self.missing.add(hit.slot)
            return False
        return True

    cdef int look_back(self, Record *record, PayloadHeader *payload, const char *key) except -1:
        # At the version before.
        cdef Previous previous
        cdef int deleted
        cdef bint creates = payload.flags & FLAG_CREATES != 0, deletes = payload.kind == KIND_DELETE
        cdef uint64_t cleared, clear_seq, padding = 0, head = key + payload.key_length - record.payload
        memcpy(&padding, key + payload.key_length, record.payload_size - payload.value_length - head)
        if padding:
            self.add(record, "has other bytes than zeros between its key and its value")
        if deletes and (payload.value_length or creates):
            self.add(record, "deletes, and has a value or says that it creates")
        if not payload.flags & FLAG_PREVIOUS:
            # Compaction leaves out what nobody needs any more, and does not say of a deletion or a value what it was before.
            if deletes or not creates:
                if not self.replay.segment.sparse:
                    self.add(record, f"{'deletes' if deletes else 'replaces'} key {shown(key, payload.key_length)!r} without naming a version before")
                # What it followed may still be there.
                self.incomplete = True
            return 0
        memcpy(&previous, record.payload + PAYLOAD_HEADER_SIZE, sizeof(previous))
        if previous.seq >= record.seq:
            self.add(record, f"names record {previous.seq}, which comes after it, as the version before")
            return 0
        if previous.seq < self.first_seq:
            return 0
        if self.window <= previous.seq < self.window + self.numbers and not self.mark(previous.seq):
            self.report(record, f"follows record {previous.seq}, which is the newest of its key, or is followed by another one")
        if self.chains_only:
            return 0
        # In this order: see `store_clear`.
        cleared = memory.load_acquire(&self.index.state.cleared)
        clear_seq = memory.load_acquire(&self.index.state.clear_seq)
        deleted = self.is_deletion(&previous, key, payload.key_length)
        if deleted == 0 and previous.seq < self.cleared:
            deleted = 1
        elif deleted == 0 and previous.seq < cleared:
            # By a clear that left the log since, or an earlier one that did so before.
            deleted = 1 if record.seq > clear_seq else GONE
        if deleted == OTHER_KEY:
            self.add(record, f"names record {previous.seq}, which is of another key, as the version before")
        elif deleted != GONE and not deletes and creates != deleted:
            self.add(record, f"says that it {'creates' if creates else 'replaces'}, but the version before, record {previous.seq}, "
                             f"{'deletes' if deleted else 'does not delete'}")
        elif deleted == 1 and deletes:
            self.add(record, f"deletes what record {previous.seq} has deleted")
        return 0

    cdef int is_deletion(self, Previous *previous, const char *key, uint64_t key_size) except -1:
        # Whether the version before deletes the key; or OTHER_KEY, or GONE when the log has it no more.
        cdef Hit hit
        cdef Record record
        cdef PayloadHeader payload
        cdef const char *other
        cdef Replay replay
        cdef Outcome outcome = self.index.match(previous.address, key, key_size, False, &hit)
        # No entry may lead there any more, and then nobody else has it mapped.
        if outcome == UNMAPPED and self.settle(outcome, &hit):
            outcome = self.index.match(previous.address, key, key_size, False, &hit)
        if outcome == PRESENT and hit.seq == previous.seq:
            return hit.deleted
        # The position is a hint. By its number, then.
        try:
            replay = Replay(self.log.segments, previous.seq, previous.seq + 1, True, 0)
            if not replay.read(&record, True) or record.seq != previous.seq:
                return GONE
            parse(&record, replay, &payload, &other)
        except (CorruptionError, FormatError, TooOld):
            return GONE
        if payload.key_length != key_size or memcmp(other, key, key_size) != 0:
            return OTHER_KEY
        return payload.kind == KIND_DELETE

    cdef bint mark(self, uint64_t seq) noexcept:
        # Notes that the record is followed by another of its key, or by none to come; False when it was noted before.
        cdef uint64_t at = seq - self.window
        if self.followed[at >> 3] >> (at & 7) & 1:
            return False
        self.followed[at >> 3] |= 1 << (at & 7)
        self.followed_count += 1
        return True

    def check_chains(self):
        """Report the versions that none follows, though they are not the newest. For when all records were looked at.

        Where records are missing, by compaction, repair or damage, nothing can be said.
        """
        cdef Record record
        if self.incomplete or self.unseen or self.records != self.stop - self.first_seq or self.followed_count == self.in_window:
            return
        self.replay = self.log.replay(stop=self.stop)
        while self.replay.read(&record, False):
            if record.seq < self.index.state.cleared:
                # Its entry may be gone, and who puts the key anew knows nothing of it then.
                continue
            if self.window <= record.seq < self.window + self.numbers and self.mark(record.seq):
                self.report(&record, "is not the newest of its key, and no record names it as the version before")

    cdef int add(self, Record *record, reason, of_index=False) except -1:
        if not self.chains_only:
            self.report(record, reason, of_index)
        return 0

    cdef int report(self, Record *record, reason, of_index=False) except -1:
        self.found.append((self.replay.segment.path, self.replay.offset - record.size, f"record {record.seq} {reason}", of_index))
        return 0

    cdef int check_faults(self) except -1:
        # A page that was not there reads as zeros. The log's own are looked at by the replay.
        cdef Segment segment
        self.index.region.check()
        for each in self.index.slots.segments:
            if each is not None:
                segment = each
                segment.region.check()
        self.faults = _fault.faults()
        return 0


cdef enum:
    OTHER_KEY = 2
    GONE = 3


cdef object shown(const char *key, uint64_t size):
    return PyBytes_FromStringAndSize(key, min(size, 40))
