from libc.stdint cimport uint64_t

from mmapkv.clearance cimport Tally
from mmapkv.format cimport CLEAR_SIZE, PAYLOAD_HEADER_SIZE
from mmapkv.writer cimport StoreWriter


cdef enum:
    CLEAR_PAYLOAD_SIZE = PAYLOAD_HEADER_SIZE + CLEAR_SIZE


cdef int write_clear(StoreWriter store, bint everything, uint64_t below, bint durable, const Tally *tally) except -1
cdef void lay_out_clear(char *payload, uint64_t below) noexcept nogil
