# cython: language_level=3, auto_pickle=False
"""Which log segment an index address means, and where this process has it mapped."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset

from mmapio cimport _memory as memory
from mmapkv.format cimport SLOTS
from mmaplog.format cimport Record
from mmaplog.replay cimport Replay
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet

from mmaplog.errors import CorruptionError, TooOld
from mmaplog.segment import list_segments, open_segment

# So often in a row a look-up is repeated for want of a segment; a compaction comes in its way once.
cdef uint64_t VAIN_MAX = 100


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
            return self.look_again(CorruptionError(f"the index names slot {slot}, which holds no segment", self.source.path))
        try:
            segment = self.source.by_id(segment_id)
        except CorruptionError as error:
            segment = self.left_over(segment_id)
            if segment is None:
                return self.look_again(error)
        if not segment.refresh():
            # Removed since it was found.
            return self.look_again(CorruptionError("the file is missing; restore it from a backup", segment.path))
        if memcmp(row, &before, sizeof(before)) != 0:
            # Another thread was here while this one opened the file; the caller looks again.
            return 0
        if row.base == segment.base and row.limit == segment.limit:
            raise CorruptionError(
                f"the index names a record beyond the {row.limit} bytes of its segment", segment.path)
        self.vain = 0
        self.adopt(slot, segment)
        return 0

    cdef int look_again(self, error) except -1:
        # Compaction leads entries elsewhere before it frees a slot: who had read one before finds another now. Not for ever, though.
        self.vain += 1
        if self.vain > VAIN_MAX:
            raise error
        return 0

    cdef Segment left_over(self, uint64_t segment_id):
        # A segment that compaction has replaced, while entries still lead to it. None when its file is gone.
        for _, listed, name in list_segments(self.source.directory):
            if listed == segment_id:
                try:
                    return open_segment(self.source.directory, name, self.source.log_uuid, False)
                except FileNotFoundError:
                    break
        return None

    cdef Segment holding(self, uint64_t seq, uint64_t *offset):
        # The segment in which the record with this number is, and where; None when it was removed.
        cdef Record record
        cdef Replay replay
        try:
            replay = Replay(self.source, seq, seq + 1, True, 0)
            if not replay.read(&record, True):
                return None
        except TooOld:
            return None
        offset[0] = replay.offset - record.size
        return replay.segment

    cdef void adopt(self, uint64_t slot, Segment segment) noexcept:
        cdef Slot *row = &self.slots[slot]
        self.segments[slot] = segment
        row.id = segment.id
        row.base_seq = segment.base_seq
        row.limit = segment.limit
        row.base = segment.base

    cdef int drop_stale(self, uint64_t *slot_table) except -1:
        # What was removed does not stay mapped, or it would keep its place on the disk.
        cdef uint64_t slot
        for slot in range(SLOTS):
            if self.slots[slot].id != 0 and self.slots[slot].id != memory.load_acquire(&slot_table[slot]):
                memset(&self.slots[slot], 0, sizeof(Slot))
                self.segments[slot] = None
        return 0

    cdef Segment segment(self, uint64_t slot):
        return <Segment>self.segments[slot]
