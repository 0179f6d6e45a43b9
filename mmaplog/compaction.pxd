# What a layer above needs that copies records its own way.

from libc.stdint cimport uint64_t

from mmaplog.segment cimport Segment


cdef void settle_copy(Segment source, Segment target, uint64_t offset) noexcept nogil
