# What of a record nobody needs, or will not for long: what the dead table counts. Inlined where it is used.

from libc.stdint cimport uint64_t

from mmapkv.format cimport FLAG_PREVIOUS, KIND_DELETE, previous_size
from mmapkv.index cimport Hit, Index


cdef inline uint64_t way_size(Index index, uint64_t flags) noexcept nogil:
    # Of the record of a value that is the newest of its key: what leads to the version before. In a cache nothing is rewritten for that.
    return 0 if index.whole else previous_size(flags)

cdef inline uint64_t superseded_size(Index index, const Hit *hit) noexcept nogil:
    # What becomes dead with such a value: the rest.
    return hit.size - way_size(index, FLAG_PREVIOUS if hit.previous else 0)

cdef inline void add_written(Index index, uint64_t slot, int kind, uint64_t flags, uint64_t size) noexcept nogil:
    # Counts what is dead of a new record: a deletion as a whole.
    index.add_dead(slot, size if kind == KIND_DELETE else way_size(index, flags))
