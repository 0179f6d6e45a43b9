# A file mapped into memory: the native core, which the layers above use and mmapio.file completes.

from libc.stdint cimport uint64_t

from mmapio._vm cimport Kind
from mmapio.account cimport Account
from mmapio.region cimport Region


cdef class MappedFile(Account):
    cdef readonly Region region # where stores go, and what is read without a view
    cdef Region viewed          # where views for reading point; made when first needed
    cdef bint huge              # pages of that size were asked for
    cdef list retired           # weak references to regions that growth has replaced
    cdef char *base             # of the region; constant while the file grows within it
    cdef uint64_t length        # of the file, as this handle last learnt it
    cdef Kind kind
    cdef bint forked
    cdef object flusher
    cdef object __weakref__

    cdef int check(self) except -1
    cdef int check_open(self) except -1
    cdef bint faulted(self) noexcept
    cdef int check_writable(self) except -1
    cdef int span(self, offset, length, uint64_t *start, uint64_t *count) except -1
    cdef int check_range(self, uint64_t offset, uint64_t count) except -1
    cdef Py_ssize_t index(self, key) except -1
    cdef Region view_region(self, uint64_t end)
    cdef int renew(self, uint64_t want, uint64_t least) except -1
    cdef int retire(self, Region region) except -1
    cdef int grow_to(self, uint64_t size) except -1
    cdef int resized(self) except -1
    cdef uint64_t learn_length(self) except? 0
    cdef uint64_t furthest_view(self) except? 0
    cdef int settle_debts(self) except -1
