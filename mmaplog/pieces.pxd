# What append_many is given, as addresses and sizes that can be read without the GIL.

from libc.stdint cimport uint64_t


cdef class Pieces:
    cdef object items           # keeps what `starts` points into, where that is a list
    cdef Py_buffer view         # or the one buffer ...
    cdef bint held              # ... until it is released
    cdef const char **starts
    cdef uint64_t *sizes
    cdef uint64_t count

    cdef int allocate(self, uint64_t count) except -1
    cdef int release(self) except -1


cdef Pieces pieces_of(records)
cdef Pieces slices_of(buffer, offsets)
