# Sleeping on a word of shared memory until another thread, of any process, says that it changed.

from libc.stdint cimport int64_t, uint32_t, uint64_t

# 0: woken; -EAGAIN: the word is not as expected; -ETIMEDOUT; -EINTR; -EFAULT: the page is not there.
cdef int wait_word(uint32_t *word, uint32_t expected, int64_t timeout_ns) noexcept nogil

# How many were woken, or a negative errno.
cdef int wake_word(uint32_t *word, int count) noexcept nogil

# The number by which the kernel knows this thread.
cdef uint64_t thread_number() noexcept nogil

# Robust mutexes. lock_mutex waits for `wait_ns` at most; -EOWNERDEAD: locked, after an owner that died holding it.
cdef int make_mutex(void *place) noexcept nogil
cdef int lock_mutex(void *place, int64_t wait_ns) noexcept nogil
cdef int unlock_mutex(void *place) noexcept nogil
cdef unsigned int mutex_kind(const void *place) noexcept nogil
cdef int LINK_BACK
cdef int LINK_ON
cdef int disown_mutex(void *place) noexcept nogil
