# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False, cdivision=True
"""Filling an index from hints, without reading the records that they tell of.

A record that was the first of its key is new; where a record replaces another one, its hint says which, and the index is led on
from exactly that one. Only where this does not settle it, because part of a hash is the same by chance or what came before was
compacted away, the record is read and its key compared.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset

from mmapio cimport _memory as memory
from mmapkv.bucket cimport candidates_of, lowest_bit
from mmapkv.catch_up cimport enter
from mmapkv.dead_bytes cimport add_written
from mmapkv.format cimport (
    ADDRESS_BITS,
    BUCKETS,
    ENTRIES,
    FLAG_PREVIOUS,
    HINT_CREATES,
    HINT_DELETE,
    HINT_HASH_BITS,
    HINT_PREVIOUS,
    KIND_DELETE,
    KIND_PUT,
    LINE,
    OVERFLOW_LINES,
    PAGE,
    PayloadHeader,
    address_slot,
    make_address,
    previous_size,
    tag_of,
    top_bits,
    word_page,
    word_tag_base,
)
from mmapkv.hint cimport Hint, Run, read_number, read_run
from mmapkv.index cimport Index
from mmapkv.relocation cimport split_payload
from mmaplog.format cimport SEGMENT_HEADER_SIZE, UNIT, Found, Record, read_record
from mmaplog.segment cimport Segment

from mmaplog.errors import CorruptionError

# So many records ahead the line of the index is asked for that will be needed.
cdef uint64_t AHEAD = 16


# Of a record in `Place.units`: it has FLAG_PREVIOUS.
cdef uint32_t LINKED = <uint32_t>1 << 31


cdef struct Place:
    # Where the records of a segment are. They follow each other, so that the next one's place tells the size.
    uint64_t base_seq
    uint64_t stop
    uint64_t slot
    uint64_t records
    uint32_t *units
    uint32_t *numbers           # less `base_seq`; NULL when none is missing


cdef struct Job:
    # Going through one hint.
    const uint32_t *hashes
    const uint8_t *bits
    const uint8_t *runs
    const uint8_t *runs_stop
    const uint8_t *steps
    const uint8_t *steps_stop
    Run run                     # what is left of it
    uint64_t at
    uint64_t records
    uint64_t seq
    uint64_t offset
    uint64_t slot
    uint64_t count              # keys present


cdef enum Pause:
    THROUGH
    CROWDED                     # there is no room for one more entry in the index file
    FULL                        # nor in the index segment that the record belongs to
    UNCLEAR                     # the record must be read


cdef class Builder:
    """Enters segments, in their order, into an index that others do not see yet. With `keeps` some of them replace records of others."""

    cdef Index index
    cdef bint keeps
    cdef Place *places
    cdef uint64_t used
    cdef uint64_t capacity

    def __cinit__(self, Index index, bint keeps):
        self.index = index
        self.keeps = keeps

    def __dealloc__(self):
        cdef uint64_t at
        for at in range(self.used):
            free(self.places[at].units)
            free(self.places[at].numbers)
        free(self.places)

    def enter(self, Hint hint not None, Segment segment not None):
        """Enter all records of a segment. Costs some 100 ns each, and four bytes of memory where they are kept.

        Raises Reseed as a split does, CorruptionError when a record that must be read does not verify.
        """
        cdef Index index = self.index
        cdef uint64_t seq
        cdef Job job
        cdef Pause pause = CROWDED
        memset(&job, 0, sizeof(job))
        job.hashes = hint.hashes
        job.bits = hint.bits
        job.runs = hint.runs
        job.runs_stop = job.steps = hint.steps
        job.steps_stop = hint.bits
        job.records = hint.header.records
        job.seq = segment.base_seq
        job.offset = SEGMENT_HEADER_SIZE
        job.slot = index.slot_of(segment.id)
        if self.keeps:
            self.keep(hint, segment, job.slot)
        index.applied(&seq, &job.count)
        next_run(&job)
        while pause != THROUGH:
            with nogil:
                pause = plant(index, &job, self.places, self.used)
            index.region.check()
            if pause == CROWDED:
                index.make_room()
            elif pause == FULL:
                index.split(hash_at(&job, job.at))
            elif pause == UNCLEAR:
                self.read(&job, segment)
        # Perhaps one of them has a time to live: a hint does not say.
        index.state.expiring = hint.header.seq
        index.publish(hint.header.seq, job.count)

    cdef int read(self, Job *job, Segment segment) except -1:
        cdef Record record
        cdef PayloadHeader payload
        cdef const char *key
        if (read_record(segment.base, job.offset, segment.limit, segment.id, segment.base_seq, True, &record) != Found.RECORD
                or not split_payload(&record, &payload, &key)):
            segment.region.check()
            raise CorruptionError(
                f"record {job.seq} at offset {job.offset} is damaged; restore the segment from a backup, or repair the store", segment.path)
        enter(self.index, &record, &payload, key, job.slot, job.offset, &job.count)
        advance(job)
        return 0

    cdef int keep(self, Hint hint, Segment segment, uint64_t slot) except -1:
        # Of every record where it is, by its number.
        cdef Place *place
        cdef const uint8_t *at = hint.runs
        cdef uint64_t i, filled = 0, unit = SEGMENT_HEADER_SIZE // UNIT, number = 0
        cdef Run run
        cdef void *grown
        if self.used == self.capacity:
            grown = realloc(self.places, (2 * self.capacity + 16) * sizeof(Place))
            if grown == NULL:
                raise MemoryError
            self.places = <Place *>grown
            self.capacity = 2 * self.capacity + 16
        place = &self.places[self.used]
        place.base_seq = segment.base_seq
        place.stop = hint.header.seq
        place.slot = slot
        place.records = hint.header.records
        place.units = <uint32_t *>malloc(4 * (place.records + 1))
        place.numbers = NULL
        self.used += 1
        if segment.sparse:
            place.numbers = <uint32_t *>malloc(4 * (place.records + 1))
        if place.units == NULL or segment.sparse and place.numbers == NULL:
            raise MemoryError
        with nogil:
            while at < hint.steps:
                at = read_run(at, hint.steps, &run)
                number += run.gap
                for i in range(run.count):
                    place.units[filled] = <uint32_t>unit | (LINKED if run.kind & HINT_PREVIOUS else 0)
                    if place.numbers != NULL:
                        place.numbers[filled] = <uint32_t>number
                    unit += run.size // UNIT
                    number += 1
                    filled += 1
            place.units[filled] = <uint32_t>unit
        return 0


cdef Pause plant(Index index, Job *job, const Place *places, uint64_t used) noexcept nogil:
    # Enters records until something stands in the way of one.
    cdef uint64_t hash, word, tag, before, size, address, entry, steps, kind
    cdef uint64_t *line
    cdef uint64_t *cell
    cdef char *lines
    cdef unsigned int candidates
    cdef int i
    while job.at < job.records:
        if not index.has_room():
            return CROWDED
        if job.at + AHEAD < job.records:
            memory.prefetch(<const char *>line_of(index, hash_at(job, job.at + AHEAD), &word))
        hash = hash_at(job, job.at)
        kind = job.run.kind
        line = line_of(index, hash, &word)
        if line == NULL:
            # The tags are from bits that hints have not.
            return UNCLEAR
        lines = index.base + word_page(word) * PAGE + LINE
        tag = tag_of(hash, 0)
        before = size = 0
        if kind & HINT_PREVIOUS:
            read_number(job.steps, job.steps_stop, &steps)
            if steps > job.seq or not locate(places, used, job.seq - steps, &before, &size):
                # Compacted away, or in a segment without a hint. The index can tell.
                before = 0
        cell = NULL
        while True:
            candidates = candidates_of(line, tag)
            while candidates:
                i = lowest_bit(candidates)
                candidates &= candidates - 1
                entry = line[i]
                if entry == 0:
                    continue
                if before == 0:
                    # Perhaps of the same key.
                    return UNCLEAR
                if entry == (tag << ADDRESS_BITS | before):
                    cell = &line[i]
                    break
            if cell != NULL or line[ENTRIES] == 0 or line[ENTRIES] > OVERFLOW_LINES:
                break
            line = <uint64_t *>(lines + (BUCKETS - 1 + line[ENTRIES]) * LINE)
        if before:
            if cell == NULL:
                return UNCLEAR
            # That one was the newest of its key when this one was written, so what this one says of it holds.
            if kind & HINT_DELETE or not kind & HINT_CREATES:
                index.add_dead(address_slot(before), size)
        else:
            cell = index.place(hash, &tag)
            if cell == NULL:
                return FULL
            tag >>= ADDRESS_BITS
        address = make_address(job.slot, job.offset)
        cell[0] = tag << ADDRESS_BITS | address
        if kind & HINT_DELETE:
            job.count -= before != 0
        elif before == 0 or kind & HINT_CREATES:
            job.count += 1
        add_written(index, job.slot, KIND_DELETE if kind & HINT_DELETE else KIND_PUT, FLAG_PREVIOUS if kind & HINT_PREVIOUS else 0, job.run.size)
        advance(job)
    return THROUGH


cdef uint64_t hash_at(const Job *job, uint64_t at) noexcept nogil:
    # As much of it as a hint has, at its place.
    cdef uint64_t word = job.hashes[at]
    return word >> 8 << (64 - HINT_HASH_BITS) | <uint64_t>(job.bits[at >> 3] >> (at & 7) & 1) << 8 | (word & 0xFF)


cdef uint64_t *line_of(Index index, uint64_t hash, uint64_t *word) noexcept nogil:
    # The first line of the bucket; NULL where that takes more of the hash than there is.
    cdef uint64_t root = index.state.root
    if root & 0x7F > HINT_HASH_BITS:
        return NULL
    word[0] = (<uint64_t *>(index.base + (root >> 8) * PAGE))[top_bits(hash, root & 0x7F)]
    if word_tag_base(word[0]) != 0:
        return NULL
    return <uint64_t *>(index.base + word_page(word[0]) * PAGE + LINE + (hash & (BUCKETS - 1)) * LINE)


cdef bint locate(const Place *places, uint64_t used, uint64_t seq, uint64_t *address, uint64_t *size) noexcept nogil:
    # Where the record with this number is, and what of it becomes dead when it is superseded; False when none of these segments has it.
    cdef uint64_t low = 0, high = used, middle
    cdef const Place *place
    while low < high:
        middle = (low + high) // 2
        if places[middle].base_seq <= seq:
            low = middle + 1
        else:
            high = middle
    if low == 0 or seq >= places[low - 1].stop:
        return False
    place = &places[low - 1]
    seq -= place.base_seq
    if place.numbers != NULL:
        low = 0
        high = place.records
        while low < high:
            middle = (low + high) // 2
            if place.numbers[middle] < seq:
                low = middle + 1
            else:
                high = middle
        if low == place.records or place.numbers[low] != seq:
            return False
        seq = low
    low = place.units[seq] & ~LINKED
    address[0] = make_address(place.slot, low * UNIT)
    size[0] = ((place.units[seq + 1] & ~LINKED) - low) * UNIT - previous_size(FLAG_PREVIOUS if place.units[seq] & LINKED else 0)
    return True


cdef void next_run(Job *job) noexcept nogil:
    if job.runs < job.runs_stop:
        job.runs = read_run(job.runs, job.runs_stop, &job.run)
        job.seq += job.run.gap


cdef void advance(Job *job) noexcept nogil:
    # Behind the record that was entered.
    cdef uint64_t steps
    if job.run.kind & HINT_PREVIOUS:
        job.steps = read_number(job.steps, job.steps_stop, &steps)
    job.at += 1
    job.seq += 1
    job.offset += job.run.size
    job.run.count -= 1
    if job.run.count == 0:
        next_run(job)
