"""`numpy.memmap`."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np

from .peer import FLUSHES, Peer, Stage, Statements, Task, make_allocated
from .rival import installed_version


class NumpyMemmap(Peer):
    """An array of bytes over a whole file.

    Slicing gives a view that is an array again, whose making is what a small slice costs. It cannot grow
    (https://numpy.org/doc/stable/reference/generated/numpy.memmap.html).
    """

    name = "numpy-memmap"
    settings = "dtype=uint8, mode='r+'"
    statements: ClassVar[Statements] = {
        "slice-64": ("array[a:b]",),
        "slice-64k": ("array[a:b]",),
        "read-64": ("array[a:b].tobytes()",),
        "read-4k": ("array[a:b].tobytes()",),
        "write-64": ("array[a:b] = values",),
        "write-4k": ("array[a:b] = values",),
        "chunks": ("for a in range(0, size, n): chunk = array[a:a + n]",),
        "touch": ("array[::n] = 1",),
        "touch-write": ("array[::n] = 1",),
        **dict.fromkeys(FLUSHES, ("o = next(at); array[o:o + n] = values; array.flush()",)),
    }

    @classmethod
    def version(cls) -> str:
        return installed_version("numpy")

    @contextmanager
    def stage(self, task: Task) -> Iterator[Stage]:
        if not task.path.exists():
            make_allocated(task.path, task.size)
        array = np.memmap(task.path, dtype=np.uint8, mode="r+")
        names: dict[str, object] = {"array": array}
        for given in ("data", "page"):
            if given in task.operands:
                names["values"] = np.frombuffer(task.operands[given], dtype=np.uint8)  # type: ignore[call-overload]
        yield Stage(names, state=lambda: int(np.count_nonzero(array[:: mmap.PAGESIZE] == 1)) * mmap.PAGESIZE)
