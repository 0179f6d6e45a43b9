"""A library put in front of the C library that counts syncs and makes system calls fail on demand.

Loaded with LD_PRELOAD, so that nothing in the code under test knows of it. The child reaches it with
``ctypes.CDLL(None)``.
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
#include <stdatomic.h>
#include <stddef.h>
#include <sys/types.h>

/* One row for each call: how often it was made, at which call to fail, for how many calls, with what. */
enum { FDATASYNC, FSYNC, MSYNC, FALLOCATE, PWRITE, RENAMEAT, CALLS };
static atomic_long counts[CALLS], first[CALLS], times[CALLS];
static int numbers[CALLS];

long interposer_count(int call) { return counts[call]; }

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

int fdatasync(int fd) { NEXT(int, "fdatasync", int); return fails(FDATASYNC) ? -1 : next(fd); }
int fsync(int fd) { NEXT(int, "fsync", int); return fails(FSYNC) ? -1 : next(fd); }
int msync(void *p, size_t n, int how) {
    NEXT(int, "msync", void *, size_t, int);
    return fails(MSYNC) ? -1 : next(p, n, how);
}
int fallocate(int fd, int mode, off_t at, off_t n) {
    NEXT(int, "fallocate", int, int, off_t, off_t);
    return fails(FALLOCATE) ? -1 : next(fd, mode, at, n);
}
int fallocate64(int fd, int mode, off_t at, off_t n) { return fallocate(fd, mode, at, n); }
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) {
    NEXT(ssize_t, "pwrite", int, const void *, size_t, off_t);
    return fails(PWRITE) ? -1 : next(fd, p, n, at);
}
ssize_t pwrite64(int fd, const void *p, size_t n, off_t at) { return pwrite(fd, p, n, at); }
int renameat(int a, const char *b, int c, const char *d) {
    NEXT(int, "renameat", int, const char *, int, const char *);
    return fails(RENAMEAT) ? -1 : next(a, b, c, d);
}
"""

#: To be put before the code of a child that runs below the library.
PRELUDE = """
import ctypes, errno
library = ctypes.CDLL(None)
FDATASYNC, FSYNC, MSYNC, FALLOCATE, PWRITE, RENAMEAT = range(6)
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
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library
