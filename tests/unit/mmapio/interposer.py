"""A library put in front of the C library that counts syncs, and makes system calls fail or wait on demand.

Loaded with LD_PRELOAD, so that nothing in the code under test knows of it. The child reaches it with
``ctypes.CDLL(None)``. A call that is held has done its work, or failed, and returns when it is let on: what
other threads do meanwhile happens between a sync's outcome and its caller's learning of it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* One row for each call: how often it was made, at which call to fail, for how many calls, with what. */
enum {
    FDATASYNC, FSYNC, MSYNC, FALLOCATE, PWRITE, RENAMEAT, SYNC_FILE_RANGE, FTRUNCATE, COPY_FILE_RANGE, CALLS
};
static atomic_long counts[CALLS], first[CALLS], times[CALLS];
static atomic_int to_hold[CALLS];
static int numbers[CALLS];
static sem_t held, onward;

__attribute__((constructor)) static void begin(void) {
    sem_init(&held, 0, 0);
    sem_init(&onward, 0, 0);
}

long interposer_count(int call) { return counts[call]; }

/* So many of the next calls are held. */
void interposer_hold(int call, int how_many) { to_hold[call] = how_many; }

/* 0 once a call is held that nobody has waited for. */
int interposer_wait_until_held(int seconds) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += seconds;
    while (sem_timedwait(&held, &until) < 0)
        if (errno != EINTR) return -1;
    return 0;
}

void interposer_let_on(void) { sem_post(&onward); }

static void *let_on_later(void *nothing) {
    usleep(200000);
    sem_post(&onward);
    return nothing;
}

/* For who is about to wait, with the GIL in hand, for what is held. */
int interposer_let_on_later(void) {
    pthread_t thread;
    return pthread_create(&thread, NULL, let_on_later, NULL);
}

static long ended(int call, long result) {
    int saved = errno, left = to_hold[call];
    while (left > 0 && !atomic_compare_exchange_weak(&to_hold[call], &left, left - 1)) {}
    if (left > 0) {
        sem_post(&held);
        while (sem_wait(&onward) < 0) {}
    }
    errno = saved;
    return result;
}

void interposer_fail(int call, long nth, long how_often, int number) {
    numbers[call] = number;
    times[call] = how_often;
    first[call] = nth ? counts[call] + nth : 0;
}

static int fails(int call) {
    long at = ++counts[call];
    if (first[call] && at >= first[call] && at < first[call] + times[call]) {
        errno = numbers[call];
        return 1;
    }
    return 0;
}

#define NEXT(type, name, ...) \
    static type (*next)(__VA_ARGS__); \
    if (!next) next = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

int fdatasync(int fd) {
    NEXT(int, "fdatasync", int);
    return (int)ended(FDATASYNC, fails(FDATASYNC) ? -1 : next(fd));
}
int fsync(int fd) {
    NEXT(int, "fsync", int);
    return (int)ended(FSYNC, fails(FSYNC) ? -1 : next(fd));
}
int msync(void *p, size_t n, int how) {
    NEXT(int, "msync", void *, size_t, int);
    return (int)ended(MSYNC, fails(MSYNC) ? -1 : next(p, n, how));
}
int sync_file_range(int fd, off_t at, off_t n, unsigned how) {
    NEXT(int, "sync_file_range", int, off_t, off_t, unsigned);
    return (int)ended(SYNC_FILE_RANGE, fails(SYNC_FILE_RANGE) ? -1 : next(fd, at, n, how));
}
int fallocate(int fd, int mode, off_t at, off_t n) {
    NEXT(int, "fallocate", int, int, off_t, off_t);
    return (int)ended(FALLOCATE, fails(FALLOCATE) ? -1 : next(fd, mode, at, n));
}
int fallocate64(int fd, int mode, off_t at, off_t n) { return fallocate(fd, mode, at, n); }
int ftruncate(int fd, off_t n) {
    NEXT(int, "ftruncate", int, off_t);
    return (int)ended(FTRUNCATE, fails(FTRUNCATE) ? -1 : next(fd, n));
}
int ftruncate64(int fd, off_t n) { return ftruncate(fd, n); }
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) {
    NEXT(ssize_t, "pwrite", int, const void *, size_t, off_t);
    return ended(PWRITE, fails(PWRITE) ? -1 : next(fd, p, n, at));
}
ssize_t pwrite64(int fd, const void *p, size_t n, off_t at) { return pwrite(fd, p, n, at); }
/* Zeros at the end of a file: a write as any other. */
ssize_t pwritev2(int fd, const struct iovec *p, int n, off_t at, int how) {
    NEXT(ssize_t, "pwritev2", int, const struct iovec *, int, off_t, int);
    return ended(PWRITE, fails(PWRITE) ? -1 : next(fd, p, n, at, how));
}
ssize_t pwritev64v2(int fd, const struct iovec *p, int n, off_t at, int how) {
    return pwritev2(fd, p, n, at, how);
}
ssize_t copy_file_range(int from, off_t *in, int to, off_t *out, size_t n, unsigned flags) {
    NEXT(ssize_t, "copy_file_range", int, off_t *, int, off_t *, size_t, unsigned);
    return ended(COPY_FILE_RANGE, fails(COPY_FILE_RANGE) ? -1 : next(from, in, to, out, n, flags));
}
int renameat(int a, const char *b, int c, const char *d) {
    NEXT(int, "renameat", int, const char *, int, const char *);
    return (int)ended(RENAMEAT, fails(RENAMEAT) ? -1 : next(a, b, c, d));
}
"""

#: To be put before the code of a child that runs below the library.
PRELUDE = """
import ctypes, errno, pathlib, threading, time
library = ctypes.CDLL(None)
FDATASYNC, FSYNC, MSYNC, FALLOCATE, PWRITE, RENAMEAT, SYNC_FILE_RANGE, FTRUNCATE, COPY_FILE_RANGE = range(9)
def calls(call):
    return library.interposer_count(call)
def syncs():
    return [library.interposer_count(call) for call in (FDATASYNC, FSYNC, MSYNC)]
def fail(call, nth, number, how_often=1):
    library.interposer_fail(call, ctypes.c_long(nth), ctypes.c_long(how_often), number)
def synced_by(work):
    before = sum(syncs())
    work()
    return sum(syncs()) - before
def outcome(work):
    try:
        work()
    except Exception as error:
        return type(error).__name__
    return ""
def wait_until_held():
    assert library.interposer_wait_until_held(300) == 0, "nobody made the call that was to be held"
def until_it_waits(thread):
    "Until a thread has ended, or sleeps on although nobody here keeps it from anything."
    asleep_ms = 0
    while thread.is_alive() and asleep_ms < 20:
        time.sleep(0.001)
        try:
            stat = pathlib.Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            # It ended before the file was opened, or after.
            continue
        asleep_ms = asleep_ms + 1 if stat.rpartition(")")[2].split()[0] == "S" else 0
class Held:
    "Does `work` in a thread and holds it at the end of the next `call`, for as long as the block lasts."
    def __init__(self, call, work):
        self.outcome = None
        def note():
            self.outcome = outcome(work)
        self.call, self.thread = call, threading.Thread(target=note)
    def __enter__(self):
        library.interposer_hold(self.call, 1)
        self.thread.start()
        wait_until_held()
        return self
    def __exit__(self, *exc):
        library.interposer_let_on()
        self.thread.join()
"""


def build(directory: Path) -> Path:
    """Compile the library into `directory`; the test is skipped where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip(
            "no C compiler: NOT TESTED what happens when system calls fail, nor how often a policy syncs"
        )
    source, library = directory / "interposer.c", directory / "interposer.so"
    source.write_text(SOURCE)
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Werror",
        "-o",
        str(library),
        str(source),
        "-ldl",
        "-lpthread",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library
