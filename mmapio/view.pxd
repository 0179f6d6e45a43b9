# A read-only window on mapped memory. `owner` keeps the memory mapped for as long as the view lives.

cdef class MappedSlice:
    cdef object owner
    cdef const char *start
    cdef Py_ssize_t count
    cdef Py_ssize_t shape

cdef MappedSlice slice_of(object owner, const char *start, Py_ssize_t count)
