# cython: language_level=3, auto_pickle=False
"""Which log segment an index address means, and where this process has it mapped."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

from mmapkv.format cimport SLOTS
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet

from mmaplog.errors import CorruptionError


cdef class SlotMap:
    """One row for each slot number, filled on first use. A row never moves, so look-ups need no lock."""

    def __cinit__(self, SegmentSet source):
        self.source = source
        self.segments = [None] * SLOTS
        self.slots = <Slot *>calloc(SLOTS, sizeof(Slot))
        if self.slots == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.slots)

    cdef int resolve(self, uint64_t slot, uint64_t segment_id) except -1:
        # Maps the segment of a slot, or learns that its file has grown. Raises when neither helps.
        cdef Segment segment
        cdef Slot *row = &self.slots[slot]
        cdef Slot before = row[0]
        if segment_id == 0:
            raise CorruptionError(f"the index names slot {slot}, which holds no segment", self.source.path)
        segment = self.source.by_id(segment_id)
        segment.refresh()
        if memcmp(row, &before, sizeof(before)) != 0:
            # Another thread was here while this one opened the file; the caller looks again.
            return 0
        if row.base == segment.base and row.limit == segment.limit:
            raise CorruptionError(
                f"the index names a record beyond the {row.limit} bytes of its segment", segment.path)
        self.segments[slot] = segment
        row.id = segment.id
        row.base_seq = segment.base_seq
        row.limit = segment.limit
        row.base = segment.base
        return 0

    cdef Segment segment(self, uint64_t slot):
        return <Segment>self.segments[slot]
