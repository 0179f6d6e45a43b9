from libc.stdint cimport uint64_t

from mmapio.mapping cimport MappedFile
from mmaplog.format cimport CommitSlot, ControlHot


cdef class Control:
    # The hot words of a log, in memory shared by every process that has it open.
    cdef MappedFile file
    cdef ControlHot *hot
    cdef readonly uint64_t incarnation
    cdef readonly bint private

    cdef int check(self) except -1
    cdef CommitSlot committed(self) noexcept nogil
    cdef void publish(self, CommitSlot *slot) noexcept nogil
