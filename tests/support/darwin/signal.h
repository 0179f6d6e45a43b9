/* As much of the header of macOS as mmapio names; for a check of the syntax, not for use. */
#pragma once
#include <sys/types.h>
typedef unsigned sigset_t;
typedef struct { int si_signo, si_errno, si_code; pid_t si_pid; void *si_addr; } siginfo_t;
struct sigaction {
    union { void (*__sa_handler)(int); void (*__sa_sigaction)(int, siginfo_t *, void *); } __sigaction_u;
    sigset_t sa_mask;
    int sa_flags;
};
#define sa_handler __sigaction_u.__sa_handler
#define sa_sigaction __sigaction_u.__sa_sigaction
#define SIG_DFL (void (*)(int))0
#define SIG_IGN (void (*)(int))1
enum { SIGBUS = 10, SA_ONSTACK = 1, SA_NODEFER = 16, SA_SIGINFO = 64, SIG_UNBLOCK = 2, SI_USER = 0x10001 };
int sigaction(int, const struct sigaction *, struct sigaction *);
int sigemptyset(sigset_t *);
int sigaddset(sigset_t *, int);
int raise(int);
int pthread_sigmask(int, const sigset_t *, sigset_t *);
