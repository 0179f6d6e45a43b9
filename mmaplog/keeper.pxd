# What stays in a log.

from libc.stdint cimport uint64_t

from mmaplog.appender cimport Appender


cdef class Keeper(Appender):
    cdef object locks           # LockFile
    cdef object care            # held by the thread that truncates or compacts
    cdef unsigned long caring   # that thread, or 0

    cdef int begin_care(self, what) except -1
    cdef int end_care(self) except -1
    cdef int advance_to(self, uint64_t seq) except -1
    cdef int leave_cut(self, uint64_t seq, error) except -1
    cdef int cut_now(self, uint64_t seq) except -1
