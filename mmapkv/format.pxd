# The format of a store, version 1: what a record's payload holds, and the index file.
# docs/format-kv.md is the same in prose and tables. Everything is little-endian.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    INDEX_VERSION = 1
    KEY_SIZE_MAX = 65535
    PAYLOAD_HEADER_SIZE = 8
    PREVIOUS_SIZE = 16
    EXPIRY_SIZE = 8
    KIND_PUT = 1
    KIND_DELETE = 2
    KIND_CLEAR = 3              # of no key: its value is the number below which every record counts as deleted
    CLEAR_SIZE = 8
    FLAG_CREATES = 0x01         # the key was absent before: the count goes up by one
    FLAG_PREVIOUS = 0x02        # the position of the key's previous version precedes the key
    FLAG_EXPIRY = 0x04          # after that, and right before the key, the time at which the version expires
    PAYLOAD_FLAG_KNOWN = 0x07

    PAGE = 4096
    LINE = 64
    ENTRIES = 7                 # in a line; its eighth word leads to the next line of the chain
    BUCKETS = 512               # in an index segment, chosen by the lowest bits of the hash
    BUCKET_BITS = 9
    OVERFLOW_LINES = 63
    OFFSET_BITS = 26            # of an address, in units of 8 bytes: where a record starts in its segment
    SLOT_BITS = 14              # of an address: which segment
    ADDRESS_BITS = 40
    TAG_BITS = 24
    TAG_REBASE = 16             # split bits spent from a tag before it is taken afresh from the records
    CHAIN_MAX = 9               # lines in a chain; a bucket that would need more splits its segment
    SLOTS = 16384
    CLEAN_OFFSET = 512          # the clean mark has a sector of its own
    STATE_OFFSET = 4096
    SLOT_TABLE_OFFSET = 8192
    DEAD_TABLE_OFFSET = 139264  # the slot table ends
    DATA_OFFSET = 204800        # directories and index segments begin
    SEGMENT_PAGES = 9
    DEPTH_MAX = 28
    ROOT_MOVED = 0x80           # in the root word: the index was replaced, open it again
    INDEX_CLOSED = 1            # in the word of CONTROL that says which file is the index: it was closed since

    HINT_VERSION = 1
    HINT_HASH_BITS = 24         # of the highest bits of a hash a hint has so many, and BUCKET_BITS of the lowest
    HINT_DELETE = 0x01          # of a run of records: they are deletions, not puts
    HINT_PREVIOUS = 0x02        # they have FLAG_PREVIOUS, and so steps
    HINT_CREATES = 0x04         # they have FLAG_CREATES
    HINT_GAP = 0x08             # numbers are missing before the run
    HINT_REPEATS = 0x10         # it has more than one record
    HINT_SHIFT = 5              # above these the size of each of its records, in units of 8 bytes

cdef uint64_t INDEX_MAGIC
cdef uint64_t HINT_MAGIC
cdef uint64_t VALUE_SIZE_MAX


cdef packed struct PayloadHeader:
    uint16_t key_length
    uint8_t kind
    uint8_t flags
    uint32_t value_length


cdef packed struct Previous:
    uint64_t seq
    uint64_t address            # a hint, to be checked against the sequence number


cdef inline uint64_t previous_size(uint64_t flags) noexcept nogil:
    # What of a payload leads to the version before. It counts as dead from the beginning.
    return PREVIOUS_SIZE if flags & FLAG_PREVIOUS else 0

cdef inline uint64_t head_size(uint64_t flags) noexcept nogil:
    # What precedes the key in a payload.
    return PAYLOAD_HEADER_SIZE + previous_size(flags) + (EXPIRY_SIZE if flags & FLAG_EXPIRY else 0)

cdef inline uint64_t value_offset(uint64_t flags, uint64_t key_size) noexcept nogil:
    # Where the value starts in a payload; on a multiple of 8, like the payload.
    return (head_size(flags) + key_size + 7) & ~<uint64_t>7


cdef packed struct IndexHeader:
    uint64_t magic
    uint32_t version
    uint32_t reserved
    uint32_t compatible         # unknown bits may be ignored
    uint32_t incompatible       # unknown bits forbid opening
    uint8_t log_uuid[16]
    uint64_t hash_seed          # random; keys are placed by XXH3-64 with this seed
    uint64_t checksum           # XXH3-64 of all before it


cdef packed struct CleanMark:
    uint64_t seq                # the index holds exactly the records below this number
    uint64_t segment_id         # where the log ended then
    uint64_t end
    uint64_t index_end          # bytes of the file in use
    uint64_t content            # XXH3-64 of the state page, slot table and directory; index segments carry their own
    uint64_t checksum           # XXH3-64 of the above, seeded by the hash seed


cdef packed struct Applied:
    uint64_t seq                # every record below this number is in the index
    uint64_t count              # keys that are present


cdef packed struct State:
    # Line 0, written by every put. Pair `turn & 1` is current; the other one is being written.
    uint64_t turn
    Applied applied[2]
    uint64_t shown[2]           # `cleared`, as of each pair
    uint64_t line0
    # Line 1, read by every get: directory page << 8 | ROOT_MOVED | depth
    uint64_t root
    uint64_t clean              # 1 from a clean close to the first store after it: checksums hold
    uint64_t moving             # id of the log segment that entries are being led to by a compaction, or 0
    uint64_t horizon            # no compaction has removed what was current at this number or later
    uint64_t counting           # 1 while a compaction takes expired keys out of the count: killed then, it is not certain
    uint64_t cleared            # records below this number count as deleted, once `applied` is beyond ...
    uint64_t clear_seq          # ... the record that says so
    uint64_t line1
    # Line 2, written by splits.
    uint64_t incarnation        # of the CONTROL that this index goes with
    uint64_t end                # bytes of the file in use
    uint64_t spare              # page of an index segment that is free, or 0
    uint64_t generation         # of the last directory word that was published
    uint64_t slots_used
    uint64_t segments           # index segments in use
    uint64_t slot_hand          # where the search for a free slot begins
    uint64_t expiring           # every record that has a time to live is below this number
    # Line 3: the split under way, to be finished by the next owner. `old` is 0 when there is none.
    uint64_t split_old          # directory word that is being replaced
    uint64_t split_left         # the words that replace it
    uint64_t split_right
    uint64_t split_prefix       # the hash bits above the split bit
    uint64_t split_end          # `end`, `spare` and `segments` once it is finished
    uint64_t split_spare
    uint64_t split_segments
    uint64_t line3


cdef packed struct SegmentLine:
    # The first line of an index segment.
    uint64_t checksum           # XXH3-64 of the lines after it, seeded by the hash seed; holds only while clean
    uint64_t overflow_used      # lines taken for chains
    uint64_t line[6]


cdef packed struct HintHeader:
    uint64_t magic
    uint32_t version
    uint32_t reserved
    uint32_t compatible         # unknown bits may be ignored
    uint32_t incompatible       # unknown bits forbid using it
    uint8_t log_uuid[16]
    uint64_t segment_id
    uint64_t hash_seed
    uint64_t seq                # these three as in the footer of the segment
    uint64_t end
    uint64_t records
    uint64_t runs_size          # bytes
    uint64_t steps_size         # bytes
    uint64_t content            # XXH3-64 of all behind the header, seeded by the segment id
    uint64_t checksum           # XXH3-64 of the above, seeded by the segment id


# A directory word: page of the index segment, a generation, how many hash bits lead to it, where its tags begin.
#   page 32 bits | generation 20 bits | depth 6 bits | tag base 6 bits
cdef inline uint64_t make_word(uint64_t page, uint64_t generation, uint64_t depth, uint64_t tag_base) noexcept nogil:
    return page << 32 | (generation & 0xFFFFF) << 12 | depth << 6 | tag_base

cdef inline uint64_t word_page(uint64_t word) noexcept nogil:
    return word >> 32

cdef inline uint64_t word_depth(uint64_t word) noexcept nogil:
    return word >> 6 & 63

cdef inline uint64_t word_tag_base(uint64_t word) noexcept nogil:
    return word & 63

cdef inline uint64_t tag_of(uint64_t hash, uint64_t tag_base) noexcept nogil:
    return hash << tag_base >> (64 - TAG_BITS)

cdef inline uint64_t top_bits(uint64_t hash, uint64_t count) noexcept nogil:
    # A shift by 64 is not defined, so it is done in two.
    return hash >> 1 >> (63 - count)

cdef inline uint64_t make_address(uint64_t slot, uint64_t offset) noexcept nogil:
    return slot << OFFSET_BITS | offset >> 3

cdef inline uint64_t address_slot(uint64_t address) noexcept nogil:
    return address >> OFFSET_BITS & (SLOTS - 1)

cdef inline uint64_t address_offset(uint64_t address) noexcept nogil:
    return (address & ((<uint64_t>1 << OFFSET_BITS) - 1)) << 3
