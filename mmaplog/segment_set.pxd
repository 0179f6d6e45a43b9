from libc.stdint cimport uint64_t

from mmapio._os cimport Descriptor
from mmaplog.segment cimport Segment


cdef class SegmentSet:
    # The segment files of a log as one handle knows them, opened as they are needed.
    cdef readonly Descriptor directory
    cdef readonly object log_uuid
    cdef readonly object path
    cdef readonly bint writable
    cdef list names
    cdef uint64_t changes       # how often this handle itself has changed what is there
    cdef dict opened
    cdef Segment last           # of those opened for reading, the one that keeps its descriptor

    cdef Segment by_id(self, uint64_t segment_id)
    cdef Segment holding(self, uint64_t seq)
    cdef Segment following(self, Segment segment)
    cdef Segment at_base(self, uint64_t base_seq)
    cdef Segment open(self, entry)
    cdef int check(self) except -1


cdef bint holds_records(Segment segment) noexcept
