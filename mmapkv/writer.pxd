from libc.stdint cimport uint64_t

from mmapkv.bulk_reader cimport BulkReader
from mmapkv.index cimport Index


cdef class StoreWriter(BulkReader):
    cdef uint64_t tail_slot     # of the index, for the log segment that is written

    cdef int put_pair(self, key, value, bint durable) except -1
    cdef int write(self, key, const char *value, uint64_t value_size, int kind, bint durable, list removed) except -1
    cdef int prepare(self, Index index) except -1
    cdef int split(self, Index index, uint64_t hash) except -1
