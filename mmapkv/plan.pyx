# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False, cdivision=True
"""What a batch will need of the index, counted before anything is written: storing its entries must not fail halfway."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset

from mmapkv.batch cimport Batch, Change, Fate
from mmapkv.format cimport BUCKETS, CHAIN_MAX, ENTRIES, LINE, OVERFLOW_LINES, PAGE, SEGMENT_PAGES, SegmentLine
from mmapkv.index cimport Index
from mmaplog.checksum cimport xxh3

# Multiplied by this, addresses that differ in few bits differ in the highest.
cdef uint64_t SPREAD = 0x9E3779B97F4A7C15


cdef class Plan:
    """The tables for one commit. Made by `plan_of`."""

    def __dealloc__(self):
        free(self.claims)
        free(self.others)
        free(self.newest)

    cdef void begin(self, Index index) noexcept:
        # Every change is to be looked up in this index, but for those that another one of the same key makes void.
        cdef uint64_t at, slot, mask = (<uint64_t>1 << self.newest_bits) - 1
        cdef Change *change
        cdef Change *other
        memset(self.claims, 0, sizeof(Claim) << self.claim_bits)
        memset(self.newest, 0, sizeof(uint32_t) << self.newest_bits)
        for at in range(self.batch.count):
            change = &self.batch.changes[at]
            change.fate = Fate.OPEN
            change.hash = xxh3(change.version.key, change.version.key_size, index.seed)
            slot = change.hash >> (64 - self.newest_bits)
            while self.newest[slot]:
                other = &self.batch.changes[self.newest[slot] - 1]
                if (other.hash == change.hash and other.version.key_size == change.version.key_size
                        and memcmp(other.version.key, change.version.key, change.version.key_size) == 0):
                    other.fate = Fate.VOID
                    break
                slot = (slot + 1) & mask
            self.newest[slot] = <uint32_t>(at + 1)

    cdef void reopen(self, char *segment) noexcept:
        # An index segment was split: what was planned for it is to be looked up again.
        cdef uint64_t at
        cdef Claim *each
        for at in range(self.batch.count):
            if self.batch.changes[at].fate == Fate.PLANNED and self.batch.changes[at].segment == segment:
                self.batch.changes[at].fate = Fate.OPEN
        # The table is made anew from what is left, so that it never holds more than the planned changes need.
        self.claims, self.others = self.others, self.claims
        memset(self.claims, 0, sizeof(Claim) << self.claim_bits)
        for at in range(<uint64_t>1 << self.claim_bits):
            each = &self.others[at]
            if each.count and not segment <= each.place < segment + SEGMENT_PAGES * PAGE:
                self.claim_of(each.place).count = each.count

    cdef bint claim(self, uint64_t hash, char *segment) noexcept:
        # Sets room aside for one entry more in the bucket of this hash; False when the segment must be split. The same limits
        # as `place` has, which then finds it.
        cdef uint64_t *line = <uint64_t *>(segment + LINE + (hash & (BUCKETS - 1)) * LINE)
        cdef Claim *bucket = self.claim_of(<char *>line)
        cdef Claim *overflow
        cdef uint64_t lines = 1, empty = 0, beyond
        while line[ENTRIES] != 0:
            if line[ENTRIES] > OVERFLOW_LINES or lines >= CHAIN_MAX:
                return False  # damaged, or as long as it gets: the split finds out
            line = <uint64_t *>(segment + LINE + (BUCKETS - 1 + line[ENTRIES]) * LINE)
            lines += 1
        while empty < ENTRIES and line[ENTRIES - 1 - empty] == 0:
            empty += 1
        if bucket.count >= empty:
            beyond = bucket.count - empty
            if beyond % ENTRIES == 0:
                overflow = self.claim_of(segment)
                if (lines + beyond // ENTRIES >= CHAIN_MAX
                        or (<SegmentLine *>segment).overflow_used + overflow.count >= OVERFLOW_LINES):
                    return False
                overflow.count += 1
        bucket.count += 1
        return True

    cdef Claim *claim_of(self, char *place) noexcept:
        cdef uint64_t mask = (<uint64_t>1 << self.claim_bits) - 1
        cdef uint64_t slot = <uint64_t>place // LINE * SPREAD >> (64 - self.claim_bits)
        while self.claims[slot].place != place:
            if self.claims[slot].place == NULL:
                self.claims[slot].place = place
                break
            slot = (slot + 1) & mask
        return &self.claims[slot]


cdef Plan plan_of(Batch batch):
    cdef Plan made = Plan.__new__(Plan)
    made.batch = batch
    made.newest_bits = bits_for(2 * batch.count)
    made.claim_bits = bits_for(4 * batch.count)
    made.newest = <uint32_t *>calloc(<uint64_t>1 << made.newest_bits, sizeof(uint32_t))
    made.claims = <Claim *>calloc(<uint64_t>1 << made.claim_bits, sizeof(Claim))
    made.others = <Claim *>calloc(<uint64_t>1 << made.claim_bits, sizeof(Claim))
    if made.newest == NULL or made.claims == NULL or made.others == NULL:
        raise MemoryError
    return made


cdef int bits_for(uint64_t count) noexcept:
    cdef int bits = 4
    while <uint64_t>1 << bits < count:
        bits += 1
    return bits
