"""A library put in front of the C library that tells of each call that a power cut may come before or after.

Loaded with LD_PRELOAD, so that nothing in the code under test knows of it. It does nothing until somebody
listens.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { OTHER, SYNC };
typedef void (*listener)(int call, int fd, int after, int failed);
static listener listening;
static __thread int within;

void recorder_listen(listener to) { listening = to; }

static void tell(int call, int fd, int after, int failed) {
    int saved = errno;
    if (listening && !within) {
        within = 1;
        listening(call, fd, after, failed);
        within = 0;
    }
    errno = saved;
}

#define WRAP(type, name, call, fd, parameters, arguments) \
    type name parameters { \
        static type (*next) parameters; \
        if (!next) next = (type (*) parameters)dlsym(RTLD_NEXT, #name); \
        tell(call, fd, 0, 0); \
        type result = next arguments; \
        tell(call, fd, 1, result < 0); \
        return result; \
    }

WRAP(int, fdatasync, SYNC, fd, (int fd), (fd))
WRAP(int, fsync, SYNC, fd, (int fd), (fd))
WRAP(int, fallocate, OTHER, fd, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n))
WRAP(int, fallocate64, OTHER, fd, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n))
WRAP(int, ftruncate, OTHER, fd, (int fd, off_t n), (fd, n))
WRAP(int, ftruncate64, OTHER, fd, (int fd, off_t n), (fd, n))
WRAP(ssize_t, pwrite, OTHER, fd, (int fd, const void *p, size_t n, off_t at), (fd, p, n, at))
WRAP(ssize_t, pwrite64, OTHER, fd, (int fd, const void *p, size_t n, off_t at), (fd, p, n, at))
WRAP(ssize_t, pwritev2, OTHER, fd,
     (int fd, const struct iovec *p, int n, off_t at, int how), (fd, p, n, at, how))
WRAP(ssize_t, pwritev64v2, OTHER, fd,
     (int fd, const struct iovec *p, int n, off_t at, int how), (fd, p, n, at, how))
WRAP(int, rename, OTHER, -1, (const char *from, const char *to), (from, to))
WRAP(int, renameat, OTHER, -1, (int a, const char *from, int b, const char *to), (a, from, b, to))
WRAP(int, unlink, OTHER, -1, (const char *path), (path))
WRAP(int, unlinkat, OTHER, -1, (int fd, const char *path, int flags), (fd, path, flags))
WRAP(int, mkdir, OTHER, -1, (const char *path, mode_t mode), (path, mode))
WRAP(int, mkdirat, OTHER, -1, (int fd, const char *path, mode_t mode), (fd, path, mode))
"""

SYNC = 1
"""The calls that make something durable; all others are 0."""

_LISTENER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int)


class NoCompiler(Exception):
    """There is no C compiler, and so no recording."""


def build(directory: Path) -> Path:
    """Compile the library into `directory`."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise NoCompiler("no C compiler: system calls cannot be recorded")
    source, library = directory / "recorder.c", directory / "recorder.so"
    source.write_text(SOURCE)
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(source), "-ldl"]
    subprocess.run([compiler, *options], check=True)
    return library


def is_loaded() -> bool:
    """Whether this process runs behind the library."""
    return hasattr(ctypes.CDLL(None), "recorder_listen")


class Listening:
    """Has `told` called with (call, descriptor, after?, failed?) for as long as the ``with`` block lasts."""

    def __init__(self, told: Callable[[int, int, bool, bool], None]) -> None:
        self._told = told
        self._failure: BaseException | None = None
        self._callback = _LISTENER(self._call)

    def __enter__(self) -> None:
        ctypes.CDLL(None).recorder_listen(self._callback)

    def __exit__(self, *exc: object) -> None:
        ctypes.CDLL(None).recorder_listen(None)
        # Nothing can be raised through the C library, so it is raised here.
        if self._failure is not None:
            raise self._failure

    def _call(self, call: int, fd: int, after: int, failed: int) -> None:
        try:
            self._told(call, fd, bool(after), bool(failed))
        except BaseException as error:
            self._failure = self._failure or error
