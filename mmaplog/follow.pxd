# Reading a log as it grows.

from libc.stdint cimport uint64_t

from mmaplog.control cimport Control
from mmaplog.replay cimport Replay


cdef class Follower:
    cdef object log
    cdef Control control        # of the log, or the same file mapped so that the writer can be told of a waiter
    cdef Replay replay
    cdef object timeout
    cdef uint64_t generation    # of the segments, when ...
    cdef object epoch           # ... this was the log's epoch

    cdef int look_back(self) except -1
    cdef bint fetch(self) except -1
    cdef bint sleep(self, uint64_t turn, double seconds) except -1


cdef double time_to_sleep(deadline) except? -1
