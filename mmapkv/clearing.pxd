from libc.stdint cimport uint64_t

from mmapkv.writer cimport StoreWriter


cdef int write_clear(StoreWriter store, bint everything, uint64_t below, bint durable) except -1
