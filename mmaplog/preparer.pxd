# Room ahead of a fast writer.

from libc.stdint cimport uint32_t, uint64_t

from mmapio.mapping cimport MappedFile
from mmaplog.segment cimport Segment


# What the thread and who asks have in common. The thread frees it when it ends.
cdef struct Work:
    uint32_t asked              # raised by each request, last of all
    uint32_t done               # the request that was last carried out
    uint32_t ending
    int fd
    char *base
    uint64_t start
    uint64_t stop


cdef class Preparer:
    cdef Work *work
    cdef MappedFile file        # stays open and mapped while the thread works on it

    cdef bint is_busy(self) noexcept nogil
    cdef int ask(self, Segment segment, uint64_t start, uint64_t stop) except -1
    cdef void finish(self) noexcept nogil
    cdef int abandon(self) except -1
    cdef int stop(self) except -1
