# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False, cdivision=True
"""What a batch will need of the index, made there before anything is written: storing its entries must not fail halfway."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memset

from mmapio cimport _memory as memory
from mmapkv.batch cimport Batch, Change, Fate
from mmapkv.format cimport BUCKETS, CHAIN_MAX, ENTRIES, LINE, OVERFLOW_LINES, PAGE, SegmentLine, top_bits, word_depth, word_page
from mmapkv.index cimport Index
from mmaplog.checksum cimport xxh3

# How many changes ahead their places in the table are fetched from memory.
cdef uint64_t AHEAD = 16

cdef enum:
    # By so many bits of the hashes at a time they are sorted, at most.
    DIGIT_BITS_MAX = 11


cdef class Plan:
    """The tables for one commit. Made by `plan_of`."""

    def __dealloc__(self):
        free(self.newest)
        free(self.fresh)
        free(self.other)

    cdef void begin(self, Index index) noexcept nogil:
        # Every change is to be looked up in this index, but for those that another one of the same key makes void.
        cdef uint64_t at, slot, mask = (<uint64_t>1 << self.newest_bits) - 1, seed = index.seed
        cdef int shift = 64 - self.newest_bits
        cdef Change *change
        cdef Change *other
        self.count = 0
        for at in range(self.batch.count):
            change = &self.batch.changes[at]
            change.fate = Fate.OPEN
            change.hash = xxh3(change.key, change.key_size, seed)
        memset(self.newest, 0, sizeof(uint32_t) << self.newest_bits)
        for at in range(self.batch.count):
            change = &self.batch.changes[at]
            if at + AHEAD < self.batch.count:
                memory.prefetch_write(<char *>&self.newest[self.batch.changes[at + AHEAD].hash >> shift])
            slot = change.hash >> shift
            while self.newest[slot]:
                other = &self.batch.changes[self.newest[slot] - 1]
                if (other.hash == change.hash and other.key_size == change.key_size
                        and memcmp(other.key, change.key, change.key_size) == 0):
                    other.fate = Fate.VOID
                    break
                slot = (slot + 1) & mask
            self.newest[slot] = <uint32_t>(at + 1)

    cdef int reserve(self, Index index) except -1:
        # Splits what is too full for the new keys. Sorted, those of one index segment follow each other, so that each split costs
        # counting what one of them holds again, however large the batch is.
        cdef uint64_t at = 0, stop
        cdef Room room
        sort(self.fresh, self.other, self.count)
        while at < self.count:
            if claim_all(index, &self.fresh[at], self.count - at, &room, &stop):
                at += stop
            elif index.has_room():
                index.split(self.fresh[at])
            else:
                index.make_room()
        return 0


cdef bint claim_all(Index index, const uint64_t *hashes, uint64_t count, Room *room, uint64_t *stop) noexcept:
    # Counts an entry for each of the first of these hashes, up to `stop`, which lead to one index segment. False when that must be split.
    cdef uint64_t root = index.state.root, prefix, depth, at = 0
    cdef uint64_t word = (<uint64_t *>(index.base + (root >> 8) * PAGE))[top_bits(hashes[0], root & 0x7F)]
    cdef char *segment = index.base + word_page(word) * PAGE
    depth = word_depth(word)
    prefix = top_bits(hashes[0], depth)
    memset(room.lines, 0, sizeof(room.lines))
    room.overflow_used = (<SegmentLine *>segment).overflow_used
    while at < count and top_bits(hashes[at], depth) == prefix:
        if not claim(segment, hashes[at] & (BUCKETS - 1), room):
            return False
        at += 1
    stop[0] = at
    return True


cdef inline bint claim(char *segment, uint64_t bucket, Room *room) noexcept:
    # The same limits as `place` has, which then finds that entry.
    if room.lines[bucket] == 0 and not look_at(segment, bucket, room):
        return False
    if room.empty[bucket] == 0:
        if room.lines[bucket] >= CHAIN_MAX or room.overflow_used >= OVERFLOW_LINES:
            return False
        room.lines[bucket] += 1
        room.overflow_used += 1
        room.empty[bucket] = ENTRIES
    room.empty[bucket] -= 1
    return True


cdef bint look_at(char *segment, uint64_t bucket, Room *room) noexcept:
    cdef uint64_t *line = <uint64_t *>(segment + LINE + bucket * LINE)
    cdef uint64_t lines = 1, empty = 0
    while line[ENTRIES] != 0:
        if line[ENTRIES] > OVERFLOW_LINES or lines >= CHAIN_MAX:
            return False  # damaged: the split finds out
        line = <uint64_t *>(segment + LINE + (BUCKETS - 1 + line[ENTRIES]) * LINE)
        lines += 1
    while empty < ENTRIES and line[ENTRIES - 1 - empty] == 0:
        empty += 1
    room.lines[bucket] = lines
    room.empty[bucket] = empty
    return True


cdef void sort(uint64_t *hashes, uint64_t *other, uint64_t count) noexcept:
    # By two digits of their highest bits, the lower one first. Hashes are spread evenly, so next to nothing is left for the last loop.
    cdef uint32_t low[1 << DIGIT_BITS_MAX]
    cdef uint32_t high[1 << DIGIT_BITS_MAX]
    cdef int bits = min((bits_for(4 * count) + 1) // 2, <int>DIGIT_BITS_MAX)
    cdef int shift = 64 - bits
    cdef uint64_t mask = (<uint64_t>1 << bits) - 1, at, back, hash
    cdef uint32_t low_sum = 0, high_sum = 0, each
    if count < 2:
        return
    memset(low, 0, sizeof(uint32_t) << bits)
    memset(high, 0, sizeof(uint32_t) << bits)
    for at in range(count):
        low[hashes[at] >> (shift - bits) & mask] += 1
        high[hashes[at] >> shift] += 1
    # From how many there are of each to where they begin.
    for at in range(mask + 1):
        each = low[at]
        low[at] = low_sum
        low_sum += each
        each = high[at]
        high[at] = high_sum
        high_sum += each
    for at in range(count):
        hash = hashes[at]
        other[low[hash >> (shift - bits) & mask]] = hash
        low[hash >> (shift - bits) & mask] += 1
    for at in range(count):
        hash = other[at]
        hashes[high[hash >> shift]] = hash
        high[hash >> shift] += 1
    for at in range(1, count):
        hash = hashes[at]
        back = at
        while back > 0 and hashes[back - 1] > hash:
            hashes[back] = hashes[back - 1]
            back -= 1
        hashes[back] = hash


cdef Plan plan_of(Batch batch):
    cdef Plan made = Plan.__new__(Plan)
    made.batch = batch
    made.newest_bits = bits_for(2 * batch.count)
    made.newest = <uint32_t *>calloc(<uint64_t>1 << made.newest_bits, sizeof(uint32_t))
    # One more, for nothing may be given no memory.
    made.fresh = <uint64_t *>malloc((batch.count + 1) * sizeof(uint64_t))
    made.other = <uint64_t *>malloc((batch.count + 1) * sizeof(uint64_t))
    if made.newest == NULL or made.fresh == NULL or made.other == NULL:
        raise MemoryError
    return made


cdef int bits_for(uint64_t count) noexcept:
    cdef int bits = 4
    while <uint64_t>1 << bits < count:
        bits += 1
    return bits
