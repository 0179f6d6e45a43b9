from libc.stdint cimport uint32_t, uint64_t

from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet


cdef struct Slot:
    # A log segment as this process has it mapped; base is NULL until it is needed.
    const char *base
    uint64_t limit
    uint64_t id
    uint64_t base_seq


cdef class SlotMap:
    cdef Slot *slots
    cdef list segments          # keeps mapped what `slots` points to
    cdef SegmentSet source

    cdef uint64_t vain          # how often in a row no segment was found

    cdef int resolve(self, uint64_t slot, uint64_t segment_id) except -1
    cdef int look_again(self, error) except -1
    cdef Segment left_over(self, uint64_t segment_id)
    cdef void adopt(self, uint64_t slot, Segment segment) noexcept
    cdef int drop_stale(self, uint64_t *slot_table) except -1
    cdef Segment segment(self, uint64_t slot)
