# A read-only window on mapped memory, which stays mapped for as long as the view lives.

from libc.stdint cimport uint64_t

from mmapio.region cimport Link, Region


cdef class MappedSlice:
    cdef Region region
    cdef const char *start
    cdef Py_ssize_t count
    cdef Py_ssize_t shape
    cdef Link link


cdef MappedSlice slice_of(Region region, const char *start, Py_ssize_t count)

# What both kinds of view do with a buffer request, and with a key.
cdef int fill_buffer(Py_buffer *view, object exporter, const char *start, Py_ssize_t *shape, int flags, bint readonly) except -1
cdef Py_ssize_t index_of(key, Py_ssize_t count) except -1
cdef int span_of(key, Py_ssize_t count, Py_ssize_t *start, Py_ssize_t *size) except -1
cdef int read_out(Region region, void *to, const char *start, Py_ssize_t count) except -1
cdef object same_bytes(Region region, const char *start, Py_ssize_t count, other, int operation)
