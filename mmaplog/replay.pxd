from libc.stdint cimport uint64_t

from mmaplog.format cimport Record
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet


cdef class Replay:
    # Walks over the records [seq, stop).
    cdef SegmentSet segments
    cdef Segment segment        # that holds the record last read ...
    cdef Segment following
    cdef uint64_t offset        # ... which ended here
    cdef uint64_t seq
    cdef uint64_t stop
    cdef uint64_t tail_id       # of the segment that was the last when `stop` was committed; 0: not known
    cdef uint64_t boundary      # the first number that is not in `segment`, whatever bytes may follow
    cdef bint verify

    cdef int enter(self, Segment segment) except -1
    cdef int look_ahead(self) except -1
    cdef int walk_to(self, uint64_t seq) except -1
    cdef int extend(self, uint64_t stop, uint64_t tail_id) except -1
    cdef int read(self, Record *record, bint verify) except -1
