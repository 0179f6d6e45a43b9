from libc.stdint cimport uint64_t

from mmapio._os cimport Descriptor
from mmaplog.control cimport Control
from mmaplog.format cimport CommitSlot
from mmaplog.segment cimport Segment
from mmaplog.spans cimport Spans


cdef class SegmentSet:
    # The segment files of a log as one handle knows them, opened as they are needed.
    cdef readonly Descriptor directory
    cdef readonly object log_uuid
    cdef readonly object path
    cdef readonly bint writable
    cdef readonly object manifest
    cdef Control control        # None until the log is attached
    cdef uint64_t generation    # of `manifest` and `names`
    cdef object removed_at
    cdef uint64_t removed_count
    cdef uint64_t listed_first  # the first number that the log still has, by `manifest`
    cdef list names
    cdef Spans spans            # by `names`, of this generation
    cdef list others            # all other files, as they were when a sole writer opened it; None once it has looked again, or changed what is there
    cdef uint64_t changes       # how often this handle itself has changed what is there
    cdef dict opened
    cdef public bint sole       # nobody else writes the log: what is there is what this handle has put there, ...
    cdef bint tidy              # ... and since it had a look, it has left nothing behind that does not count
    cdef Segment last           # of those opened for reading, the one that keeps its descriptor

    cdef bint knows(self, uint64_t segment_id) noexcept
    cdef int take_names(self, list names) except -1
    cdef Segment by_id(self, uint64_t segment_id)
    # `tail_id` is the id of the last segment there is, by a commit slot that was read after the number in question was committed;
    # 0: not known. It spares a look at the directory.
    cdef list_all(self)
    cdef bint is_cut(self, list listing, cut) except -1
    cdef list without_successor(self, list listing, cut)
    cdef bint is_successor(self, entry, cut) except -1
    cdef bint adds_to_known(self, list names) except -1
    cdef forget_some(self)
    cdef int catch_up(self) except -1
    cdef int adopt(self, manifest, uint64_t base_seq, uint64_t segment_id, name) except -1
    cdef uint64_t generation_now(self) noexcept
    cdef manifest_now(self)
    cdef uint64_t tail_id(self) noexcept
    cdef Segment tail(self, CommitSlot *slot)
    cdef int deny_truncated(self, uint64_t seq) except -1
    cdef int follow_changes(self) except -1
    cdef uint64_t first(self) except? 0
    cdef Segment known(self, uint64_t seq, uint64_t tail_id)
    cdef uint64_t boundary_of(self, Segment segment, uint64_t tail_id) except? 0
    cdef Segment holding(self, uint64_t seq, uint64_t tail_id)
    cdef Segment following(self, Segment segment, uint64_t tail_id)
    cdef Py_ssize_t beyond(self, uint64_t seq) except -1
    cdef Segment at_base(self, uint64_t base_seq)
    cdef Segment open(self, entry)
    cdef int check(self) except -1


cdef bint holds_records(Segment segment) noexcept
