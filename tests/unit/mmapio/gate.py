"""A library in front of the C library that stops a system call half way, so that two threads can meet.

The next ``fallocate``, ``ftruncate`` or ``pwritev2`` that is told to stop says that it was reached, waits
until it is let on, then does its work or fails as told. In between, another thread does what would otherwise
have to happen within a microsecond.
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
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { FALLOCATE, FTRUNCATE, PWRITEV2, CALLS };
static atomic_int armed[CALLS];
static int numbers[CALLS];
static sem_t reached, onward;

__attribute__((constructor)) static void begin(void) {
    sem_init(&reached, 0, 0);
    sem_init(&onward, 0, 0);
}

void gate_stop_next(int call, int number) {
    numbers[call] = number;
    armed[call] = 1;
}
void gate_wait_until_reached(void) { while (sem_wait(&reached) < 0) {} }
void gate_let_on(void) { sem_post(&onward); }

static int stopped(int call) {
    int expected = 1;
    if (!atomic_compare_exchange_strong(&armed[call], &expected, 0)) return 0;
    sem_post(&reached);
    while (sem_wait(&onward) < 0) {}
    errno = numbers[call];
    return numbers[call] != 0;
}

#define NEXT(type, name, ...) \
    static type (*next)(__VA_ARGS__); \
    if (!next) next = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

int fallocate(int fd, int mode, off_t at, off_t n) {
    NEXT(int, "fallocate", int, int, off_t, off_t);
    return stopped(FALLOCATE) ? -1 : next(fd, mode, at, n);
}
int fallocate64(int fd, int mode, off_t at, off_t n) { return fallocate(fd, mode, at, n); }
int ftruncate(int fd, off_t n) {
    NEXT(int, "ftruncate", int, off_t);
    return stopped(FTRUNCATE) ? -1 : next(fd, n);
}
int ftruncate64(int fd, off_t n) { return ftruncate(fd, n); }
ssize_t pwritev2(int fd, const struct iovec *p, int n, off_t at, int how) {
    NEXT(ssize_t, "pwritev2", int, const struct iovec *, int, off_t, int);
    return stopped(PWRITEV2) ? -1 : next(fd, p, n, at, how);
}
ssize_t pwritev64v2(int fd, const struct iovec *p, int n, off_t at, int how) {
    return pwritev2(fd, p, n, at, how);
}
"""

#: To be put before the code of a child that runs below the library.
PRELUDE = """
import ctypes, errno, threading
library = ctypes.CDLL(None)
FALLOCATE, FTRUNCATE, PWRITEV2 = range(3)
def outcome(work):
    try:
        work()
    except Exception as error:
        return type(error).__name__
    return ""
def meanwhile(call, first, second, number=0):
    "Start `first`, stop it in `call`, do `second`, let `first` go on (or fail), and tell how both ended."
    outcomes = []
    library.gate_stop_next(call, number)
    thread = threading.Thread(target=lambda: outcomes.append(outcome(first)))
    thread.start()
    library.gate_wait_until_reached()
    try:
        between = outcome(second)
    finally:
        library.gate_let_on()
        thread.join()
    return outcomes[0], between
"""


@pytest.fixture(scope="session")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: NOT TESTED what happens when two threads change a file's length at once")
    directory = tmp_path_factory.mktemp("gate")
    source, library = directory / "gate.c", directory / "gate.so"
    source.write_text(SOURCE)
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-pthread"]
    command = [compiler, *options, "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library
