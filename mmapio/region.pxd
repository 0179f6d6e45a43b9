# Reserved address space with a file mapped over all of it, and what points into it.

from libc.stdint cimport uint64_t

from mmapio._fault cimport Slot
from mmapio._vm cimport Kind


# A view of a region: a link of the region's list of living views. Embedded in the view's object, which
# holds a reference to the region and takes the link out before it goes. Changed below the GIL only.
cdef struct Link:
    Link *previous
    Link *next
    const char *start
    const char *end


cdef class Region:
    # Unmapped when the last reference goes.
    cdef char *base
    cdef size_t reserved
    cdef Kind kind
    cdef Slot *slot
    cdef bint forgiven          # left behind by a refresh after a fault: its faults are its views' business alone
    cdef Link views             # the list's head; its own start and end mean nothing
    cdef object path
    cdef object __weakref__

    cdef bint faulted(self) noexcept
    cdef int check(self) except -1
    cdef int fail(self) except -1
    cdef int require(self, size_t offset, size_t count) except -1
    cdef uint64_t last_view_end(self) noexcept


cdef inline void attach(Region region, Link *link, const char *start, uint64_t count) noexcept:
    link.start = start
    link.end = start + count
    link.previous = &region.views
    link.next = region.views.next
    link.next.previous = link
    region.views.next = link


cdef inline void detach(Link *link) noexcept:
    # Of a link that was never attached, or is no longer, nothing.
    if link.next != NULL:
        link.previous.next = link.next
        link.next.previous = link.previous
        link.next = NULL

# Between `count` bytes at `offset` of a region and a buffer. `foreign`: nobody knows what memory the buffer is.
cdef int copy_guarded(Region region, uint64_t offset, Py_ssize_t count, char *to, const char *source, bint foreign) except -1
cdef object read_copy(Region region, uint64_t start, Py_ssize_t count)

cdef Region map_region(int fd, uint64_t want, uint64_t least, Kind kind, path)
cdef uint64_t whole_pages(uint64_t count) noexcept nogil
cdef int fault_in(path) except -1
