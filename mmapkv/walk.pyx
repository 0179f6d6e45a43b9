# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Walking over a store in the order of its log."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy

from mmapio cimport _fault
from mmapio._os cimport now_ns
from mmapkv.approach cimport Probe, approach, leads_to
from mmapkv.catch_up cimport parse
from mmapkv.format cimport EXPIRY_SIZE, FLAG_EXPIRY, KIND_PUT, SLOTS, PayloadHeader, make_address
from mmapkv.index cimport ABSENT, PRESENT, REPLACED, STRAY, TOO_OLD, UNMAPPED, Hit, Index, Outcome, is_doubtful
from mmapkv.reader cimport StoreReader
from mmapkv.slots cimport known_slot
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport Record
from mmaplog.replay cimport Replay
from mmaplog.segment cimport Segment

from mmapkv.errors import SnapshotTooOld
from mmaplog.errors import CorruptionError

KEYS = 0
VALUES = 1
ITEMS = 2
# The keys whose time to live is over, though nobody has deleted them.
EXPIRED = 3
# Items, each with the time at which it expires, in nanoseconds since 1970, or None.
ENTRIES = 4

cdef enum:
    # Records that are read at once, to be looked up side by side: few at first, for a walk that is left soon, then ever more.
    BLOCK_FIRST = 4
    BLOCK = 64
    # Keys that were changed since a walk began and that it remembers, by a part of their hashes.
    TOLD = 4096
    # Of so many bytes at most each, a MiB in all.
    TOLD_KEY_MAX = 256


# No record has this number.
cdef uint64_t NONE = <uint64_t>-1


cdef struct Step:
    # A put that was read from the log and verified. Its key is in the probe of the same number.
    uint64_t seq
    uint64_t address            # as an entry of the index has it; 0 when that does not know the segment
    const char *value
    uint64_t value_size
    uint64_t expires            # nanoseconds since 1970, or 0


cdef class Walk:
    """Iterates over keys, values, items or entries as they were when it was made.

    The log up to that moment is read once; a record counts when it is the newest of its key below that moment. So the
    store may be changed meanwhile without anything being skipped, repeated or mixed. What has a time to live is told by the clock, or as at
    `now`. Costs a look-up for each record, of which many are under way together.
    """

    cdef StoreReader store
    cdef Replay replay
    cdef readonly uint64_t stop
    cdef uint64_t now           # nanoseconds since 1970; 0: whenever a record is come to
    cdef int what
    cdef object pin             # keeps compaction from removing what is still to come, or None
    cdef list segments          # that the steps point into
    cdef uint64_t faults        # of this process, when the segments were last found without
    cdef bint running           # in some thread; what is below is of no use to another then
    cdef bint ended             # whether it has told that nothing is to come
    cdef dict told              # of some keys that were changed since: the key, and the number of what it was when the walk began
    cdef object error           # what came after the steps, to be raised after them
    cdef uint64_t block         # how many to read next
    cdef uint64_t count         # of steps
    cdef uint64_t at            # the first that is still to come
    cdef Step steps[BLOCK]
    cdef Probe probes[BLOCK]

    def __cinit__(self, StoreReader store not None, Replay replay not None, int what, uint64_t now=0, pin=None):
        self.store = store
        self.replay = replay
        self.stop = replay.stop
        self.what = what
        self.block = BLOCK_FIRST
        self.now = now
        self.pin = pin
        self.told = {}

    def __iter__(self):
        return self

    def __next__(self):
        if self.running:
            # Whoever reads on lets go of the GIL now and then.
            raise ValueError("the walk is being continued already, by another thread or below this call; each needs its own")
        self.running = True
        try:
            return self.next_found()
        finally:
            self.running = False

    cdef object next_found(self):
        cdef uint64_t at
        while True:
            if self.at == self.count:
                if self.error is not None:
                    error, self.error = self.error, None
                    raise error
                if self.replay.seq >= self.stop:
                    if (not self.ended and self.pin is None
                            and self.store.index is not None and self.store.index.horizon > self.stop):
                        raise SnapshotTooOld(
                            f"compaction has removed what was current before record {self.stop}; begin anew", self.store._path)
                    # From now on nothing holds up compaction for it, nor can be too old for it.
                    self.ended = True
                    self.pin = None
                    raise StopIteration
                self.read_block()
                continue
            if self.store.index is None:
                self.store.raise_closed()
            at = self.at
            self.at += 1
            if self.expired(self.steps[at].expires) != (self.what == 3):
                continue
            if leads_to(&self.probes[at], self.steps[at].address) or self.newest(&self.probes[at], self.steps[at].seq):
                return self.made_of(at)

    cdef int read_block(self) except -1:
        cdef Record record
        cdef PayloadHeader payload
        cdef Segment segment = None
        cdef Index index = self.store.index
        cdef Probe *probe
        cdef Step *step
        cdef const char *key
        cdef uint64_t slot = SLOTS
        if index is None:
            self.store.raise_closed()
        self.at = self.count = 0
        self.segments = []
        self.faults = _fault.faults()
        while self.count < self.block and self.replay.seq < self.stop:
            try:
                if not self.replay.read(&record, True):
                    break
                parse(&record, self.replay, &payload, &key)
            except Exception as error:
                if self.count == 0:
                    raise
                self.error = error
                break
            if self.replay.segment is not segment:
                segment = self.replay.segment
                self.segments.append(segment)
                slot = known_slot(index.state, index.slot_table, segment.id)
            if payload.kind != KIND_PUT:
                continue
            probe = &self.probes[self.count]
            probe.key = key
            probe.key_size = payload.key_length
            probe.entry = 0
            step = &self.steps[self.count]
            step.seq = record.seq
            step.address = make_address(slot, self.replay.start) if slot != SLOTS else 0
            step.value = record.payload + record.payload_size - payload.value_length
            step.value_size = payload.value_length
            step.expires = 0
            if payload.flags & FLAG_EXPIRY:
                memcpy(&step.expires, key - EXPIRY_SIZE, sizeof(step.expires))
            self.count += 1
        self.block = min(2 * self.block, <uint64_t>BLOCK)
        approach(index, self.probes, self.count)
        return 0

    cdef object made_of(self, uint64_t at):
        cdef Segment segment
        key = value = None
        if self.what != 1:
            key = PyBytes_FromStringAndSize(self.probes[at].key, self.probes[at].key_size)
        if self.what == 1 or self.what == 2 or self.what == 4:
            value = PyBytes_FromStringAndSize(self.steps[at].value, self.steps[at].value_size)
        if _fault.faults() != self.faults:
            # Since these records were verified a page was not there: what was copied may be zeros.
            self.faults = _fault.faults()
            for each in self.segments:
                segment = each
                segment.region.check()
        if self.what == 2:
            return key, value
        if self.what == 4:
            return key, value, self.steps[at].expires or None
        return value if self.what == 1 else key

    cdef bint expired(self, uint64_t expires) noexcept:
        return expires != 0 and expires <= (self.now or now_ns())

    cdef bint newest(self, const Probe *probe, uint64_t seq) except -1:
        # Whether record `seq` is what its key had last when the walk began.
        cdef Hit hit
        cdef Outcome outcome
        cdef Index index
        cdef uint64_t hash, newest
        while True:
            index = self.store.index
            if index is None:
                self.store.raise_closed()
            hash = xxh3(probe.key, probe.key_size, index.seed)
            if self.told:
                # A key that is written to all the time has as many versions since as records that ask.
                known = self.told.get(hash % TOLD)
                if known is not None and is_key(known[0], probe):
                    return seq == <uint64_t>known[1]
            # Verified: a newer record with a damaged number would let an older one pass for the newest.
            outcome = REPLACED if is_doubtful(index) else index.find(hash, probe.key, probe.key_size, True, &hit)
            newest = hit.seq if outcome == PRESENT else 0
            if _fault.faults() != self.store.faults and outcome != REPLACED:
                self.store.check_faults()
            while outcome == PRESENT:
                outcome = index.version_before(self.stop, 0, False, &hit)
                if outcome == PRESENT:
                    if newest >= self.stop:
                        self.tell(hash, probe, hit.seq)
                    return hit.seq == seq
                if outcome == STRAY or outcome == UNMAPPED or outcome == TOO_OLD:
                    try:
                        self.store.settle(index, outcome, &hit, self.pin is not None)
                        outcome = PRESENT
                    except (CorruptionError, SnapshotTooOld):
                        if index.private or not index.retired:
                            raise
                        # It was replaced while the version was looked for. The new one leads there, too.
                        outcome = REPLACED
            if outcome == ABSENT:
                if newest >= self.stop:
                    self.tell(hash, probe, NONE)
                return False
            self.store.settle(index, outcome, &hit)

    cdef int tell(self, uint64_t hash, const Probe *probe, uint64_t seq) except -1:
        if probe.key_size <= TOLD_KEY_MAX:
            self.told[hash % TOLD] = PyBytes_FromStringAndSize(probe.key, probe.key_size), seq
        return 0


cdef bint is_key(bytes known, const Probe *probe) noexcept:
    return <uint64_t>len(known) == probe.key_size and memcmp(<const char *>known, probe.key, probe.key_size) == 0
