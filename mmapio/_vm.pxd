# Address space and the pages in it. Functions return 0 or a negative errno and never touch Python.

from libc.stdint cimport uint64_t

cdef size_t PAGE

# Of the pieces of advice, by their number in `mmapio.options.MmapAdvice`.
cdef enum:
    ADVICE_NORMAL = 0
    ADVICE_SEQUENTIAL = 2
    ADVICE_WILL_NEED = 3
    ADVICE_POPULATE_WRITE = 8
    ADVICE_HUGE_PAGE = 9

cdef enum Kind:
    READ_ONLY        # shared, cannot be stored to
    READ_WRITE       # shared: what is stored reaches the file
    COPY_ON_WRITE    # private: what is stored stays in this process


cdef void *map_reserve(size_t want, size_t least, size_t *got) noexcept nogil
cdef int map_file(void *address, size_t count, int fd, Kind kind) noexcept nogil
cdef int unmap(void *address, size_t count) noexcept nogil

cdef int sync_range(int fd, void *address, size_t count) noexcept nogil
cdef int start_writeback(int fd, void *address, uint64_t offset, uint64_t count) noexcept nogil
cdef int advise(void *address, size_t count, int advice) noexcept nogil
cdef int lock(void *address, size_t count) noexcept nogil
cdef int unlock(void *address, size_t count) noexcept nogil
cdef int resident(void *address, size_t count, unsigned char *pages) noexcept nogil
