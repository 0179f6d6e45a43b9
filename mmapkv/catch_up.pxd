from libc.stdint cimport uint64_t

from mmapkv.format cimport PayloadHeader
from mmapkv.index cimport Index
from mmaplog.format cimport Record
from mmaplog.replay cimport Replay

cdef int parse(Record *record, Replay replay, PayloadHeader *payload, const char **key) except -1
cdef int enter(
    Index index, const Record *record, const PayloadHeader *payload, const char *key, uint64_t slot, uint64_t offset, uint64_t *count) except -1
