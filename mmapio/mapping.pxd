from libc.stdint cimport uint64_t

from mmapio._os cimport Descriptor


cdef class Region:
    # Reserved address space with a file mapped over all of it; unmapped when the last reference goes.
    cdef char *base
    cdef size_t reserved


cdef class MemoryMappedFile:
    cdef Region region
    cdef char *base             # of the region; constant while the file grows within it
    cdef uint64_t length        # of the file, as this handle last learnt it
    cdef Descriptor descriptor
    cdef bint writable
    cdef bint forked
    cdef object poison
    cdef object _path
    cdef object __weakref__

    cdef int check(self) except -1
    cdef int check_writable(self) except -1
    cdef int check_range(self, uint64_t offset, uint64_t count) except -1
    cdef int grow_to(self, uint64_t size) except -1
    cdef uint64_t learn_length(self) except? 0
    cdef int sync_all(self) except -1
