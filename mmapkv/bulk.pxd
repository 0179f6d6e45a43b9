from libc.stdint cimport uint64_t

from mmapkv.batch cimport Batch
from mmapkv.index cimport Hit, Index, Outcome
from mmapkv.plan cimport Plan
from mmapkv.updater cimport StoreUpdater
from mmaplog.log cimport Log


cdef class BulkWriter(StoreUpdater):
    cdef uint64_t commit_batch(self, Batch batch, bint durable, list reads, uint64_t stop, bint alone, uint64_t cleared, bint clears=*) except? 0
    cdef Outcome check_reads(self, Index index, list reads, uint64_t stop, bint alone, uint64_t cleared, Hit *hit) except *
    cdef Outcome plan_changes(self, Index index, Plan plan, uint64_t stop, uint64_t cleared, Hit *hit) except *
    cdef int find_cells(self, Index index, Batch batch) except -1
    cdef int fit(self, Index index, Batch batch, uint64_t *written, uint64_t *total) except -1
    cdef int publish_changes(self, Index index, Batch batch, uint64_t written, uint64_t total) except -1
    cdef void write_changes(self, Log log, Index index, Batch batch, uint64_t written) noexcept nogil
    cdef int refuse_changed(self, Index index, Hit *hit, uint64_t stop, uint64_t cleared) except -1
