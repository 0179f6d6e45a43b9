from libc.stdint cimport uint64_t

cimport cython

from mmaplog.format cimport Footer, Record
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet


@cython.final
cdef class Entry:
    cdef readonly uint64_t seq
    cdef readonly object timestamp
    cdef readonly object payload


@cython.final
cdef class Scan:
    cdef Segment segment


cdef class Replay:
    # Walks over the records [seq, stop).
    cdef SegmentSet segments
    cdef Segment segment        # that holds the record last read ...
    cdef uint64_t start         # ... which started here ...
    cdef uint64_t offset        # ... and ended here
    cdef uint64_t seq           # of the next record ...
    cdef uint64_t sought        # ... or of one on the way to this one
    cdef uint64_t stop
    cdef uint64_t tail_id       # of the segment that was the last when `stop` was committed; 0: not known
    cdef uint64_t boundary      # the first number that is not in `segment`, whatever bytes may follow
    cdef uint64_t records_end   # of a segment with gaps: where its last record ends
    cdef bint followed          # there is another segment after `segment`
    cdef bint verify
    cdef Scan scan              # of `segment`, when it is read from one end to the other

    cdef Entry take(self)
    cdef int go_to(self, uint64_t seq) except -1
    cdef int look_ahead(self) except -1
    cdef int extend(self, uint64_t stop, uint64_t tail_id) except -1
    cdef bint read(self, Record *record, bint verify) except -1
    cdef int deny_reuse(self, Segment before) except -1
    cdef int deny_missing(self) except -1
    cdef bint lacks_successor(self, Footer *footer) noexcept
    cdef bint has_moved(self, uint64_t expected) except -1
    cdef bint step(self, Record *record, bint verify) except -1


cdef Entry entry_of(Segment segment, Record *record)
