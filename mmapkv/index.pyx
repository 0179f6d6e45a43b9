# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False, cdivision=True
"""The hash index of a store: extendible hashing in a mapped file, read without locks by any process.

A directory, addressed by the highest bits of a key's hash, leads to an index segment; the lowest bits choose
a bucket in it, one cache line of seven entries. An entry is 24 bits of the hash and the address of a record. A
segment that is full is copied into two and the directory words are changed over, so nothing that a reader may be
looking at ever moves. After: R. Fagin et al., Extendible hashing, ACM TODS 4(3), 1979.
"""

import errno as _errno

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from mmapio cimport _memory as memory
from mmapkv.bucket cimport candidates_of, free_cell, is_same, lowest_bit
from mmapkv.format cimport (
    ADDRESS_BITS,
    BUCKETS,
    CHAIN_MAX,
    DEAD_TABLE_OFFSET,
    DEPTH_MAX,
    ENTRIES,
    EXPIRY_SIZE,
    FLAG_CREATES,
    FLAG_EXPIRY,
    FLAG_PREVIOUS,
    INDEX_CLOSED,
    KIND_DELETE,
    KIND_PUT,
    LINE,
    OVERFLOW_LINES,
    PAGE,
    PAYLOAD_FLAG_KNOWN,
    PAYLOAD_HEADER_SIZE,
    PREVIOUS_SIZE,
    ROOT_MOVED,
    SEGMENT_PAGES,
    SLOTS,
    SLOT_TABLE_OFFSET,
    STATE_OFFSET,
    TAG_BITS,
    TAG_REBASE,
    IndexHeader,
    PayloadHeader,
    Previous,
    SegmentLine,
    State,
    address_offset,
    address_slot,
    head_size,
    make_address,
    make_word,
    tag_of,
    top_bits,
    word_depth,
    word_page,
    word_tag_base,
)
from mmapkv.index_pages cimport ask_for_huge_pages, grown
from mmapkv.moment cimport read_moment, store_moment
from mmapkv.slots cimport Slot, known_slot
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport (
    FLAG_KNOWN,
    FLAG_PAD,
    FLAG_TIME,
    RECORD_HEADER_SIZE,
    TIME_SIZE,
    TYPE_DATA,
    UNIT,
    RecordHeader,
    checksum_of,
)
from mmaplog.segment cimport Segment

from mmapio.errors import MappingFault
from mmapkv.errors import SnapshotTooOld, StoreError
from mmaplog.errors import CorruptionError, FormatError
from mmaplog.reserve import is_full

cdef uint64_t SEGMENT_SIZE = SEGMENT_PAGES * PAGE


class Reseed(Exception):
    """Splitting does not help, keys collide or a segment is damaged; the index must be rebuilt, with another seed."""


@cython.final
cdef class Index:
    """A mapped index file. Made by `index_file`, which also closes it cleanly."""

    def __cinit__(self, MappedFile file not None, SlotMap slots not None):
        file.check_open()
        self.file = file
        self.follow()
        self.named = &self.heard
        self.seed = (<IndexHeader *>self.base).hash_seed
        self.slots = slots

    def __dealloc__(self):
        free(self.checked)

    @property
    def incarnation(self):
        """The CONTROL that this index goes with."""
        return self.state.incarnation

    def adopt(self, uint64_t incarnation):
        """Declare that this index goes with the CONTROL of this incarnation from now on."""
        memory.store_release(&self.state.incarnation, incarnation)

    def progress(self):
        """(number after the last record in the index, keys present), as one consistent pair."""
        cdef uint64_t seq, count
        self.applied(&seq, &count)
        self.region.check()
        return seq, count

    def present(self):
        """What `progress` gives, and the number below which records count as deleted at that moment."""
        cdef uint64_t seq, count, cleared
        read_moment(self.state, &seq, &count, &cleared)
        self.region.check()
        return seq, count, cleared

    @property
    def retired(self):
        """Whether a successor was made; it may be a moment away from taking this file's name."""
        return self.is_replaced() or self.check() != 0

    def retire(self):
        """Tell every process that has this file mapped to open its successor."""
        memory.store_release(&self.state.root, self.state.root | ROOT_MOVED)

    @property
    def horizon(self):
        """Whoever looks at the store as it was below this number may miss what compaction removed, unless he had said so before."""
        return memory.load_acquire(&self.state.horizon)

    def raise_horizon(self, uint64_t seq):
        """Say that compaction is about to remove what was not current at `seq` or later."""
        memory.store_release(&self.state.horizon, max(seq, self.state.horizon))
        # Before it is asked who looks at what.
        memory.fence_full()

    cdef bint is_replaced(self) noexcept nogil:
        # Who puts another in the place of one that is damaged, or has no name any more, cannot mark it: CONTROL says which one counts.
        cdef uint64_t named = memory.load_acquire(self.named)
        if named != self.heard:
            if named != 0 and (named & ~<uint64_t>INDEX_CLOSED) != self.number:
                return True
            self.heard = named
        return self.state.root & ROOT_MOVED != 0

    cdef Outcome find(self, uint64_t hash, const char *key, uint64_t key_size, bint verify, Hit *hit) noexcept nogil:
        cdef uint64_t root, word, tag, entry, link, page, depth
        cdef uint64_t *place
        cdef char *lines
        cdef uint64_t *line
        cdef unsigned int candidates
        cdef Outcome outcome
        cdef int hops, i
        cdef bint moved
        while True:
            root = memory.load_acquire(&self.state.root)
            if root & ROOT_MOVED:
                return REPLACED
            depth = root & 0x7F
            place = <uint64_t *>(self.base + (root >> 8) * PAGE) + top_bits(hash, depth)
            if <uint64_t>(<char *>place - self.base) + 8 > self.limit:
                return OUTGROWN
            word = memory.load_acquire(place)
            page = word_page(word)
            if (page + SEGMENT_PAGES) * PAGE > self.limit:
                return OUTGROWN
            if self.check_pages and not self.sound_page(page):
                return UNSOUND
            lines = self.base + page * PAGE + LINE
            tag = tag_of(hash, word_tag_base(word))
            line = <uint64_t *>(lines + (hash & (BUCKETS - 1)) * LINE)
            outcome = ABSENT
            moved = False
            hops = 0
            while True:
                candidates = candidates_of(line, tag)
                while candidates:
                    i = lowest_bit(candidates)
                    candidates &= candidates - 1
                    entry = memory.load_acquire(&line[i])
                    if entry != 0:
                        hit.address = entry & ((<uint64_t>1 << ADDRESS_BITS) - 1)
                        outcome = self.match(hit.address, key, key_size, verify, hit)
                        # The record may have been moved meanwhile, and its place have become another's.
                        memory.fence_acquire()
                        moved = memory.load_relaxed(&line[i]) != entry
                        if outcome != ABSENT or moved:
                            hit.cell = &line[i]
                            break
                if outcome != ABSENT or moved:
                    break
                link = memory.load_acquire(&line[ENTRIES])
                hops += 1
                # The bounds matter only for a segment that is being used again under our eyes.
                if link == 0 or link > OVERFLOW_LINES or hops > OVERFLOW_LINES:
                    break
                line = <uint64_t *>(lines + (BUCKETS - 1 + link) * LINE)
            if moved:
                continue
            # What was read counts only if the way to it still stands; a split or a rebuild may have gone by.
            memory.fence_acquire()
            if memory.load_relaxed(place) == word and memory.load_relaxed(&self.state.root) == root:
                return outcome

    cdef Outcome match(self, uint64_t address, const char *key, uint64_t key_size, bint verify, Hit *hit) noexcept nogil:
        # Whether the record at `address` is about this key. Each length is loaded once, checked, then used.
        cdef RecordHeader header
        cdef PayloadHeader payload
        cdef Previous previous
        cdef uint64_t size, head, pad, value_at
        cdef const char *record
        cdef bint same
        cdef Slot *slot
        hit.slot = address_slot(address)
        hit.offset = address_offset(address)
        slot = &self.slots.slots[hit.slot]
        if (slot.base == NULL or slot.id != memory.load_acquire(&self.slot_table[hit.slot])
                or hit.offset + RECORD_HEADER_SIZE + PAYLOAD_HEADER_SIZE > slot.limit):
            return UNMAPPED
        record = slot.base + hit.offset
        memory.prefetch(record + LINE)
        memory.prefetch(record + 2 * LINE)
        memcpy(&header, record, sizeof(header))
        size = <uint64_t>header.length * UNIT
        if size > slot.limit - hit.offset:
            return UNMAPPED
        head = RECORD_HEADER_SIZE + (TIME_SIZE if header.flags & FLAG_TIME else 0)
        pad = header.flags & FLAG_PAD
        if size < head + PAYLOAD_HEADER_SIZE + pad:
            return DAMAGED
        memcpy(&payload, record + head, sizeof(payload))
        if (header.type != TYPE_DATA or header.flags > FLAG_KNOWN or payload.flags > PAYLOAD_FLAG_KNOWN
                or not (payload.kind == KIND_PUT or payload.kind == KIND_DELETE)):
            return DAMAGED if checksum_of(record, slot.id, hit.offset, header.length) != header.checksum else FOREIGN
        head += head_size(payload.flags)
        value_at = (head + payload.key_length + 7) & ~<uint64_t>7
        same = False
        if size == value_at + payload.value_length + pad:
            same = payload.key_length == key_size and is_same(record + head, key, key_size)
        elif checksum_of(record, slot.id, hit.offset, header.length) != header.checksum:
            return DAMAGED
        # A tag that fits and a key that does not may be a damaged key: it is never passed over unverified.
        if (verify or not same) and checksum_of(record, slot.id, hit.offset, header.length) != header.checksum:
            return DAMAGED
        if not same:
            return ABSENT
        hit.seq = slot.base_seq + header.seq
        hit.size = size
        hit.key = key
        hit.key_size = key_size
        hit.value = record + value_at
        hit.value_size = payload.value_length
        hit.deleted = payload.kind == KIND_DELETE
        hit.trimmed = not payload.flags & (FLAG_CREATES | FLAG_PREVIOUS)
        hit.creates = payload.flags & FLAG_CREATES != 0
        hit.deletion_gone = 0
        hit.previous = 0
        hit.expires = 0
        if payload.flags & FLAG_EXPIRY:
            head -= EXPIRY_SIZE
            memcpy(&hit.expires, record + head, sizeof(hit.expires))
        if payload.flags & FLAG_PREVIOUS:
            memcpy(&previous, record + head - PREVIOUS_SIZE, sizeof(previous))
            hit.previous = previous.address
            hit.previous_seq = previous.seq
        return PRESENT

    cdef Outcome version_before(self, uint64_t stop, uint64_t cleared, bint verify, Hit *hit) noexcept nogil:
        # From a version of a key, step down to the newest one below `stop`. ABSENT when there is none, or it is below `cleared`: what was
        # cleared then may have been removed.
        cdef Hit older
        cdef Outcome outcome
        cdef uint64_t slot_id
        while hit.seq >= stop:
            if hit.previous == 0:
                return TOO_OLD if hit.trimmed or hit.deletion_gone > stop else ABSENT
            if hit.previous_seq < cleared:
                return ABSENT
            outcome = self.match(hit.previous, hit.key, hit.key_size, verify, &older)
            if outcome == UNMAPPED and not (self.private and self.state.root & ROOT_MOVED):
                slot_id = memory.load_acquire(&self.slot_table[older.slot])
                if slot_id != 0 and slot_id != self.slots.slots[older.slot].id:
                    hit.slot = older.slot
                    return UNMAPPED
            if outcome != PRESENT or older.seq != hit.previous_seq:
                # Positions are hints: a rebuilt index numbers its slots anew, and slots are used again.
                return STRAY
            hit[0] = older
        return ABSENT if hit.seq < cleared else PRESENT

    cdef bint sound_page(self, uint64_t page) noexcept nogil:
        # Verified once per process. A writer that comes meanwhile ends the checksums' validity, not ours to complain of.
        if page >= self.checked_pages:
            return True
        if self.checked[page]:
            return True
        if page_checksum(self.base + page * PAGE, self.seed) != (<SegmentLine *>(self.base + page * PAGE)).checksum:
            memory.fence_acquire()
            if memory.load_acquire(&self.state.clean):
                return False
            self.check_pages = False
            return True
        self.checked[page] = 1
        return True

    cdef int settle(self, Outcome outcome, Hit *hit, bint held=False) except -1:
        # Makes it possible to look again after UNMAPPED or OUTGROWN; raises for damage. `held`: compaction spares what is looked for.
        cdef Hit older
        cdef uint64_t known
        if outcome == UNMAPPED:
            self.slots.resolve(hit.slot, memory.load_acquire(&self.slot_table[hit.slot]))
            self.slots.drop_stale(self.slot_table)
            if self.private and self.slots.vain:
                # Compaction has removed the segment; nobody leads the entries of this one elsewhere.
                self.retire()
        elif outcome == OUTGROWN:
            known = self.limit
            self.follow()
            if self.limit == known:
                raise CorruptionError(f"the index leads beyond its {known} bytes; delete it, it is rebuilt from the log", self.file.path)
        elif outcome == STRAY:
            try:
                known = self.locate(hit.previous_seq)
            except SnapshotTooOld:
                if not hit.creates and (not held or self.private or self.is_replaced()):
                    raise
                # A deletion, or what had expired, that compaction left out when the key was just being put again. What was before nobody needed.
                hit.deletion_gone = hit.previous_seq + 1
                hit.previous = 0
                return 0
            if self.match(known, hit.key, hit.key_size, True, &older) == ABSENT:
                raise CorruptionError(
                    f"record {hit.seq} names record {hit.previous_seq}, of another key, as the version before it; restore a backup", self.slots.segment(hit.slot).path)
            hit.previous = known
        elif outcome == TOO_OLD:
            raise SnapshotTooOld(
                f"compaction has removed a version from before record {hit.seq}; begin anew, with what the store holds now",
                self.file.path)
        elif outcome == FOREIGN:
            raise FormatError(
                f"the record at offset {hit.offset} is of a kind this code does not know; upgrade mmapkv",
                self.slots.segment(hit.slot).path)
        elif outcome == DAMAGED:
            raise CorruptionError(
                f"the record at offset {hit.offset} does not match its checksum; restore the segment from a backup",
                self.slots.segment(hit.slot).path)
        return 0

    # What follows is for the one writer, or who has the tail of the log in hand.

    cdef bint has_room(self) noexcept nogil:
        # Space for the largest thing one insertion can need: a directory twice the size and two segments.
        return self.state.end + directory_size((self.state.root & 0x7F) + 1) + 2 * SEGMENT_SIZE <= self.limit

    cdef int make_room(self) except -1:
        cdef uint64_t least = self.state.end + directory_size((self.state.root & 0x7F) + 1) + 2 * SEGMENT_SIZE
        if self.file.learn_length() < self.limit:
            self.region.fail()  # cut by others: growing would fill with zeros what is gone
        try:
            self.file.grow_to(max(least, grown(self.limit)))
        except OSError as error:
            if not is_full(error):
                raise
            self.file.grow_to(least)
        self.follow()
        return 0

    cdef int follow(self) except -1:
        # The file has grown, whoever did it; beyond the address space reserved for it, it is mapped anew elsewhere, with twice as much.
        self.file.refresh()
        if self.region is not self.file.region:
            if self.region is not None:
                self.moved = (self.region, self.moved)
            self.region = self.file.region
            ask_for_huge_pages(self.file)
        self.base = self.region.base
        self.state = <State *>(self.base + STATE_OFFSET)
        self.slot_table = <uint64_t *>(self.base + SLOT_TABLE_OFFSET)
        self.dead = <uint32_t *>(self.base + DEAD_TABLE_OFFSET)
        self.limit = min(self.file.length, self.region.reserved)

    cdef int check(self) except -1:
        # MappingFault when an access through whichever mapping met a page that is gone.
        cdef tuple before = self.moved
        try:
            self.region.check()
            while before is not None:
                (<Region>before[0]).check()
                before = before[1]
        except MappingFault as error:
            what = "the index was truncated by others, or its device failed; open the store again for writing, which builds the index from the log"
            raise MappingFault(error.errno, what, error.filename) from None
        return 0

    cdef uint64_t locate(self, uint64_t seq) except 0:
        # The address of the record with this number, found by walking its segment.
        cdef uint64_t slot, offset
        cdef Segment segment = self.slots.holding(seq, self.state, self.slot_table, self.private, self.file.path, &slot, &offset)
        if slot == SLOTS:
            slot = self.slot_of(segment.id)
        self.slots.adopt(slot, segment)
        return make_address(slot, offset)

    cdef uint64_t *place(self, uint64_t hash, uint64_t *tag) noexcept nogil:
        # A free cell for a key with this hash, and the tag bits that its entry needs; NULL when the segment must be split.
        # Storing the entry is all that is left to do.
        cdef uint64_t word = (<uint64_t *>(self.base + (self.state.root >> 8) * PAGE))[
            top_bits(hash, self.state.root & 0x7F)]
        tag[0] = tag_of(hash, word_tag_base(word)) << ADDRESS_BITS
        return free_cell(self.base + word_page(word) * PAGE, hash & (BUCKETS - 1))

    cdef int split(self, uint64_t hash) except -1:
        # Replaces the full segment that `hash` leads to by two. No system call, and the GIL is held throughout
        # but for the rare fresh tags. Until the intent is written nothing but free space is touched.
        cdef uint64_t root = self.state.root, word, depth, tag_base, fresh_base, generation
        cdef uint64_t left, right
        word = (<uint64_t *>(self.base + (root >> 8) * PAGE))[top_bits(hash, root & 0x7F)]
        depth = word_depth(word)
        tag_base = word_tag_base(word)
        if depth >= DEPTH_MAX or <uint64_t>1 << depth > 1024 * (self.state.segments + 1):
            raise Reseed(f"{depth} bits of hash do not part the keys of one bucket")
        fresh_base = tag_base
        if depth - tag_base >= TAG_REBASE:
            fresh_base = depth
            if self.map_records(word_page(word)):
                # The GIL was let go meanwhile: everything is to be looked at again, by the caller.
                return 0
        if depth == root & 0x7F:
            self.double_directory()
        left = self.state.spare or self.state.end // PAGE
        right = (self.state.end if self.state.spare else self.state.end + SEGMENT_SIZE) // PAGE
        memset(self.base + left * PAGE, 0, SEGMENT_SIZE)
        memset(self.base + right * PAGE, 0, SEGMENT_SIZE)
        if not self.distribute(word, fresh_base, left, right):
            raise Reseed("an index segment is damaged")
        generation = self.state.generation
        self.state.split_left = make_word(left, generation + 1, depth + 1, fresh_base)
        self.state.split_right = make_word(right, generation + 2, depth + 1, fresh_base)
        self.state.split_prefix = top_bits(hash, depth)
        self.state.split_end = right * PAGE + SEGMENT_SIZE
        self.state.split_spare = word_page(word)
        self.state.split_segments = self.state.segments + 1
        memory.store_release(&self.state.split_old, word)
        self.finish_split()
        return 0

    cdef int double_directory(self) noexcept nogil:
        # The old directory stays as it is for whoever still reads it, and is never used again.
        cdef uint64_t root = self.state.root, depth = root & 0x7F, at, count = <uint64_t>1 << depth
        cdef uint64_t page = self.state.end // PAGE
        cdef uint64_t *old = <uint64_t *>(self.base + (root >> 8) * PAGE)
        cdef uint64_t *new = <uint64_t *>(self.base + page * PAGE)
        for at in range(count):
            new[2 * at] = new[2 * at + 1] = old[at]
        # Killed between these two stores, the space is lost until the next rebuild, nothing else.
        memory.store_release(&self.state.end, self.state.end + directory_size(depth + 1))
        memory.store_release(&self.state.root, page << 8 | (depth + 1))
        return 0

    cdef void finish_split(self) noexcept nogil:
        # Publishes what the intent says; done again from the start when its owner was killed in here.
        cdef uint64_t word = self.state.split_old, at
        cdef uint64_t root = self.state.root
        cdef uint64_t spread = (root & 0x7F) - word_depth(word)
        cdef uint64_t *words = <uint64_t *>(self.base + (root >> 8) * PAGE) + (self.state.split_prefix << spread)
        cdef uint64_t half = <uint64_t>1 << (spread - 1)
        for at in range(half):
            memory.store_release(&words[at], self.state.split_left)
            memory.store_release(&words[half + at], self.state.split_right)
        self.state.generation = (self.state.split_right >> 12) & 0xFFFFF
        self.state.spare = self.state.split_spare
        self.state.segments = self.state.split_segments
        memory.store_release(&self.state.end, self.state.split_end)
        memory.store_release(&self.state.split_old, 0)
        # The next split may use the page that has just become spare: not before its words are gone.
        memory.fence_release()

    def resume(self):
        """Finish a split whose owner was killed in the middle of it."""
        if self.state.split_old:
            self.finish_split()

    cdef int map_records(self, uint64_t page) except -1:
        # Makes every record of an index segment readable, so that fresh tags can be taken without letting go of
        # the GIL. 1 when there was something to do, and the GIL was let go.
        cdef uint64_t *entries = <uint64_t *>(self.base + page * PAGE + LINE)
        cdef uint64_t at, entry
        cdef Hit hit
        cdef Outcome outcome
        for at in range((BUCKETS + OVERFLOW_LINES) * (ENTRIES + 1)):
            entry = entries[at] & ((<uint64_t>1 << ADDRESS_BITS) - 1)
            if at % (ENTRIES + 1) == ENTRIES or entry == 0:
                continue
            outcome = self.match(entry, b"", 0, False, &hit)
            if outcome == UNMAPPED or outcome == DAMAGED or outcome == FOREIGN:
                self.settle(outcome, &hit)
                return 1
        return 0

    cdef bint distribute(self, uint64_t word, uint64_t fresh_base, uint64_t left, uint64_t right) noexcept nogil:
        # Copies the entries of a segment into two, by the hash bit after those that led to it.
        cdef uint64_t depth = word_depth(word), tag_base = word_tag_base(word)
        cdef char *lines = self.base + word_page(word) * PAGE + LINE
        cdef uint64_t *line
        cdef uint64_t *cell
        cdef uint64_t bucket, entry, tag, bit, hash
        cdef int i, length
        for bucket in range(BUCKETS):
            line = <uint64_t *>(lines + bucket * LINE)
            length = 0
            while True:
                length += 1
                for i in range(ENTRIES):
                    entry = line[i]
                    if entry == 0:
                        continue
                    tag = entry >> ADDRESS_BITS
                    bit = tag >> (TAG_BITS - 1 - (depth - tag_base)) & 1
                    if fresh_base != tag_base:
                        hash = self.hash_of(entry & ((<uint64_t>1 << ADDRESS_BITS) - 1))
                        entry = entry & ((<uint64_t>1 << ADDRESS_BITS) - 1) | tag_of(hash, fresh_base) << ADDRESS_BITS
                    # There is one unless the segment is damaged: half of it has no more in a chain than the whole had.
                    cell = free_cell(self.base + (right if bit else left) * PAGE, bucket)
                    if cell == NULL:
                        return False
                    cell[0] = entry
                if line[ENTRIES] == 0:
                    break
                if line[ENTRIES] > OVERFLOW_LINES or length == CHAIN_MAX:
                    return False
                line = <uint64_t *>(lines + (BUCKETS - 1 + line[ENTRIES]) * LINE)
        return True

    cdef uint64_t hash_of(self, uint64_t address) noexcept nogil:
        # Of a record that is known to be mapped and whole.
        cdef const char *record = self.slots.slots[address_slot(address)].base + address_offset(address)
        cdef uint64_t head = RECORD_HEADER_SIZE
        cdef PayloadHeader payload
        if (<RecordHeader *>record).flags & FLAG_TIME:
            head += TIME_SIZE
        memcpy(&payload, record + head, sizeof(payload))
        head += head_size(payload.flags)
        return xxh3(record + head, payload.key_length, self.seed)

    cdef void publish(self, uint64_t seq, uint64_t count) noexcept nogil:
        store_moment(self.state, seq, count)

    cdef void applied(self, uint64_t *seq, uint64_t *count) noexcept nogil:
        cdef uint64_t cleared
        read_moment(self.state, seq, count, &cleared)

    cdef uint64_t slot_of(self, uint64_t segment_id) except? 0xFFFFFFFF:
        # The slot of a log segment, taking a free one when it has none.
        cdef uint64_t at, step
        at = known_slot(self.state, self.slot_table, segment_id)
        if at != SLOTS:
            return at
        # One that was freed is not taken again before all others were: what still names it as it was is soon noticed then.
        for step in range(SLOTS):
            at = (self.state.slot_hand + step) % SLOTS
            if at >= self.state.slots_used or self.slot_table[at] == 0:
                break
        else:
            raise StoreError(
                _errno.ENOSPC, f"the store has {SLOTS} segments, the most it can; compact it, or copy it to one with larger segment_bytes",
                self.file.path)
        self.dead[at] = 0
        self.state.slot_hand = at + 1
        memory.store_release(&self.slot_table[at], segment_id)
        if at >= self.state.slots_used:
            memory.store_release(&self.state.slots_used, at + 1)
        return at

    cdef void free_slot(self, uint64_t slot) noexcept:
        # Nothing leads to it any more.
        memory.store_release(&self.slot_table[slot], 0)

    cdef void add_dead(self, uint64_t slot, uint64_t size) noexcept nogil:
        # Before the store that makes the record superfluous: killed in between, too much is counted, never too little.
        self.dead[slot] += <uint32_t>(size // UNIT)


cdef uint64_t directory_size(uint64_t depth) noexcept nogil:
    return ((<uint64_t>8 << depth) + PAGE - 1) // PAGE * PAGE


cdef uint64_t page_checksum(const char *segment, uint64_t seed) noexcept nogil:
    return xxh3(segment + 8, SEGMENT_SIZE - 8, seed)
