/* Robust mutexes of the C library in memory that processes share. All functions return 0 or a negative errno.
 *
 * The C library links the mutexes that a thread holds into a list, for the kernel to walk when the thread ends. The links lie in
 * the mutexes, so in mapped files: taking or giving one mutex stores to its neighbours. When the page of a held mutex goes (its
 * file was cut), the list leads through memory that is not there. So each thread keeps a list of its own beside, in its own
 * memory, by which such a mutex can be taken out without touching it.
 */
#ifndef MMIO_MUTEX_H
#define MMIO_MUTEX_H

#include "_platform.h"
#include <pthread.h>

#if defined(__linux__)
#define MMIO_ROBUST_MUTEX 1
#include <linux/futex.h>
#else
/* macOS has process-shared mutexes, but none that tells of a dead owner. */
#define MMIO_ROBUST_MUTEX 0
#endif

/* Two C libraries must not share one mutex: the bytes mean different things to them. */
#if defined(__GLIBC__)
#define MMIO_MUTEX_LAYOUT (0x10000u | (unsigned)sizeof(pthread_mutex_t))
#else
#define MMIO_MUTEX_LAYOUT (0x20000u | (unsigned)sizeof(pthread_mutex_t))
#endif

/* Where in it the kernel's word is: the number of the thread that holds it, and two flags. */
#if defined(__GLIBC__)
#define MMIO_MUTEX_WORD 0
#else
#define MMIO_MUTEX_WORD 4
#endif

/* What this thread holds, in the order in which it was taken. */
enum { MMIO_HELD_MAX = 128 };
static __thread void *mmio_held[MMIO_HELD_MAX];
static __thread int mmio_held_count;
/* What it is about to take: still set after a call that a fault cut short. */
static __thread void *mmio_taking;
static __thread uint32_t mmio_own_number;

static void mmio_holds_nothing(void) {
    mmio_own_number = 0;
    mmio_held_count = 0;
    mmio_taking = NULL;
}

static inline int mmio_mutex_make(void *place) {
#if MMIO_ROBUST_MUTEX
    pthread_mutexattr_t wanted;
    int result = pthread_mutexattr_init(&wanted);
    if (result) return -result;
    if (!(result = pthread_mutexattr_setpshared(&wanted, PTHREAD_PROCESS_SHARED)) &&
        !(result = pthread_mutexattr_setrobust(&wanted, PTHREAD_MUTEX_ROBUST)) &&
        /* Locked twice by one thread it answers, instead of waiting for itself. */
        !(result = pthread_mutexattr_settype(&wanted, PTHREAD_MUTEX_ERRORCHECK)))
        result = pthread_mutex_init((pthread_mutex_t *)place, &wanted);
    pthread_mutexattr_destroy(&wanted);
    return -result;
#else
    (void)place;
    return -ENOTSUP;
#endif
}

#if defined(__GLIBC__)
static int mmio_kind;
#endif

/* Once. A forked child holds nothing, and the C library has emptied its list. */
static inline int mmio_mutex_begin(void) {
#if defined(__GLIBC__)
    pthread_mutex_t made;
    int result = mmio_mutex_make(&made);
    if (result < 0) return result;
    mmio_kind = made.__data.__kind;
#endif
    return -pthread_atfork(NULL, NULL, mmio_holds_nothing);
}

/* Whether the bytes are of the kind that is made here. The C library aborts on much that is not. */
static inline int mmio_mutex_is_ours(const void *bytes) {
#if defined(__GLIBC__)
    return ((const pthread_mutex_t *)bytes)->__data.__kind == mmio_kind;
#else
    (void)bytes;
    return 1;
#endif
}

/* Whether a thread holds it, or died holding it, or waits for it. */
static inline int mmio_mutex_is_taken(const void *bytes) {
    uint32_t word;
    memcpy(&word, (const char *)bytes + MMIO_MUTEX_WORD, sizeof word);
    return word != 0;
}

/* Whether this thread holds the mutex and took it at this address. Touches none. */
static inline int mmio_mutex_is_held(const void *place) {
    for (int i = 0; i < mmio_held_count; i++)
        if (mmio_held[i] == place) return 1;
    return 0;
}

/* The number by which the kernel knows this thread. */
static inline uint32_t mmio_mutex_number(void) {
#if MMIO_ROBUST_MUTEX
    if (mmio_own_number == 0) mmio_own_number = (uint32_t)syscall(SYS_gettid);
#endif
    return mmio_own_number;
}

/* Whether the kernel's word says that this thread holds it. */
static inline int mmio_mutex_is_own(const void *place) {
#if MMIO_ROBUST_MUTEX
    return (*(const volatile uint32_t *)((const char *)place + MMIO_MUTEX_WORD) & FUTEX_TID_MASK) == mmio_mutex_number();
#else
    (void)place;
    return 0;
#endif
}

/* Whether the bytes of all that this thread holds are what they were. A fault, or zeros: a file was cut, and perhaps extended again.
 * To be asked before the C library follows its links through them. */
static inline int mmio_mutex_all_there(void) {
    for (int i = 0; i < mmio_held_count; i++) {
        (void)((const volatile char *)mmio_held[i])[sizeof(pthread_mutex_t) - 1];
        if (!mmio_mutex_is_own(mmio_held[i])) return 0;
    }
    return 1;
}

static inline void mmio_mutex_unlist(const void *place) {
    int kept = 0;
    for (int i = 0; i < mmio_held_count; i++)
        if (mmio_held[i] != place) mmio_held[kept++] = mmio_held[i];
    mmio_held_count = kept;
}

/* Does to the mutex of `owner` what the kernel does to those of a thread that ends. Whether there was anything to do. */
static inline int mmio_mutex_orphan(void *place, uint32_t owner) {
#if MMIO_ROBUST_MUTEX
    uint32_t *word = (uint32_t *)((char *)place + MMIO_MUTEX_WORD), seen = __atomic_load_n(word, __ATOMIC_SEQ_CST);
    while ((seen & FUTEX_TID_MASK) == owner)
        if (__atomic_compare_exchange_n(word, &seen, (seen & FUTEX_WAITERS) | FUTEX_OWNER_DIED, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST))
            return 1;
#else
    (void)place;
    (void)owner;
#endif
    return 0;
}

/* The kernel's walk over what a thread holds stops at the first mutex whose memory is gone, and knows nothing of bytes that were
 * put back from a copy: an owner that is no more is also found by its number. */
static inline int mmio_mutex_is_left(void *place) {
#if MMIO_ROBUST_MUTEX
    uint32_t owner = __atomic_load_n((uint32_t *)((char *)place + MMIO_MUTEX_WORD), __ATOMIC_SEQ_CST) & FUTEX_TID_MASK;
    return owner != 0 && syscall(SYS_tkill, owner, 0) < 0 && errno == ESRCH && mmio_mutex_orphan(place, owner);
#else
    (void)place;
    return 0;
#endif
}

/* Waits for `wait_ns` at most. -EOWNERDEAD: locked, and the last owner died holding it. -EAGAIN: this thread holds too many.
 * -EFAULT, here and in unlocking: as a fault, to be mended. */
static inline int mmio_mutex_lock(void *place, int64_t wait_ns) {
#if MMIO_ROBUST_MUTEX
    pthread_mutex_t *mutex = (pthread_mutex_t *)place;
    int result;
    if (mmio_held_count == MMIO_HELD_MAX) return -EAGAIN;
    if (!mmio_mutex_all_there()) return -EFAULT;
    if (!mmio_mutex_is_ours(place)) return -EINVAL;
    mmio_taking = place;
    result = pthread_mutex_trylock(mutex);
    if (result == EBUSY && mmio_mutex_is_left(place)) result = pthread_mutex_trylock(mutex);
    if (result == EBUSY && wait_ns > 0) {
#if defined(__GLIBC__)
        /* As the library itself waits, but for this: it ends the process when the kernel says that the page is gone. */
        uint32_t *word = (uint32_t *)((char *)place + MMIO_MUTEX_WORD), seen = __atomic_load_n(word, __ATOMIC_SEQ_CST);
        uint32_t waiting = seen | FUTEX_WAITERS;
        if ((seen & FUTEX_TID_MASK) &&
            (seen == waiting || __atomic_compare_exchange_n(word, &seen, waiting, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) &&
            mmio_wait(word, waiting, wait_ns) == -EFAULT)
            return -EFAULT;
        /* What this thread holds may have gone while it slept. */
        if (!mmio_mutex_all_there()) return -EFAULT;
        result = pthread_mutex_trylock(mutex);
        /* Others may be asleep, of whom whoever let go has taken the mark away. */
        if (result == 0 || result == EOWNERDEAD) __atomic_fetch_or(word, FUTEX_WAITERS, __ATOMIC_SEQ_CST);
        if (result == EBUSY) result = ETIMEDOUT;
#else
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += (time_t)((until.tv_nsec + wait_ns) / 1000000000);
        until.tv_nsec = (long)((until.tv_nsec + wait_ns) % 1000000000);
        result = pthread_mutex_timedlock(mutex, &until);
#endif
    }
    /* At once: who takes it next must be able to, even if this owner dies before it has mended anything. */
    if (result == EOWNERDEAD) pthread_mutex_consistent(mutex);
    mmio_taking = NULL;
    if (result == 0 || result == EOWNERDEAD) mmio_held[mmio_held_count++] = place;
    return -result;
#else
    (void)place;
    (void)wait_ns;
    return -ENOTSUP;
#endif
}

static inline int mmio_mutex_unlock(void *place) {
#if MMIO_ROBUST_MUTEX
    int result;
    if (!mmio_mutex_all_there()) return -EFAULT;
    /* Of another thread, or lost. */
    if (!mmio_mutex_is_held(place)) return -EPERM;
    result = pthread_mutex_unlock((pthread_mutex_t *)place);
    if (result == 0) mmio_mutex_unlist(place);
    return -result;
#else
    (void)place;
    return -ENOTSUP;
#endif
}

/* After a fault in the two above: mends this thread's lists, so that the call can be made again. Mutexes whose memory is gone are
 * taken out, their neighbours joined. `is_there` tells, without a fault. */
#define MMIO_MUTEX_NODE(mutex) ((char *)(mutex) + MMIO_MUTEX_WORD - head->futex_offset)
#define MMIO_MUTEX_NEXT(at) ((char *)((uintptr_t)*(at) & ~(uintptr_t)1))

static inline int mmio_mutex_mend(int (*is_there)(void *)) {
#if MMIO_ROBUST_MUTEX
    struct robust_list_head *head = NULL;
    size_t size;
    if (syscall(SYS_get_robust_list, 0, &head, &size) < 0 || head == NULL) return -errno;
    for (int i = mmio_held_count - 1; i >= 0; i--) {
        char *node = MMIO_MUTEX_NODE(mmio_held[i]), *older = (char *)&head->list;
        void **at = (void **)&head->list;
        if (is_there(mmio_held[i])) continue;
        /* Who leads to it: those that were taken later are there, or no longer listed. */
        for (int steps = 0; steps < 2048 && MMIO_MUTEX_NEXT(at) != node; steps++) {
            at = (void **)MMIO_MUTEX_NEXT(at);
            if (at == NULL || at == (void **)&head->list) break;
        }
        for (int j = i - 1; j >= 0 && older == (char *)&head->list; j--)
            if (is_there(mmio_held[j])) older = MMIO_MUTEX_NODE(mmio_held[j]);
        if (at != NULL && MMIO_MUTEX_NEXT(at) == node) {
            /* The C library's link back lies before the kernel's link. */
            if (older != (char *)&head->list) ((void **)older)[-1] = at;
            *at = older;
        }
        mmio_mutex_unlist(mmio_held[i]);
    }
    head->list_op_pending = NULL;
    if (mmio_taking != NULL && !mmio_mutex_is_held(mmio_taking) && is_there(mmio_taking))
        mmio_mutex_orphan(mmio_taking, mmio_mutex_number());
    mmio_taking = NULL;
    return 0;
#else
    (void)is_there;
    return -ENOTSUP;
#endif
}

#endif
