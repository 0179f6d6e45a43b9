from libc.stdint cimport uint64_t

from mmapkv.format cimport PayloadHeader
from mmapkv.index cimport Index
from mmaplog.format cimport Record
from mmaplog.segment_set cimport SegmentSet


cdef struct Tally:
    # What somebody found who looked at the records that a clear is of.
    uint64_t keys               # present by one of them
    uint64_t slot               # where they all are, ...
    uint64_t dead               # ... and their bytes
    const void *index           # by this one, ...
    uint64_t generation         # ... of segments as they were then, ...
    uint64_t seq                # ... and holds if this is the next number
    bint holds


cdef uint64_t bound_of(const Record *record) noexcept nogil
cdef bint is_clear(const Record *record, const PayloadHeader *payload) noexcept nogil
cdef uint64_t count_left(
    Index index, SegmentSet segments, uint64_t below, uint64_t seq, uint64_t slot, uint64_t end, uint64_t size) except? 0xFFFFFFFFFFFFFFFF
