from libc.stdint cimport uint64_t

from mmapio cimport _memory as memory
from mmapkv.format cimport SLOTS, State
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
    cdef Segment holding(self, uint64_t seq, uint64_t *offset)
    cdef void adopt(self, uint64_t slot, Segment segment) noexcept
    cdef int drop_stale(self, uint64_t *slot_table) except -1
    cdef Segment segment(self, uint64_t slot)


cdef inline uint64_t known_slot(const State *state, const uint64_t *slot_table, uint64_t segment_id) noexcept nogil:
    # The slot of a log segment, or SLOTS. From the one taken last: most often it is that of a new segment which is asked for.
    cdef uint64_t at
    for at in range(min(memory.load_acquire(&state.slots_used), SLOTS), 0, -1):
        if memory.load_acquire(&slot_table[at - 1]) == segment_id:
            return at - 1
    return SLOTS
