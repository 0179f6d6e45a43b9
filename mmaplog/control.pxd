from libc.stdint cimport int64_t, uint64_t

from mmapio.mapping cimport MappedFile
from mmaplog.format cimport CommitSlot, ControlHot


cdef class Control:
    # The hot words of a log, in memory shared by every process that has it open.
    cdef MappedFile file
    cdef ControlHot *hot
    cdef readonly uint64_t incarnation
    cdef readonly bint private
    cdef bint fenced            # others can have this process pass a fence
    cdef bint can_ring          # `waiting` can be set here

    cdef int check(self) except -1
    cdef CommitSlot committed(self) noexcept nogil
    cdef void publish(self, CommitSlot *slot) noexcept nogil
    cdef void wake_followers(self) noexcept nogil
    cdef void begin_sync(self, uint64_t which) noexcept nogil
    cdef void end_sync(self, uint64_t which) noexcept nogil
    cdef void publish_durable(self, uint64_t seq) noexcept nogil
    cdef int wait_for_turn(self, uint64_t turn, int64_t span_ns) noexcept nogil
    cdef int wait_for_durable(self, uint64_t durable, int64_t span_ns) noexcept nogil
