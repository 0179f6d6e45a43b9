"""The standard library's `mmap`, and beside it what `os` offers for the same end."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from .peer import FLUSHES, Peer, Stage, Statements, Task, make_allocated


class StdlibMmap(Peer):
    """A whole file mapped shared and writable, which is what `mmap.mmap(fd, 0)` does by itself.

    `mm[a:b]` copies. A `memoryview` of the mapping does not, and is what its user has for `as_slice`; while
    there is one, the mapping can be neither resized nor closed (https://docs.python.org/3/library/mmap.html).
    """

    name = "stdlib-mmap"
    settings = "mmap.mmap(fd, 0); view is a memoryview of it"
    statements: ClassVar[Statements] = {
        "slice-64": ("mm[a:b]", "view[a:b]"),
        "slice-64k": ("mm[a:b]", "view[a:b]"),
        "read-64": ("mm[a:b]", "buffer[:] = view[a:b]"),
        "read-4k": ("mm[a:b]", "buffer[:] = view[a:b]"),
        "write-64": ("mm[a:b] = data",),
        "write-4k": ("mm[a:b] = data",),
        "chunks": (
            "for a in range(0, size, n): chunk = mm[a:a + n]",
            "for a in range(0, size, n): chunk = view[a:a + n]",
        ),
        "touch": ("for a in range(0, size, n): mm[a] = 1", "mm[::n] = ones"),
        "touch-write": ("for a in range(0, size, n): mm[a] = 1", "mm[::n] = ones"),
        "grow": ("n = len(mm) + step; posix_fallocate(fd, 0, n); mm.resize(n)",),
        **dict.fromkeys(
            FLUSHES,
            (
                "o = next(at); mm[o:o + n] = page; mm.flush()",
                "o = next(at); mm[o:o + n] = page; mm.flush(o, n)",
            ),
        ),
    }

    @classmethod
    def version(cls) -> str:
        return f"{platform.python_implementation()} {platform.python_version()}"

    @contextmanager
    def stage(self, task: Task) -> Iterator[Stage]:
        if not task.path.exists():
            make_allocated(task.path, task.size)
        with task.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mm:
            if task.workload == "grow":
                yield _growing(mm, file.fileno())
                return
            with memoryview(mm) as view:
                ones = b"\x01" * (task.size // mmap.PAGESIZE)
                names = {"mm": mm, "view": view, "ones": ones}
                yield Stage(names, state=lambda: mm[:: mmap.PAGESIZE].count(1) * mmap.PAGESIZE)


class Pwrite(Peer):
    """No mapping at all: the page is written to the file, and the file synced."""

    name = "pwrite"
    settings = "os.pwrite and os.fdatasync"
    statements: ClassVar[Statements] = dict.fromkeys(FLUSHES, ("pwrite(fd, page, next(at)); fdatasync(fd)",))

    @classmethod
    def version(cls) -> str:
        return StdlibMmap.version()

    @contextmanager
    def stage(self, task: Task) -> Iterator[Stage]:
        with task.path.open("r+b", buffering=0) as file:
            yield Stage({"pwrite": os.pwrite, "fdatasync": os.fdatasync, "fd": file.fileno()})


def _growing(mm: mmap.mmap, fd: int) -> Stage:
    with memoryview(mm):
        try:
            mm.resize(len(mm))
            with_view = "it works"
        except BufferError as error:
            with_view = f"BufferError ({error})"
    address = _address(mm)

    def note() -> str:
        moved = "moved" if _address(mm) != address else "stayed"
        return f"with a live view: {with_view}; so without one; the address {moved}"

    return Stage(
        {"mm": mm, "fd": fd, "posix_fallocate": os.posix_fallocate}, state=lambda: len(mm), note=note
    )


def _address(mm: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mm))
