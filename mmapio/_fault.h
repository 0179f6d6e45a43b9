/* What happens when memory that is mapped from a file is not there: the file was cut, or the device cannot read it.
 *
 * The kernel raises SIGBUS at the instruction that touched the page. One handler for the process decides, in this order:
 *
 *   1. The thread is inside one of our own accesses: they run below a setjmp, to which the handler jumps back.
 *   2. The address is in a mapping that stores cannot reach a file through (read-only, or private), or in one whose users look at the
 *      mark after every store and before they tell anybody of it (checked): zero pages are mapped over all of it from the faulting
 *      page on, in one piece, and its slot is marked. The instruction runs again and finds zeros, and the next call that is
 *      checked raises. In one piece because a process has a limit on mappings.
 *   3. Anything else, a shared writable mapping included, where a private page would swallow later stores, goes to the handler
 *      that was there before.
 *
 * The table of mappings only grows, so that the handler can walk it at any moment. Slots are taken and given back below the GIL.
 */
#ifndef MMIO_FAULT_H
#define MMIO_FAULT_H

#include "_platform.h"
#include "_slot.h"
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#if defined(__linux__)
#include <ucontext.h>
#endif

/* Numbers of _vm.Kind, and of a READ_WRITE mapping whose users check its mark. */
enum { MMIO_KIND_READ_ONLY, MMIO_KIND_READ_WRITE, MMIO_KIND_COPY_ON_WRITE, MMIO_KIND_CHECKED };

typedef struct mmio_block {
    mmio_slot slots[128];
    struct mmio_block *next;
} mmio_block;

static mmio_block mmio_first;
static mmio_slot *mmio_free;
static size_t mmio_page_bytes;
static struct sigaction mmio_previous;
static uint64_t mmio_faults;

/* Static TLS: the handler must not be the first to touch a variable that the C library allocates at the first touch. musl
 * allocates when it loads a module, and refuses one that asks for static TLS then. */
#if defined(__GLIBC__)
#define MMIO_TLS static __thread __attribute__((tls_model("initial-exec")))
#else
#define MMIO_TLS static __thread
#endif
MMIO_TLS sigjmp_buf *volatile mmio_guard;
MMIO_TLS volatile uintptr_t *mmio_chained; /* marks in the frame that called the previous handler, while it runs */
MMIO_TLS void *mmio_last_address;
MMIO_TLS unsigned mmio_repeats;

/* How often in a row the previous handler may leave the same address faulting. */
#define MMIO_REPEATS_MAX 100

/* si_code of a page that broke before anybody touched it (BUS_MCEERR_AO), and of raise(). */
#define MMIO_NOT_TOUCHED 5
#if defined(SI_TKILL)
#define MMIO_RAISED SI_TKILL
#else
#define MMIO_RAISED SI_USER
#endif

/* On Linux the kernel tells an address that must not be odd from a page that is not there. */
#if defined(__linux__)
#define MMIO_IS_MISALIGNED(info) ((info)->si_code == BUS_ADRALN)
#else
#define MMIO_IS_MISALIGNED(info) 0
#endif

#define MMIO_BARRIER() __asm__ volatile("" ::: "memory")

/* --- The handler ---------------------------------------------------------------------------------------- */

static mmio_slot *mmio_find(uintptr_t address) {
    for (mmio_block *block = &mmio_first; block != NULL; block = __atomic_load_n(&block->next, __ATOMIC_ACQUIRE))
        for (int i = 0; i < 128; i++) {
            mmio_slot *slot = &block->slots[i];
            size_t count = __atomic_load_n(&slot->count, __ATOMIC_ACQUIRE);
            uintptr_t base = __atomic_load_n(&slot->base, __ATOMIC_ACQUIRE);
            /* The count again: a slot that was given to another mapping in between must not be taken for a mixture of both. */
            if (count && address - base < count && __atomic_load_n(&slot->count, __ATOMIC_ACQUIRE) == count) return slot;
        }
    return NULL;
}

static int mmio_cover(mmio_slot *slot, uintptr_t address) {
    uintptr_t page = address & ~(uintptr_t)(mmio_page_bytes - 1);
    uintptr_t end = slot->covered;
    int protection = slot->kind == MMIO_KIND_READ_ONLY ? PROT_READ : PROT_READ | PROT_WRITE;
    /* Marked first: whoever sees the zeros can see the mark. */
    __atomic_store_n(&slot->faulted, 1, __ATOMIC_SEQ_CST);
    /* Another thread may have been here first. What a private mapping has stored to earlier zero pages stays. */
    if (page >= end) return 1;
    if (mmap((void *)page, end - page, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
        MAP_FAILED)
        return 0;
    slot->covered = page;
    return 1;
}

static void mmio_die(int number) {
    struct sigaction standard;
    memset(&standard, 0, sizeof standard);
    standard.sa_handler = SIG_DFL;
    sigaction(number, &standard, NULL);
}

/* Back to the access that was guarded. */
__attribute__((noreturn)) static void mmio_leave(sigjmp_buf *guard, void *context) {
    sigset_t ours;
#if defined(__linux__)
    /* A handler that was put over this one, and called it, may have had signals blocked. */
    if (context != NULL) pthread_sigmask(SIG_SETMASK, &((ucontext_t *)context)->uc_sigmask, NULL);
#endif
    sigemptyset(&ours);
    sigaddset(&ours, SIGBUS);
    pthread_sigmask(SIG_UNBLOCK, &ours, NULL);
#if defined(__linux__) && defined(__x86_64__)
    /* The kernel starts a handler with default rounding and masks; a jump would leave the thread with them. */
    if (context != NULL && ((ucontext_t *)context)->uc_mcontext.fpregs != NULL) {
        unsigned int mxcsr = ((ucontext_t *)context)->uc_mcontext.fpregs->mxcsr;
        unsigned short control = ((ucontext_t *)context)->uc_mcontext.fpregs->cwd;
        __asm__ volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(mxcsr), "m"(control));
    }
#else
    (void)context;
#endif
    siglongjmp(*guard, 1);
}

/* A call of the previous handler is known by marks in its frame: one that was left by a jump is soon overwritten. */
#define MMIO_MARKS 16

static int mmio_is_marked(volatile uintptr_t *mark) {
    for (int i = 0; i < MMIO_MARKS; i++)
        if (mark[i] != ((uintptr_t)mark ^ (0x6D6D696FUL + (uintptr_t)i))) return 0;
    return 1;
}

static void mmio_mark(volatile uintptr_t *mark) {
    for (int i = 0; i < MMIO_MARKS; i++) mark[i] = (uintptr_t)mark ^ (0x6D6D696FUL + (uintptr_t)i);
    mmio_chained = mark;
}

static void mmio_unmark(volatile uintptr_t *mark, volatile uintptr_t *outer) {
    for (int i = 0; i < MMIO_MARKS; i++) mark[i] = 0;
    mmio_chained = outer;
    /* It has returned; if the fault comes again, it has mended nothing. */
    mmio_repeats++;
}

/* To whoever was there before. `synchronous`: an instruction runs again when the handler returns. */
static void mmio_chain(int number, siginfo_t *info, void *context, int synchronous) {
    char *frame = (char *)__builtin_frame_address(0);
    volatile uintptr_t mark[MMIO_MARKS];
    volatile uintptr_t *outer = mmio_chained;
    /* A handler that finds ours installed before it passes a signal on, by raise() or a call, and ours would go back to it: once is
     * enough. The frame tells whether that call is still going on; it may have been left by a jump. */
    if (outer != NULL && (char *)outer > frame && mmio_is_marked(outer) &&
        (!synchronous || info->si_addr == mmio_last_address)) {
        mmio_die(number);
        if (!synchronous) raise(number);
        return;
    }
    if (synchronous) {
        /* One that returns and has mended nothing, as faulthandler's does once it is switched off, would run for ever. */
        if (info->si_addr != mmio_last_address) mmio_repeats = 0;
        mmio_last_address = info->si_addr;
        if (mmio_repeats > MMIO_REPEATS_MAX) {
            mmio_die(number);
            return;
        }
    }
    if (mmio_previous.sa_flags & SA_SIGINFO) {
        mmio_mark(mark);
        mmio_previous.sa_sigaction(number, info, context);
        mmio_unmark(mark, outer);
    } else if (mmio_previous.sa_handler != SIG_DFL && mmio_previous.sa_handler != SIG_IGN) {
        mmio_mark(mark);
        mmio_previous.sa_handler(number);
        mmio_unmark(mark, outer);
    } else if (synchronous || mmio_previous.sa_handler != SIG_IGN) {
        /* The instruction runs again and ends the process as if nobody had listened. A signal that was sent is sent again. */
        mmio_die(number);
        if (!synchronous) raise(number);
    }
}

static void mmio_on_sigbus(int number, siginfo_t *info, void *context) {
    int saved = errno;
    /* Not a signal that somebody sent, nor news of a broken page that nobody touched. */
    int synchronous = info->si_code > 0 && info->si_code != MMIO_NOT_TOUCHED;
    sigjmp_buf *guard = mmio_guard;
    mmio_slot *slot = synchronous && !MMIO_IS_MISALIGNED(info) ? mmio_find((uintptr_t)info->si_addr) : NULL;
    if (synchronous) __atomic_fetch_add(&mmio_faults, 1, __ATOMIC_SEQ_CST);
    /* A handler that was put over this one passes the fault on by raise(): without its address, but on our thread. */
    if (guard != NULL && (synchronous || (info->si_code == MMIO_RAISED && info->si_pid == getpid()))) {
        if (slot != NULL) __atomic_store_n(&slot->faulted, 1, __ATOMIC_SEQ_CST);
        errno = saved;
        mmio_leave(guard, context);
    }
    if (slot == NULL || slot->kind == MMIO_KIND_READ_WRITE || !mmio_cover(slot, (uintptr_t)info->si_addr))
        mmio_chain(number, info, context, synchronous);
    errno = saved;
}

/* Puts the handler in place, again if another has taken it since. Costs a system call. */
static int mmio_install(void) {
    struct sigaction now, ours;
    mmio_page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    if (sigaction(SIGBUS, NULL, &now) < 0) return -errno;
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == mmio_on_sigbus) return 0;
    mmio_previous = now;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = mmio_on_sigbus;
    /* SA_NODEFER: the handler may leave by a jump, after which the signal must not be blocked. */
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    return mmio_outcome(sigaction(SIGBUS, &ours, NULL));
}

/* --- The table ------------------------------------------------------------------------------------------ */

/* A page was found missing without a signal. */
static void mmio_met(void) { __atomic_fetch_add(&mmio_faults, 1, __ATOMIC_SEQ_CST); }

/* NULL when there is no memory. Below the GIL. */
static mmio_slot *mmio_take_slot(void *base, size_t count, int kind, uint64_t device, uint64_t inode) {
    static int begun;
    mmio_slot *slot;
    if (mmio_free == NULL) {
        mmio_block *block = &mmio_first;
        if (begun) {
            mmio_block *last = block;
            if ((block = calloc(1, sizeof *block)) == NULL) return NULL;
            while (last->next != NULL) last = last->next;
            __atomic_store_n(&last->next, block, __ATOMIC_RELEASE);
        }
        begun = 1;
        for (int i = 0; i < 128; i++) {
            block->slots[i].next_free = mmio_free;
            mmio_free = &block->slots[i];
        }
    }
    slot = mmio_free;
    mmio_free = slot->next_free;
    __atomic_store_n(&slot->base, (uintptr_t)base, __ATOMIC_RELEASE);
    slot->kind = kind;
    slot->device = device;
    slot->inode = inode;
    slot->covered = (uintptr_t)base + count;
    slot->faulted = 0;
    __atomic_store_n(&slot->count, count, __ATOMIC_RELEASE);
    return slot;
}

static void mmio_give_slot(mmio_slot *slot) {
    __atomic_store_n(&slot->count, 0, __ATOMIC_RELEASE);
    slot->next_free = mmio_free;
    mmio_free = slot;
}

/* Where the bytes at `source` lie in the mapping of `target`; `source` itself when that is another file, or none of ours.
 * NULL: the two may be the same memory, and nobody can say where. */
static const void *mmio_alias(const void *source, const void *target, size_t count) {
    mmio_slot *from = mmio_find((uintptr_t)source), *to = mmio_find((uintptr_t)target);
    if (from == NULL || to == NULL || from == to || from->inode != to->inode || from->device != to->device) return source;
    size_t offset = (uintptr_t)source - from->base;
    if (from->faulted || to->faulted || from->kind == MMIO_KIND_COPY_ON_WRITE || to->kind == MMIO_KIND_COPY_ON_WRITE || offset >= to->count ||
        count > to->count - offset)
        return NULL;
    return (const void *)(to->base + offset);
}

/* --- Accesses that answer -EFAULT instead of dying ------------------------------------------------------ */

#define MMIO_GUARDED(body)                          \
    do {                                            \
        sigjmp_buf here;                            \
        sigjmp_buf *const outer = mmio_guard;       \
        if (sigsetjmp(here, 0) != 0) {              \
            mmio_guard = outer;                     \
            return -EFAULT;                         \
        }                                           \
        mmio_guard = &here;                         \
        MMIO_BARRIER();                             \
        body;                                       \
        MMIO_BARRIER();                             \
        mmio_guard = outer;                         \
    } while (0)

static int mmio_copy(void *to, const void *from, size_t count) {
    /* An empty buffer may be nowhere. */
    if (count == 0) return 0;
    MMIO_GUARDED(memmove(to, from, count));
    return 0;
}

static int mmio_call(int (*function)(void *), void *argument) {
    volatile int result = 0;
    MMIO_GUARDED(result = function(argument));
    return result;
}

/* Reads a byte of every page. */
static int mmio_touch(const void *start, size_t count, size_t step) {
    const volatile char *at = (const volatile char *)start;
    MMIO_GUARDED(for (size_t i = 0; i < count; i += step) (void)at[i]);
    return 0;
}

/* Atomic operations, numbered as in _fault.pxd. Whatever the order asked for, a read-modify-write on x86-64 is sequentially
 * consistent; on other machines the weaker orders are served by the strongest. Only loads and stores tell them apart. */
enum {
    MMIO_LOAD, MMIO_STORE, MMIO_SWAP, MMIO_COMPARE, MMIO_ADD, MMIO_SUB, MMIO_AND, MMIO_OR, MMIO_XOR, MMIO_MIN, MMIO_MAX
};
enum { MMIO_RELAXED, MMIO_ACQUIRE, MMIO_RELEASE, MMIO_ACQ_REL, MMIO_SEQ_CST };

#define MMIO_WORD(name, type)                                                                             \
    static inline type name##_load(type *word, int order) {                                               \
        if (order == MMIO_RELAXED) return __atomic_load_n(word, __ATOMIC_RELAXED);                        \
        if (order == MMIO_ACQUIRE) return __atomic_load_n(word, __ATOMIC_ACQUIRE);                        \
        return __atomic_load_n(word, __ATOMIC_SEQ_CST);                                                   \
    }                                                                                                     \
    static inline void name##_store(type *word, type value, int order) {                                  \
        if (order == MMIO_RELAXED) __atomic_store_n(word, value, __ATOMIC_RELAXED);                       \
        else if (order == MMIO_RELEASE) __atomic_store_n(word, value, __ATOMIC_RELEASE);                  \
        else __atomic_store_n(word, value, __ATOMIC_SEQ_CST);                                             \
    }                                                                                                     \
    static inline type name##_extreme(type *word, type value, int greatest) {                             \
        type seen = __atomic_load_n(word, __ATOMIC_SEQ_CST);                                              \
        /* Stores what it saw where nothing changes, so that the operation is a write in every case. */   \
        while (!__atomic_compare_exchange_n(word, &seen, (value > seen) == greatest ? value : seen, 0,    \
                                            __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}                       \
        return seen;                                                                                      \
    }                                                                                                     \
    static inline type name##_operate(int operation, type *word, type value, type *expected, int order) { \
        switch (operation) {                                                                              \
        case MMIO_LOAD: return name##_load(word, order);                                                  \
        case MMIO_STORE: name##_store(word, value, order); return 0;                                      \
        case MMIO_SWAP: return __atomic_exchange_n(word, value, __ATOMIC_SEQ_CST);                        \
        case MMIO_COMPARE:                                                                                \
            return __atomic_compare_exchange_n(word, expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
        case MMIO_ADD: return __atomic_fetch_add(word, value, __ATOMIC_SEQ_CST);                          \
        case MMIO_SUB: return __atomic_fetch_sub(word, value, __ATOMIC_SEQ_CST);                          \
        case MMIO_AND: return __atomic_fetch_and(word, value, __ATOMIC_SEQ_CST);                          \
        case MMIO_OR: return __atomic_fetch_or(word, value, __ATOMIC_SEQ_CST);                            \
        case MMIO_XOR: return __atomic_fetch_xor(word, value, __ATOMIC_SEQ_CST);                          \
        default: return name##_extreme(word, value, operation == MMIO_MAX);                               \
        }                                                                                                 \
    }                                                                                                     \
    static int name(int operation, void *word, uint64_t value, uint64_t *seen, int order) {               \
        type expected = (type)*seen, result = 0;                                                          \
        type *const cell = (type *)word;                                                                  \
        MMIO_GUARDED({                                                                                    \
            result = name##_operate(operation, cell, (type)value, &expected, order);                      \
            *seen = operation == MMIO_COMPARE ? expected : result;                                        \
        });                                                                                               \
        return operation == MMIO_COMPARE ? result != 0 : 0;                                               \
    }

MMIO_WORD(mmio_word32, uint32_t)
MMIO_WORD(mmio_word64, uint64_t)

#endif
