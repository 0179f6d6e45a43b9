from libc.stdint cimport uint64_t

from mmaplog.format cimport Record

cdef bint key_of(Record *record, const char **key, uint64_t *key_size) noexcept
