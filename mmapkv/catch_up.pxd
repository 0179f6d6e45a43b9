from mmapkv.format cimport PayloadHeader
from mmaplog.format cimport Record
from mmaplog.replay cimport Replay

cdef int parse(Record *record, Replay replay, PayloadHeader *payload, const char **key) except -1
