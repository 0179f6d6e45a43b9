# Files, directories and locks as the three packages see them. Functions marked nogil return 0 or a
# negative errno and never touch Python.

from libc.stdint cimport uint64_t


cdef class Descriptor:
    # Closes its file when the last user lets go, so that a close() in one thread cannot pull
    # the number from under a call that another thread is making with it.
    cdef readonly int fd
    cdef bint owned
    cdef readonly object path


cdef int allocate(int fd, uint64_t offset, uint64_t count) noexcept nogil
cdef int allocate_written(int fd, uint64_t offset, uint64_t count, size_t piece) noexcept nogil
cdef int zero_range(int fd, uint64_t offset, uint64_t count) noexcept nogil
cdef int truncate(int fd, uint64_t size) noexcept nogil
cdef int sync_file(int fd, void *base, size_t count) noexcept nogil
cdef int write_all(int fd, const void *data, size_t count, uint64_t offset) noexcept nogil

cdef uint64_t now_ns() noexcept nogil

cdef extern from "_platform.h" nogil:
    int open_unnamed "mmio_open_unnamed"(int directory)     # a descriptor, or a negative errno
    int close_file "close"(int fd)
    int set_blocks_aside "mmio_set_blocks_aside"(int fd, uint64_t offset, uint64_t count)
    long long size_of "mmio_size"(int fd)                   # in bytes, or a negative errno
