# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False, cdivision=True
"""Looking at every word of an index, of a store in use or not, without changing any."""

import time

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from mmapio cimport _fault
from mmapio cimport _memory as memory
from mmapkv.format cimport (
    ADDRESS_BITS,
    BUCKETS,
    CHAIN_MAX,
    DATA_OFFSET,
    DEPTH_MAX,
    ENTRIES,
    LINE,
    OVERFLOW_LINES,
    PAGE,
    ROOT_MOVED,
    SEGMENT_PAGES,
    SLOTS,
    SLOT_TABLE_OFFSET,
    STATE_OFFSET,
    TAG_REBASE,
    State,
    address_offset,
    address_slot,
    tag_of,
    top_bits,
    word_depth,
    word_page,
    word_tag_base,
)
from mmapkv.index cimport Index, directory_size
from mmapkv.record_check cimport key_of
from mmapkv.slots cimport Slot
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport Found, Record, read_record
from mmaplog.log cimport Log
from mmaplog.segment cimport Segment

from mmapkv.record_check import Replaced
from mmaplog.errors import CorruptionError

cdef enum:
    SEGMENT_WORDS = SEGMENT_PAGES * PAGE >> 3
    LINE_WORDS = LINE >> 3
    STATE_WORDS = 4 * LINE_WORDS
    CHAIN_ENTRIES = CHAIN_MAX * ENTRIES

# A writer at work may change what is looked at; what is wrong is wrong the second time, too.
cdef int ATTEMPTS = 1000
cdef double PAUSE_SECONDS = 0.001


cdef class IndexCheck:
    """Walks over an index by the hashes that its segments are for, which holds whatever a writer splits meanwhile.

    `found` says what is wrong, as (offset in the file, reason). Costs a copy of each index segment and a look at the record
    of each entry; memory for one index segment and a bit for each page of the file.
    """

    cdef Index index
    cdef Log log
    cdef object damaged         # paths of log segments that are known to be damaged
    cdef dict missing           # slots whose log segment cannot be opened, and why
    cdef uint64_t first_seq
    cdef uint64_t cursor        # the lowest hash that is still to be looked at
    cdef uint64_t faults
    cdef uint64_t copy[SEGMENT_WORDS]
    cdef readonly uint64_t segments
    cdef readonly uint64_t entries
    cdef readonly list found

    def __cinit__(self, Index index not None, Log log not None, damaged):
        self.index = index
        self.log = log
        self.damaged = damaged
        self.first_seq = log.first_seq
        self.found = []
        self.missing = {}
        self.faults = _fault.faults()

    @property
    def path(self):
        """The index file."""
        return self.index.file.path

    # The directory.

    def check_directory(self):
        """Check state, slot table and directory: invariants 1, 6 and 7."""
        cdef State before, after
        cdef int attempt
        for attempt in range(ATTEMPTS):
            self.read_state(&before)
            found = self.look_at_directory(&before)
            self.read_state(&after)
            # What a writer changes while he splits; a pair of `generation` and `split_old` comes only once.
            if (before.root == after.root and before.generation == after.generation and before.split_old == after.split_old
                    and before.end == after.end and before.spare == after.spare and before.segments == after.segments
                    and before.slots_used == after.slots_used):
                break
            time.sleep(PAUSE_SECONDS)
        self.check_faults()
        self.found += found

    cdef int read_state(self, State *state) except -1:
        cdef uint64_t *source = <uint64_t *>self.index.state
        cdef uint64_t words[STATE_WORDS]
        cdef int at
        memory.fence_acquire()
        for at in range(<int>STATE_WORDS):
            words[at] = memory.load_relaxed(&source[at])
        memory.fence_acquire()
        memcpy(state, words, sizeof(words))
        if state.root & ROOT_MOVED or self.index.is_replaced():
            raise Replaced
        return 0

    cdef list look_at_directory(self, State *state):
        cdef uint64_t depth = state.root & 0x7F, page = state.root >> 8, end = state.end, at, slot, segments = state.segments
        cdef uint64_t spare = state.spare
        cdef unsigned char *taken
        found = []
        if state.split_old:
            # Carried out in what is compared, since its left and right halves are complete.
            end, spare, segments = state.split_end, state.split_spare, state.split_segments
        if end > self.index.limit:
            self.learn_length()
        if depth > DEPTH_MAX or page * PAGE < DATA_OFFSET or page * PAGE + directory_size(depth) > self.index.limit:
            return [(STATE_OFFSET + 64, f"the root leads to a directory of depth {depth} at page {page}, which is not in the file")]
        if end % PAGE or not DATA_OFFSET < end <= self.index.limit:
            return [(STATE_OFFSET + 136, f"the end of what is in use is given as {end}, the file has {self.index.limit} bytes")]
        if state.slots_used > SLOTS:
            return [(STATE_OFFSET + 160, f"{state.slots_used} slots are said to be used, there are {SLOTS}")]
        ids = {}
        for slot in range(state.slots_used):
            segment_id = self.index.slot_table[slot]
            if segment_id in ids:
                found.append((SLOT_TABLE_OFFSET + 8 * slot, f"slot {slot} names the log segment of slot {ids[segment_id]}"))
            if segment_id:
                ids[segment_id] = slot
        taken = <unsigned char *>calloc(end // PAGE // 8 + 1, 1)
        if taken == NULL:
            raise MemoryError
        try:
            if take(taken, page, directory_size(depth) // PAGE, end) < 0:
                found.append((STATE_OFFSET + 64, f"the directory at page {page} reaches beyond the end of what is in use, {end}"))
            self.look_at_words(state, taken, end, segments, found)
            if spare and take(taken, spare, SEGMENT_PAGES, end) != 0:
                found.append((STATE_OFFSET + 144, f"the spare at page {spare} overlaps what is in use, or its end"))
        finally:
            free(taken)
        return found

    cdef int look_at_words(self, State *state, unsigned char *taken, uint64_t end, uint64_t segments, list found) except -1:
        cdef uint64_t depth = state.root & 0x7F, start = (state.root >> 8) * PAGE, at = 0, run, other, word, count = 0
        cdef uint64_t shift = 64 - depth
        cdef int overlap
        while at < <uint64_t>1 << depth:
            word = self.word_in(state, at)
            where = start + 8 * at
            if word_depth(word) > depth:
                found.append((where, f"directory word {at} has depth {word_depth(word)}, the directory {depth}"))
                at += 1
                continue
            run = <uint64_t>1 << (depth - word_depth(word))
            if at % run:
                found.append((where, f"the run of directory word {at} is not aligned to its depth of {word_depth(word)}"))
            run -= at % run
            for other in range(at + 1, at + run):
                if self.word_in(state, other) != word:
                    found.append((start + 8 * other, f"directory word {other} is not that of its run, which begins with {at}"))
            if word_tag_base(word) > word_depth(word) or word_depth(word) - word_tag_base(word) > TAG_REBASE:
                found.append((where, f"directory word {at} has depth {word_depth(word)} and tags from bit {word_tag_base(word)} on"))
            overlap = take(taken, word_page(word), SEGMENT_PAGES, end)
            if overlap:
                what = "is not in use" if overlap < 0 else "overlaps another, or the directory"
                found.append((where, f"directory word {at} leads to the index segment at page {word_page(word)}, which {what}"))
            count += 1
            at += run
        if count != segments:
            found.append((STATE_OFFSET + 168, f"the directory leads to {count} index segments, the state counts {segments}"))
        return 0

    cdef uint64_t word_in(self, State *state, uint64_t at) noexcept:
        # A directory word as it is once the split under way is finished.
        cdef uint64_t depth = state.root & 0x7F, old = word_depth(state.split_old)
        if state.split_old and old < depth and at >> (depth - old) == state.split_prefix:
            return state.split_right if at >> (depth - old - 1) & 1 else state.split_left
        return memory.load_acquire(<uint64_t *>(self.index.base + (state.root >> 8) * PAGE) + at)

    # The index segments.

    def step(self):
        """Check the next index segment: invariants 2 to 4, but that each key has an entry. False when there was none left."""
        cdef State state
        cdef uint64_t word = 0, depth, digest, before = 0
        cdef int attempt
        cdef list found = []
        for attempt in range(ATTEMPTS):
            self.read_state(&state)
            word = self.word_in(&state, top_bits(self.cursor, state.root & 0x7F))
            if (word_page(word) + SEGMENT_PAGES) * PAGE > self.index.limit:
                self.learn_length()
            if word_page(word) * PAGE < DATA_OFFSET or (word_page(word) + SEGMENT_PAGES) * PAGE > self.index.limit:
                # The directory's check says so.
                break
            self.take_copy(word_page(word))
            self.read_state(&state)
            if self.word_in(&state, top_bits(self.cursor, state.root & 0x7F)) != word:
                continue
            digest = xxh3(self.copy, sizeof(self.copy), 1)
            found = self.look_at_segment(word)
            if not found or digest == before:
                break
            before = digest
        self.check_faults()
        self.found += found
        self.segments += 1
        # Never deeper than the directory: that bounds how often this is called.
        depth = min(word_depth(word), state.root & 0x7F)
        if depth == 0:
            return False
        self.cursor = (top_bits(self.cursor, depth) + 1) << (64 - depth)
        return self.cursor != 0

    cdef int take_copy(self, uint64_t page) except -1:
        cdef uint64_t *source = <uint64_t *>(self.index.base + page * PAGE)
        cdef int at
        for at in range(<int>SEGMENT_WORDS):
            self.copy[at] = memory.load_acquire(&source[at])
        memory.fence_acquire()
        return 0

    cdef list look_at_segment(self, uint64_t word):
        cdef uint64_t bucket, used = self.copy[1], linked = 0, entries = 0
        cdef uint64_t start = word_page(word) * PAGE
        found = []
        if self.index.check_pages and memory.load_acquire(&self.index.state.clean):
            if self.copy[0] != xxh3(&self.copy[1], sizeof(self.copy) - 8, self.index.seed):
                found.append((start, f"the index segment at page {word_page(word)} does not match its checksum"))
        if used > OVERFLOW_LINES:
            found.append((start + 8, f"{used} overflow lines are said to be taken, there are {OVERFLOW_LINES}"))
        for bucket in range(<uint64_t>BUCKETS):
            entries += self.look_at_chain(word, bucket, &linked, found)
        if not found:
            self.entries += entries
        return found

    cdef uint64_t look_at_chain(self, uint64_t word, uint64_t bucket, uint64_t *linked, list found) except? 0:
        # How many entries it has. `linked` has a bit for each overflow line that is in a chain.
        cdef uint64_t chain[CHAIN_ENTRIES]
        cdef uint64_t line = 1 + bucket, count = 0, entry, link
        cdef uint64_t start = word_page(word) * PAGE
        cdef int lines, i
        for lines in range(CHAIN_MAX):
            for i in range(ENTRIES):
                entry = self.copy[line * LINE_WORDS + i]
                where = start + line * LINE + 8 * i
                if entry == 0:
                    continue
                reason = self.look_at_entry(word, bucket, entry, chain, count)
                if reason is not None:
                    found.append((where, f"an entry of bucket {bucket} {reason}"))
                chain[count] = entry
                count += 1
            link = self.copy[line * LINE_WORDS + ENTRIES]
            if link == 0:
                return count
            where = start + line * LINE + 8 * ENTRIES
            if link > self.copy[1] or link > OVERFLOW_LINES:
                found.append((where, f"the chain of bucket {bucket} goes on in overflow line {link}, {self.copy[1]} are taken"))
                return count
            if linked[0] >> link & 1:
                found.append((where, f"the chain of bucket {bucket} goes on in overflow line {link}, which is in a chain already"))
                return count
            linked[0] |= <uint64_t>1 << link
            line = BUCKETS + link
        found.append((start + line * LINE, f"the chain of bucket {bucket} is longer than {CHAIN_MAX} lines"))
        return count

    cdef object look_at_entry(self, uint64_t word, uint64_t bucket, uint64_t entry, uint64_t *chain, uint64_t count):
        # What is wrong with it, or None.
        cdef Record record
        cdef const char *key
        cdef uint64_t key_size, hash, tag, at
        cdef uint64_t depth = word_depth(word)
        cdef Slot row
        reason = self.read_entry(entry, &record, &row)
        if reason is not None:
            return reason or None
        if not key_of(&record, &key, &key_size):
            # What a record says of itself is looked at elsewhere.
            return None
        hash = xxh3(key, key_size, self.index.seed)
        tag = tag_of(hash, word_tag_base(word))
        what = PyBytes_FromStringAndSize(key, min(key_size, 40))
        if hash & (BUCKETS - 1) != bucket or top_bits(hash, depth) != top_bits(self.cursor, depth):
            return f"leads to record {record.seq} of key {what!r}, whose hash {hash:016x} belongs elsewhere"
        if entry >> ADDRESS_BITS != tag:
            return f"leads to record {record.seq} of key {what!r} with the tag {entry >> ADDRESS_BITS:06x} instead of {tag:06x}"
        if not self.first_seq <= record.seq < self.log.committed:
            return f"leads to record {record.seq}, the log has [{self.first_seq}, {self.log.committed})"
        for at in range(count):
            if chain[at] >> ADDRESS_BITS == tag and self.has_key(chain[at], key, key_size):
                return f"leads to record {record.seq} of key {what!r}, which has another entry"
        return None

    cdef object read_entry(self, uint64_t entry, Record *record, Slot *row):
        # None when it leads to a record that verifies; else why not, or "" where that is known already.
        cdef uint64_t slot = address_slot(entry), offset = address_offset(entry), segment_id
        cdef Segment segment
        cdef Found found
        if slot >= self.index.state.slots_used:
            return f"leads to slot {slot}, {self.index.state.slots_used} are used"
        if slot in self.missing:
            return self.missing[slot]
        segment_id = memory.load_acquire(&self.index.slot_table[slot])
        row[0] = self.index.slots.slots[slot]
        found = Found.NOTHING
        if segment_id == 0:
            self.missing[slot] = f"leads to slot {slot}, which is free"
            return self.missing[slot]
        if row.base != NULL and row.id == segment_id:
            found = read_record(row.base, offset, row.limit, row.id, row.base_seq, True, record)
        if found != Found.RECORD:
            # Not mapped, or not so far.
            try:
                self.index.slots.resolve(slot, segment_id)
                while self.index.slots.slots[slot].id != segment_id:
                    # It puts up with a segment that is missing for a while.
                    self.index.slots.resolve(slot, segment_id)
            except CorruptionError as error:
                if row.base == NULL or row.id != segment_id:
                    self.missing[slot] = f"leads to slot {slot}, which cannot be followed: {error.strerror}"
                    return self.missing[slot]
            else:
                row[0] = self.index.slots.slots[slot]
                found = read_record(row.base, offset, row.limit, row.id, row.base_seq, True, record)
        if found == Found.RECORD:
            return None
        segment = self.index.slots.segment(slot)
        if segment.path in self.damaged:
            return ""
        return f"leads to offset {offset} of {segment.name}, where no record is"

    cdef bint has_key(self, uint64_t entry, const char *key, uint64_t key_size) except -1:
        cdef Record record
        cdef Slot row
        cdef const char *other
        cdef uint64_t other_size
        if self.read_entry(entry, &record, &row) is not None or not key_of(&record, &other, &other_size):
            return False
        return PyBytes_FromStringAndSize(key, key_size) == PyBytes_FromStringAndSize(other, other_size)

    cdef int learn_length(self) except -1:
        self.index.file.refresh()
        self.index.follow()
        return 0

    cdef int check_faults(self) except -1:
        # A page that was not there reads as zeros.
        cdef Segment segment
        if _fault.faults() == self.faults:
            return 0
        self.index.region.check()
        for each in self.index.slots.segments:
            if each is not None:
                segment = each
                segment.region.check()
        self.faults = _fault.faults()
        return 0


cdef int take(unsigned char *taken, uint64_t page, uint64_t pages, uint64_t end) noexcept:
    # Marks pages as in use: -1 when they are not within what is, 1 when one of them was marked before.
    cdef uint64_t at
    cdef int before = 0
    if page * PAGE < DATA_OFFSET or (page + pages) * PAGE > end:
        return -1
    for at in range(page, page + pages):
        if taken[at >> 3] >> (at & 7) & 1:
            before = 1
        taken[at >> 3] |= 1 << (at & 7)
    return before
