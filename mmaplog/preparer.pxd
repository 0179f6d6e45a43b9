# Room ahead of a fast writer.

from libc.stdint cimport uint32_t, uint64_t

from mmapio._os cimport Descriptor
from mmapio.mapping cimport MappedFile
from mmaplog.control cimport Control
from mmaplog.segment cimport Segment


# What the thread and who asks have in common. The thread frees it when it ends.
cdef struct Work:
    uint32_t asked              # raised by each request, last of all
    uint32_t done               # the request that was last carried out
    uint32_t ending
    int failure                 # of the sync, a negative errno
    int fd
    int sync_fd                 # another description of the file, or -1: the blocks are to be written, not only set aside
    int directory_fd            # a spare segment is to be made here, or -1
    int spare_fd                # the one that was made, or -1
    void *inflight              # where CONTROL says that the sync may have failed
    char *base
    uint64_t start
    uint64_t stop


cdef class Preparer:
    cdef Work *work
    cdef Control control        # of the log
    cdef MappedFile file        # stays open and mapped while the thread works on it, ...
    cdef bint together          # the kernel may keep several pages of it together
    cdef Descriptor sync_through    # ... and so does this
    cdef Descriptor directory   # ... and this
    cdef Descriptor lock        # nobody else writes to the file while there is this

    cdef bint is_busy(self) noexcept nogil
    cdef int ask(self, Segment segment, uint64_t start, uint64_t stop, bint written) except -1
    cdef int ask_spare(self, Descriptor directory, uint64_t size) except -1
    cdef Descriptor take_spare(self)
    cdef void finish(self) noexcept nogil
    cdef int failure(self) noexcept nogil
    cdef int abandon(self) except -1
    cdef int stop(self) except -1


cdef size_t LARGE
cdef uint64_t SPARE_SIZE

cdef int make_ready(int fd, char *base, uint64_t start, uint64_t stop, size_t piece) noexcept nogil
