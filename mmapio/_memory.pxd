# Atomic words, fences and prefetch, inlined into every module that cimports them.
#
# The words live in mapped files and are shared between processes, so each access is one machine
# instruction on an aligned address, whatever the compiler would prefer. Orderings are named as in C11.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from * nogil:
    """
    #include <stdint.h>
    static inline uint64_t mmio_load_acquire_u64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE); }
    static inline uint64_t mmio_load_relaxed_u64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED); }
    static inline uint32_t mmio_load_relaxed_u32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_RELAXED); }
    static inline void mmio_store_release_u64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_RELEASE); }
    static inline void mmio_store_relaxed_u64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_RELAXED); }
    static inline uint32_t mmio_load_acquire_u32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE); }
    static inline void mmio_store_release_u32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE); }
    static inline void mmio_store_relaxed_u32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELAXED); }
    static inline void mmio_set_bits_u64(void *p, uint64_t bits) { __atomic_fetch_or((uint64_t *)p, bits, __ATOMIC_SEQ_CST); }
    static inline void mmio_clear_bits_u64(void *p, uint64_t bits) { __atomic_fetch_and((uint64_t *)p, ~bits, __ATOMIC_SEQ_CST); }
    static inline void mmio_count_up_u64(void *p) { __atomic_fetch_add((uint64_t *)p, 1, __ATOMIC_SEQ_CST); }
    /* What is there is stored again. The empty statement hides from the compiler that it is the same, or it might make a load of this. */
    static inline void mmio_store_again_u64(void *p) {
        uint64_t found = __atomic_load_n((uint64_t *)p, __ATOMIC_RELAXED), same;
        do { same = found; __asm__ __volatile__("" : "+r"(same)); }
        while (!__atomic_compare_exchange_n((uint64_t *)p, &found, same, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    }
    static inline void mmio_fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
    static inline void mmio_fence_full(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    static inline void mmio_fence_compiler(void) { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
    static inline void mmio_fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
    /* The empty statement is an effect: without one gcc takes a function that only fetches for one that does nothing, and drops calls of it. */
    static inline void mmio_prefetch(const void *p) { __builtin_prefetch(p, 0, 3); __asm__ __volatile__(""); }
    static inline void mmio_prefetch_write(const void *p) { __builtin_prefetch(p, 1, 3); __asm__ __volatile__(""); }
    """
    uint64_t load_acquire "mmio_load_acquire_u64"(const void *word) noexcept
    uint64_t load_relaxed "mmio_load_relaxed_u64"(const void *word) noexcept
    uint32_t load_relaxed_u32 "mmio_load_relaxed_u32"(const void *word) noexcept
    uint32_t load_acquire_u32 "mmio_load_acquire_u32"(const void *word) noexcept
    void store_release_u32 "mmio_store_release_u32"(void *word, uint32_t value) noexcept
    void store_release "mmio_store_release_u64"(void *word, uint64_t value) noexcept
    void store_relaxed "mmio_store_relaxed_u64"(void *word, uint64_t value) noexcept
    void store_relaxed_u32 "mmio_store_relaxed_u32"(void *word, uint32_t value) noexcept
    void set_bits "mmio_set_bits_u64"(void *word, uint64_t bits) noexcept
    void clear_bits "mmio_clear_bits_u64"(void *word, uint64_t bits) noexcept
    void count_up "mmio_count_up_u64"(void *word) noexcept
    void store_again "mmio_store_again_u64"(void *word) noexcept
    void fence_acquire "mmio_fence_acquire"() noexcept
    void fence_full "mmio_fence_full"() noexcept
    void fence_compiler "mmio_fence_compiler"() noexcept
    void fence_release "mmio_fence_release"() noexcept
    void prefetch "mmio_prefetch"(const void *address) noexcept
    void prefetch_write "mmio_prefetch_write"(const void *address) noexcept
