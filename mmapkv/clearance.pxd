from libc.stdint cimport uint64_t

from mmapkv.format cimport PayloadHeader
from mmapkv.index cimport Index
from mmaplog.format cimport Record
from mmaplog.segment_set cimport SegmentSet


cdef uint64_t bound_of(const Record *record) noexcept nogil
cdef bint is_clear(const Record *record, const PayloadHeader *payload) noexcept nogil
cdef uint64_t count_left(
    Index index, SegmentSet segments, uint64_t below, uint64_t seq, uint64_t slot, uint64_t end, uint64_t size) except? 0xFFFFFFFFFFFFFFFF
