# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""The operating system boundary for pages that are not there: SIGBUS becomes an error. How: see _fault.h."""

from libc.errno cimport ENOMEM
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp

cdef extern from "_fault.h" nogil:
    uint64_t mmio_faults
    int mmio_install()
    void mmio_met()
    Slot *mmio_take_slot(void *base, size_t count, int kind, uint64_t device, uint64_t inode)
    const void *mmio_alias(const void *source, const void *target, size_t count)
    void mmio_give_slot(Slot *slot)
    int mmio_copy(void *to, const void *source, size_t count)
    int mmio_call(int (*function)(void *) noexcept nogil, void *argument)
    int mmio_touch(const void *start, size_t count, size_t step)
    int mmio_word32(int operation, void *word, uint64_t value, uint64_t *seen, int order)
    int mmio_word64(int operation, void *word, uint64_t value, uint64_t *seen, int order)


cdef int install() noexcept nogil:
    return mmio_install()


cdef Slot *take_slot(void *base, size_t count, int kind, uint64_t device, uint64_t inode) noexcept:
    return mmio_take_slot(base, count, kind, device, inode)


cdef void give_slot(Slot *slot) noexcept:
    mmio_give_slot(slot)


cdef void met() noexcept nogil:
    mmio_met()


cdef uint64_t faults() noexcept nogil:
    return mmio_faults


cdef int copy_aliased(void *to, const void *source, size_t count) noexcept nogil:
    # Whether a copy overlaps itself cannot be seen from addresses in two mappings of the same pages.
    cdef const void *seen = mmio_alias(source, to, count)
    cdef void *between
    cdef int result
    if seen != NULL:
        return mmio_copy(to, seen, count)
    between = malloc(count)
    if between == NULL:
        return -ENOMEM
    result = mmio_copy(between, source, count)
    if result == 0:
        result = mmio_copy(to, between, count)
    free(between)
    return result


cdef int copy(void *to, const void *source, size_t count) noexcept nogil:
    return mmio_copy(to, source, count)


cdef struct Comparison:
    const void *a
    const void *b
    size_t count
    int order


cdef int compare_now(void *argument) noexcept nogil:
    cdef Comparison *wanted = <Comparison *>argument
    if wanted.count:  # an empty buffer may be nowhere
        wanted.order = memcmp(wanted.a, wanted.b, wanted.count)
    return 0


cdef int compare(const void *a, const void *b, size_t count, int *order) noexcept nogil:
    cdef Comparison wanted = Comparison(a, b, count, 0)
    cdef int result = mmio_call(compare_now, &wanted)
    order[0] = wanted.order
    return result


cdef int touch(const void *start, size_t count, size_t step) noexcept nogil:
    return mmio_touch(start, count, step)


cdef int call(int (*function)(void *) noexcept nogil, void *argument) noexcept nogil:
    return mmio_call(function, argument)


cdef int word32(int operation, void *word, uint64_t value, uint64_t *seen, int order) noexcept nogil:
    return mmio_word32(operation, word, value, seen, order)


cdef int word64(int operation, void *word, uint64_t value, uint64_t *seen, int order) noexcept nogil:
    return mmio_word64(operation, word, value, seen, order)
