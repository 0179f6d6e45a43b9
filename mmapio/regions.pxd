# What a handle's file is mapped by: where its bytes are stored to, and where its views point.

from libc.stdint cimport uint64_t

from mmapio._vm cimport Kind
from mmapio.account cimport Account
from mmapio.bounds cimport checked_offset
from mmapio.region cimport Region


cdef class MappedRegions(Account):
    cdef readonly Region region # where stores go, and what is read without a view
    cdef Region viewed          # where views for reading point; made when first needed
    cdef bint huge              # pages of that size were asked for
    cdef list retired           # weak references to regions that growth has replaced
    cdef char *base             # of the region; constant while the file grows within it
    cdef uint64_t length        # of the file, as this handle last learnt it
    cdef Kind kind
    cdef bint checked           # who stores looks at the marks afterwards

    cdef int check(self) except -1
    cdef int check_open(self) except -1
    cdef int find_fault(self) except -1
    cdef bint faulted(self) noexcept
    cdef int check_range(self, uint64_t offset, uint64_t count) except -1
    cdef int refuse_range(self, uint64_t offset, uint64_t count) except -1
    cdef Region view_region(self, uint64_t end)
    cdef Region map_stores(self, int fd, uint64_t want, uint64_t least)
    cdef int renew(self, uint64_t want, uint64_t least) except -1
    cdef int retire(self, Region region) except -1
    cdef int forget_dead(self) except -1
    cdef uint64_t learn_length(self) except? 0
    cdef uint64_t furthest_view(self) except? 0


cdef inline bint sound(MappedRegions file) noexcept:
    # Open and without a fault: what every call begins with, in as few steps as it can be told.
    return (
        file.region is not None and not file.region.slot.faulted and len(file.retired) == 0
        and (file.viewed is None or not file.viewed.slot.faulted))


# The numbers of a range, checked; `length` None means to the end. Closed, MappingFault, OutOfBounds.
cdef inline int span(MappedRegions file, offset, length, uint64_t *start, uint64_t *count) except -1:
    # First of all the conversions: they may run code that closes this handle.
    start[0] = checked_offset(offset, file.length, file._path)
    count[0] = 0 if length is None else checked_offset(length, file.length, file._path)
    if not sound(file):
        file.find_fault()
    if length is None:
        count[0] = file.length - min(start[0], file.length)
    if start[0] > file.length or count[0] > file.length - start[0]:
        return file.refuse_range(start[0], count[0])
    return 0
