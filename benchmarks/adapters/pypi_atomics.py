"""The `atomics` package of PyPI: a C library called through cffi."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import atomics  # type: ignore[import-untyped]

from .peer import Peer, Stage, Statements, Task
from .rival import installed_version


class PypiAtomics(Peer):
    """A view of a word in a mapped file.

    Its README asks for `atomicview` to be used as a context manager (https://pypi.org/project/atomics/); the
    main form keeps it open, as mmapio's word is, and the other takes it for each operation.
    """

    name = "atomics"
    settings = "atomicview(buffer=..., atype=UINT) on a stdlib mmap"
    statements: ClassVar[Statements] = {
        "fetch-add": (
            "word.fetch_add(1)",
            "with atomicview(buffer=buffer, atype=UINT) as word: word.fetch_add(1)",
        ),
    }

    @classmethod
    def version(cls) -> str:
        return installed_version("atomics")

    @contextmanager
    def stage(self, task: Task) -> Iterator[Stage]:
        with (
            task.path.open("r+b") as file,
            mmap.mmap(file.fileno(), 0) as mm,
            memoryview(mm) as view,
            view[:8] as buffer,
            atomics.atomicview(buffer=buffer, atype=atomics.UINT) as word,
        ):
            names = {"word": word, "buffer": buffer, "atomicview": atomics.atomicview, "UINT": atomics.UINT}
            yield Stage(names, state=lambda: int.from_bytes(buffer, "little"))
