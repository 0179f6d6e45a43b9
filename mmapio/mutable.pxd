# A writable window on mapped memory, on the books of its file while it is out.

from mmapio.account cimport Account
from mmapio.region cimport Link, Region


cdef class MappedSliceMut:
    cdef Account account        # None once released
    cdef Region region
    cdef char *start
    cdef Py_ssize_t count
    cdef Py_ssize_t shape
    cdef Py_ssize_t exports     # buffers that others hold
    cdef bint released
    cdef Link link

    cdef int check(self) except -1
    cdef int end(self) except -1


cdef MappedSliceMut mutable_of(Account account, Region region, char *start, Py_ssize_t count)
