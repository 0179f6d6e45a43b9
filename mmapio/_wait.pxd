# Sleeping on a word of shared memory until another thread, of any process, says that it changed.

from libc.stdint cimport int64_t, uint32_t

# 0: woken; -EAGAIN: the word is not as expected; -ETIMEDOUT; -EINTR; -EFAULT: the page is not there.
cdef int wait_word(uint32_t *word, uint32_t expected, int64_t timeout_ns) noexcept nogil

# How many were woken, or a negative errno.
cdef int wake_word(uint32_t *word, int count) noexcept nogil

# For who stores a word and then looks whether anybody waits for that, and for who waits: the second has all who did the first
# pass a full fence, in every process that registered. A negative errno where the kernel cannot.
cdef int register_for_fences() noexcept nogil
cdef int fence_others() noexcept nogil

# Robust mutexes. lock_mutex waits for `wait_ns` at most; -EOWNERDEAD: locked, after an owner that died holding it.
cdef int make_mutex(void *place) noexcept nogil
cdef int lock_mutex(void *place, int64_t wait_ns) noexcept nogil
cdef int unlock_mutex(void *place) noexcept nogil

# The number by which the kernel knows this thread.
cdef uint32_t thread_number() noexcept nogil
# Whether the kernel's word says that this thread holds it; whether bytes are a mutex as make_mutex makes them, and taken.
cdef bint mutex_is_own(const void *place) noexcept nogil
cdef bint mutex_is_ours(const void *bytes) noexcept nogil
cdef bint mutex_is_taken(const void *bytes) noexcept nogil

# After a fault in lock_mutex or unlock_mutex: forgets mutexes whose memory is gone. Then the call can be made again.
cdef int mend_mutexes(int (*is_there)(void *) noexcept nogil) noexcept nogil
