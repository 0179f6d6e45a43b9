/* Robust mutexes of the C library in memory that processes share. All functions return 0 or a negative errno. */
#ifndef MMIO_MUTEX_H
#define MMIO_MUTEX_H

#include "_platform.h"
#include <pthread.h>

#if defined(__linux__)
#define MMIO_ROBUST_MUTEX 1
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

#if MMIO_ROBUST_MUTEX && defined(__GLIBC__)
#define MMIO_KNOWN_LAYOUT 1
#else
#define MMIO_KNOWN_LAYOUT 0
#endif

/* The parts of glibc's lock word, which are the kernel's for robust futexes. */
#define MMIO_OWNER 0x3fffffffu
#define MMIO_OWNER_DIED 0x40000000u
#define MMIO_WAITERS 0x80000000u

/* Waits for `wait_ns` at most. -EOWNERDEAD: locked, and the last owner died holding it. -ETIMEDOUT: not yet. */
static inline int mmio_mutex_lock(void *place, int64_t wait_ns) {
#if MMIO_ROBUST_MUTEX
    pthread_mutex_t *mutex = (pthread_mutex_t *)place;
    int result = pthread_mutex_trylock(mutex);
    if (result == EBUSY && wait_ns > 0) {
#if MMIO_KNOWN_LAYOUT
        /* As the library itself waits, which ends the process when the kernel says that the page is gone. */
        uint32_t *word = (uint32_t *)place, seen = __atomic_load_n(word, __ATOMIC_SEQ_CST), waiting = seen | MMIO_WAITERS;
        if (seen & MMIO_OWNER) {
            if (seen == waiting ||
                __atomic_compare_exchange_n(word, &seen, waiting, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
                int slept = mmio_wait(word, waiting, wait_ns);
                if (slept == -EFAULT) return slept;
            }
        }
        result = pthread_mutex_trylock(mutex);
        /* There may be others asleep, of whom whoever let go has taken the mark away. */
        if (result == 0 || result == EOWNERDEAD) __atomic_fetch_or(word, MMIO_WAITERS, __ATOMIC_SEQ_CST);
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
    return -result;
#else
    (void)place;
    (void)wait_ns;
    return -ENOTSUP;
#endif
}

/* What tells a mutex of this kind from bytes that the C library would trip over; 0 where its layout is not known. glibc:
 * struct __pthread_mutex_s begins with the lock word, and has the kind as its fifth word. */
static inline uint32_t mmio_mutex_kind(const void *place) {
#if MMIO_KNOWN_LAYOUT
    return __atomic_load_n((const uint32_t *)place + 4, __ATOMIC_RELAXED);
#else
    (void)place;
    return 0;
#endif
}

/* Where in a mutex its links lie that the C library keeps for a thread's robust mutexes; 0 where that is not known. A link is the address
 * of the next pointer of the mutex, or list head, that it leads to; the pointer back lies before that. The lowest bit is a flag. */
enum { MMIO_LINK_BACK = MMIO_KNOWN_LAYOUT && sizeof(void *) == 8 ? 24 : 0, MMIO_LINK_ON = MMIO_LINK_BACK ? 32 : 0 };

/* Hands a mutex on whose owner is gone without the kernel having said so: its list of what the thread held was broken, or the
 * bytes come from elsewhere. As the kernel does it. Owners and callers are in one namespace of processes. */
static inline int mmio_mutex_disown(void *place) {
#if MMIO_KNOWN_LAYOUT
    uint32_t *word = (uint32_t *)place;
    uint32_t seen = __atomic_load_n(word, __ATOMIC_SEQ_CST);
    uint32_t owner = seen & MMIO_OWNER, waiters = seen & MMIO_WAITERS;
    if (owner == 0 || (seen & MMIO_OWNER_DIED) || syscall(SYS_tkill, (pid_t)owner, 0) == 0 || errno != ESRCH) return 0;
    return __atomic_compare_exchange_n(word, &seen, waiters | MMIO_OWNER_DIED, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
#else
    (void)place;
    return 0;
#endif
}

static inline int mmio_mutex_unlock(void *place) {
#if MMIO_ROBUST_MUTEX
    return -pthread_mutex_unlock((pthread_mutex_t *)place);
#else
    (void)place;
    return -ENOTSUP;
#endif
}

#endif
