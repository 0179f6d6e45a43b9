# Accesses to mapped memory that return -EFAULT where a page is not there, and the marks of mappings that
# faulted elsewhere. How: _fault.h. The functions touch no Python.

from libc.stdint cimport uint64_t

cdef extern from "_slot.h" nogil:
    ctypedef struct Slot "mmio_slot":
        int kind
        int faulted

# The kind of a slot whose region can be stored to, and whose users look at the mark after every store and before they tell of it.
cdef enum:
    CHECKED = 3

# Numbers of the atomic operations, and of the orders, as `mmapio.options.Ordering` has them.
cdef enum Operation:
    LOAD, STORE, SWAP, COMPARE, ADD, SUB, AND, OR, XOR, MIN, MAX

cdef int install() noexcept nogil
cdef Slot *take_slot(void *base, size_t count, int kind, uint64_t device, uint64_t inode) noexcept
cdef void give_slot(Slot *slot) noexcept

# How many faults this process has met. Who reads mapped memory by itself compares it before and after: only when it
# moved is it worth asking each region.
cdef uint64_t faults() noexcept nogil
# Counts one that raised no signal: who compares the number learns of it, too.
cdef void met() noexcept nogil

# Copies between buffers of which one is not ours, so that they may be two mappings of one file. -ENOMEM, -EFAULT.
cdef int copy_aliased(void *to, const void *source, size_t count) noexcept nogil

cdef int copy(void *to, const void *source, size_t count) noexcept nogil
cdef int compare(const void *a, const void *b, size_t count, int *order) noexcept nogil
cdef int touch(const void *start, size_t count, size_t step) noexcept nogil
cdef int call(int (*function)(void *) noexcept nogil, void *argument) noexcept nogil
cdef int word32(int operation, void *word, uint64_t value, uint64_t *seen, int order) noexcept nogil
cdef int word64(int operation, void *word, uint64_t value, uint64_t *seen, int order) noexcept nogil
