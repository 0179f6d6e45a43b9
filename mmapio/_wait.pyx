# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""The operating system boundary for waiting: futexes, or where there are none looking again, and robust mutexes."""

import os
import sys

from libc.stdint cimport int64_t, uint32_t

cdef extern from "_platform.h" nogil:
    int mmio_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns)
    int mmio_wake(uint32_t *word, int count)
    int mmio_register_for_fences()
    int mmio_fence_others()

cdef extern from "_mutex.h" nogil:
    enum: MMIO_ROBUST_MUTEX
    unsigned int MMIO_MUTEX_LAYOUT
    int mmio_mutex_make(void *place)
    int mmio_mutex_begin()
    int mmio_mutex_lock(void *place, int64_t wait_ns)
    int mmio_mutex_unlock(void *place)
    uint32_t mmio_mutex_number()
    int mmio_mutex_is_own(const void *place)
    int mmio_mutex_is_ours(const void *bytes)
    int mmio_mutex_is_taken(const void *bytes)
    int mmio_mutex_mend(int (*is_there)(void *) noexcept nogil)

HAS_FUTEX = sys.platform == "linux"
"""Whether a waiter sleeps until it is woken; elsewhere it looks again, every 5 ms at the least."""


cdef int wait_word(uint32_t *word, uint32_t expected, int64_t timeout_ns) noexcept nogil:
    return mmio_wait(word, expected, timeout_ns)


cdef int wake_word(uint32_t *word, int count) noexcept nogil:
    return mmio_wake(word, count)


cdef int register_for_fences() noexcept nogil:
    return mmio_register_for_fences()


cdef int fence_others() noexcept nogil:
    return mmio_fence_others()


HAS_ROBUST_MUTEX = bool(MMIO_ROBUST_MUTEX)
"""Whether a mutex in shared memory tells its next owner that the last one died."""

MUTEX_LAYOUT = MMIO_MUTEX_LAYOUT
"""Which C library's mutex this is, and how many bytes it has."""


def pid_namespace():
    """The number of this process' namespace of process ids; 0 where there are no namespaces."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except FileNotFoundError:
        return 0


cdef int make_mutex(void *place) noexcept nogil:
    return mmio_mutex_make(place)


cdef int lock_mutex(void *place, int64_t wait_ns) noexcept nogil:
    return mmio_mutex_lock(place, wait_ns)


cdef int unlock_mutex(void *place) noexcept nogil:
    return mmio_mutex_unlock(place)


cdef uint32_t thread_number() noexcept nogil:
    return mmio_mutex_number()


cdef bint mutex_is_own(const void *place) noexcept nogil:
    return mmio_mutex_is_own(place)


cdef bint mutex_is_ours(const void *bytes) noexcept nogil:
    return mmio_mutex_is_ours(bytes)


cdef bint mutex_is_taken(const void *bytes) noexcept nogil:
    return mmio_mutex_is_taken(bytes)


cdef int mend_mutexes(int (*is_there)(void *) noexcept nogil) noexcept nogil:
    return mmio_mutex_mend(is_there)


if mmio_mutex_begin() < 0:
    raise MemoryError
