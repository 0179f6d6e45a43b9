from libc.stdint cimport uint8_t, uint32_t, uint64_t

from mmapkv.format cimport HintHeader


cdef class Hint:
    # What a hint file says, once it is known to be sound. The pointers lead into `data`.
    cdef bytes data
    cdef HintHeader header
    cdef const uint32_t *hashes
    cdef const uint8_t *runs
    cdef const uint8_t *steps
    cdef const uint8_t *bits


cdef struct Run:
    # Records of one size and kind that follow each other.
    uint64_t kind
    uint64_t size               # of each, in bytes
    uint64_t count
    uint64_t gap                # numbers missing before the first


cdef const uint8_t *read_number(const uint8_t *at, const uint8_t *stop, uint64_t *number) noexcept nogil
cdef const uint8_t *read_run(const uint8_t *at, const uint8_t *stop, Run *run) noexcept nogil
