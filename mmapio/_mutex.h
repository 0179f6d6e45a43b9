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

/* Waits for `wait_ns` at most. -EOWNERDEAD: locked, and the last owner died holding it. */
static inline int mmio_mutex_lock(void *place, int64_t wait_ns) {
#if MMIO_ROBUST_MUTEX
    pthread_mutex_t *mutex = (pthread_mutex_t *)place;
    int result = pthread_mutex_trylock(mutex);
    if (result == EBUSY && wait_ns > 0) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += (time_t)((until.tv_nsec + wait_ns) / 1000000000);
        until.tv_nsec = (long)((until.tv_nsec + wait_ns) % 1000000000);
        result = pthread_mutex_timedlock(mutex, &until);
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

static inline int mmio_mutex_unlock(void *place) {
#if MMIO_ROBUST_MUTEX
    return -pthread_mutex_unlock((pthread_mutex_t *)place);
#else
    (void)place;
    return -ENOTSUP;
#endif
}

#endif
