# A log as its users know it.

from libc.stdint cimport uint64_t

from mmaplog.format cimport CommitSlot
from mmaplog.keeper cimport Keeper
from mmaplog.replay cimport Entry


cdef class Log(Keeper):
    cdef object __weakref__
    cdef readonly bint recovered

    cdef CommitSlot end_now(self) except *
    cdef Entry look_up(self, number, asked)
    cdef int require(self, number, bint reached, asked) except -1
    cdef close_now(self)
    cdef replay_from_first(self, uint64_t stop, bint verify, uint64_t tail_id)
    cdef close_carefully(self)
    cdef leave(self)
    cdef vouch(self)
    cdef release(self)
