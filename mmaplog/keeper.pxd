# What stays in a log.

from libc.stdint cimport uint64_t

from mmaplog.appender cimport Appender


cdef class Keeper(Appender):
    cdef object care            # held by the thread that truncates, compacts or closes
    cdef bint caring            # it truncates or compacts
    cdef bint spares_strays     # a layer above says when segments that do not count any more are to be removed

    cdef int begin_care(self, what, kept_out=*) except -1
    cdef int end_care(self) except -1
    cdef int let_care(self) except -1
    cdef int remove_strays(self) except -1
    cdef int advance_to(self, uint64_t seq, uint64_t swept, tuple consents=*) except -1
    cdef tuple begun_below(self, uint64_t seq)
    cdef int leave_cut(self, uint64_t seq, error) except -1
    cdef int cut_now(self, uint64_t seq) except -1
