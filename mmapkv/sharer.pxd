from libc.stdint cimport uint64_t

from mmapkv.bulk_reader cimport BulkReader
from mmapkv.index cimport Index, Outcome


cdef class Sharer(BulkReader):
    cdef bint several           # other handles may write too
    cdef uint64_t tail_slot     # of the index, for the log segment that is written
    cdef bint rolled            # to that one, and nobody was told

    cdef Index hold(self, what)
    cdef int let_go(self) except -1
    cdef Outcome approach(self, Index index) except *
    cdef int enter_tail(self, Index index) except -1
    cdef int tell_rolled(self) except -1
