cimport cython
from libc.stdint cimport uint64_t

from mmapkv.index cimport Hit, Index, Outcome
from mmapkv.marks cimport Marks
from mmapkv.slots cimport SlotMap
from mmaplog.log cimport Log


cdef class StoreReader:
    cdef Log log
    cdef Index index            # None once closed
    cdef SlotMap slots
    cdef bint verify
    cdef object _path
    cdef uint64_t faults        # of this process, when the regions of this store were last found without
    cdef uint64_t settled       # how often something stood in the way of a look-up, and pointers found before may be stale
    cdef uint64_t seen          # every record below this number is known to be visible
    cdef Marks marks            # of a cache, or None
    cdef bint counting          # it is a cache: ...
    cdef uint64_t hits          # ... look-ups by this handle that found something, ...
    cdef uint64_t misses        # ... and those that did not
    cdef uint64_t tail_id       # for the writer: the log segment that its `tail_slot` stands for; 0 before the first write
    cdef object __weakref__

    @cython.final
    cdef object value_of(self, Hit *hit)
    cdef int check_faults(self) except -1
    @cython.final
    cdef int look(self, const char *key, uint64_t key_size, Hit *hit) except -1
    @cython.final
    cdef void note_hit(self, uint64_t slot, uint64_t offset) noexcept
    cdef bint admit(self, Index index, Hit *hit) except -1
    cdef bint step_down(self, Index index, uint64_t stop, uint64_t cleared, bint held, Hit *hit) except -1
    cdef int settle(self, Index index, Outcome outcome, Hit *hit, bint held=*) except -1
    cdef raise_closed(self)


cdef bytes as_bytes(object thing, str what)
