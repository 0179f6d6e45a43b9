# XXH3-64 with a seed, as a C function pointer.

from libc.stdint cimport uint64_t

ctypedef uint64_t (*xxh3_function)(const void *data, size_t count, uint64_t seed) noexcept nogil

cdef xxh3_function xxh3
