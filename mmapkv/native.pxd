from libc.stdint cimport uint64_t

from mmapkv.index cimport Hit, Index, Outcome
from mmapkv.slots cimport SlotMap
from mmaplog.log cimport Log


cdef class NativeStore:
    cdef Log log
    cdef Index index            # None once closed
    cdef SlotMap slots
    cdef bint verify
    cdef object _path
    cdef uint64_t tail_id       # the log segment that `tail_slot` stands for; 0 before the first write
    cdef uint64_t tail_slot
    cdef uint64_t faults        # of this process, when the regions of this store were last found without
    cdef object __weakref__

    cdef int put_pair(self, key, value, bint durable) except -1
    cdef object value_of(self, Hit *hit)
    cdef int check_faults(self) except -1
    cdef int look(self, const char *key, uint64_t key_size, Hit *hit) except -1
    cdef int settle(self, Index index, Outcome outcome, Hit *hit) except -1
    cdef int write(self, key, const char *value, uint64_t value_size, int kind, bint durable, list removed) except -1
    cdef int prepare(self, Index index) except -1
    cdef int split(self, Index index, uint64_t hash) except -1
    cdef raise_closed(self)
