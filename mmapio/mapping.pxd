# A file mapped into memory: the native core, which the layers above use and mmapio.file completes.

from libc.stdint cimport uint64_t

from mmapio.regions cimport MappedRegions


cdef class MappedFile(MappedRegions):
    cdef bint forked
    cdef object flusher
    cdef object __weakref__

    cdef int check_writable(self) except -1
    cdef Py_ssize_t index(self, key) except -1
    cdef int grow_to(self, uint64_t size) except -1
    cdef int resized(self) except -1
    cdef int settle_debts(self) except -1
