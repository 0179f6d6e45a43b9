from libc.stdint cimport uint64_t

from mmapio._os cimport Descriptor
from mmaplog.segment cimport Segment


cdef class Draft:
    cdef Descriptor directory
    cdef Descriptor file        # None once it is synced
    cdef object head            # the first page without a footer
    cdef char *buffer
    cdef uint64_t room          # bytes in `buffer`
    cdef uint64_t start         # where in the file it belongs
    cdef uint64_t end           # after the last record
    cdef uint64_t capacity
    cdef int failure            # negative errno of what could not be written
    cdef readonly uint64_t id
    cdef readonly uint64_t base_seq
    cdef readonly object name

    cdef char *place(self, uint64_t size) noexcept nogil
    cdef void settle(self, Segment source, uint64_t size) noexcept nogil
    cdef int refuse(self, Segment source) except -1
    cdef int write_out(self) noexcept nogil
