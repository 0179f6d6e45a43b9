# Words of a mapped file, operated on atomically.

from libc.stdint cimport uint64_t

from mmapio.mapping cimport MappedFile
from mmapio.region cimport Link, Region


cdef class Atomic:
    cdef MappedFile file
    cdef Region region          # kept mapped by this reference, also after the file was closed
    cdef char *word
    cdef readonly uint64_t offset
    cdef bint wide              # 8 bytes, not 4
    cdef Link link


cdef class AtomicSlice:
    cdef MappedFile file
    cdef Region region
    cdef char *start
    cdef readonly uint64_t offset
    cdef Py_ssize_t count
    cdef bint wide
    cdef Link link
