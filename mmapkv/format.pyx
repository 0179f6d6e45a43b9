# cython: language_level=3, auto_pickle=False
"""The format of a store: sizes, pinned when this is imported."""

from libc.stdint cimport uint64_t

cdef uint64_t INDEX_MAGIC = int.from_bytes(b"\x93mmapidx", "little")
cdef uint64_t HINT_MAGIC = int.from_bytes(b"\x93mmaphnt", "little")
cdef uint64_t VALUE_SIZE_MAX = (4 << 30) - (1 << 20)

assert sizeof(PayloadHeader) == PAYLOAD_HEADER_SIZE
assert sizeof(Previous) == PREVIOUS_SIZE
assert sizeof(uint64_t) == CLEAR_SIZE
assert sizeof(IndexHeader) == 56 <= CLEAN_OFFSET
assert sizeof(CleanMark) == 48
assert sizeof(State) == 4 * LINE
assert sizeof(SegmentLine) == LINE == (ENTRIES + 1) * 8
assert sizeof(HintHeader) == 112
assert HINT_HASH_BITS == TAG_BITS
assert 1 << BUCKET_BITS == BUCKETS
assert (1 + BUCKETS + OVERFLOW_LINES) * LINE == SEGMENT_PAGES * PAGE
assert SLOT_TABLE_OFFSET + SLOTS * 8 == DEAD_TABLE_OFFSET
assert DEAD_TABLE_OFFSET + SLOTS * 4 == DATA_OFFSET
assert OFFSET_BITS + SLOT_BITS == ADDRESS_BITS == 64 - TAG_BITS
assert DEPTH_MAX + TAG_BITS + BUCKET_BITS <= 64
