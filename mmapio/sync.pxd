# A mutex in a mapped file that processes share.

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from mmapio._os cimport Descriptor
from mmapio.mapping cimport MappedFile
from mmapio.region cimport Link, Region


# One mutex in a file. All but the flag is written by who initialises it and compared by who joins.
cdef struct Cell:
    uint32_t magic              # BEGUN, stored first, and MAGIC, stored last
    uint32_t layout             # of whose C library the mutex is
    uint8_t boot[16]            # a mutex outlives no reboot: its owners' numbers mean nothing then
    uint64_t device             # nor a copy of the file
    uint64_t inode
    uint64_t namespace          # owners are known by thread number, which another namespace of processes reads differently
    uint32_t needs_recovery     # an owner died, and none has said since that what it left is whole
    uint32_t reserved0
    uint64_t reserved1
    char mutex[64]


# The link lies in the region's list until the end, so the region must not be taken away by the collector before.
@cython.final
cdef class SharedMutex:
    cdef MappedFile file
    cdef Region region
    cdef Cell *cell
    cdef readonly uint64_t offset
    cdef bint held
    cdef uint32_t owner         # the number of the thread that holds it
    cdef Link link

    cdef bint take(self, bint blocking, deadline) except -1
    cdef int give(self) except -1
    cdef int check_magic(self) except -1
    cdef int lost(self) except -1
    cdef uint32_t word(self, int operation, uint32_t *place, uint32_t value) except? 0xFFFFFFFF
    cdef int join(self) except -1
    cdef int join_locked(self, Descriptor descriptor) except -1
    cdef int must_match(self, what, uint64_t found, uint64_t own) except -1
