from libc.stdint cimport uint32_t, uint64_t

from mmapio._os cimport Descriptor
from mmapio.mapping cimport MappedFile
from mmapio.region cimport Region
from mmaplog.format cimport DurableMark, Footer
from mmaplog.positions cimport Positions


cdef class Segment:
    cdef MappedFile file  # None while the descriptor is not needed
    cdef Descriptor directory
    cdef object log_uuid
    cdef bint writable
    cdef uint64_t scans         # under way, of which the kernel was told
    cdef bint settled           # it is finished, and its length was learnt since: it does not grow any more
    cdef Region region          # what `base` points into, whatever becomes of `file`
    cdef char *base
    cdef uint64_t limit         # bytes of the file that may be touched
    cdef uint64_t end           # after the last record, once the writer rolled past it; 0: not known
    cdef Positions positions
    cdef readonly uint64_t id
    cdef readonly bint sparse   # compaction wrote it: numbers may be missing
    cdef readonly uint64_t base_seq
    cdef readonly uint64_t replaces
    cdef readonly uint64_t base_time
    cdef readonly uint64_t capacity
    cdef readonly uint32_t epoch
    cdef readonly object name
    cdef readonly object path

    cdef MappedFile handle(self)
    cdef release(self)
    cdef void begin_scan(self) noexcept
    cdef void end_scan(self) noexcept
    cdef int expect(self, uint64_t start, uint64_t count) except -1
    cdef bint refresh(self) except -1
    cdef int sync(self) except -1
    cdef int sync_through(self, MappedFile file) except -1
    cdef int store_again(self, uint64_t start, uint64_t stop) except -1
    cdef int grow(self, uint64_t size) except -1
    cdef int grow_or_just_enough(self, uint64_t size, uint64_t least) except -1
    cdef int shrink(self, uint64_t end) except -1
    cdef int give_back_behind(self, uint64_t end) except -1

    cdef bint load_mark(self, DurableMark *out) noexcept
    cdef bint lost_a_mark(self) noexcept
    cdef bint load_footer(self, Footer *out) noexcept
    cdef void store_mark(self, uint64_t seq, uint64_t end) noexcept
    cdef void store_footer(self, Footer *footer) noexcept
