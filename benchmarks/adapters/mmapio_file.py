"""The subject."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from mmapio import FlushPolicy, MemoryMappedFile, SharedMutex

from .other_process import answering
from .peer import FLUSHES, Peer, Stage, Statements, Task
from .rival import installed_version

ANSWER_OFFSET = 64  # on a cache line of its own
STOP = (1 << 64) - 1


class MmapioFile(Peer):
    """A file as `create_rw` or `open_rw` gives it.

    `FlushPolicy.NEVER` differs from the default, `MANUAL`, at close only: that writes nothing back.
    """

    name = "mmapio"
    settings = "read-write, flush_policy=FlushPolicy.NEVER, the rest by default"
    statements: ClassVar[Statements] = {
        "slice-64": ("m.as_slice(a, n)",),
        "slice-64k": ("m.as_slice(a, n)",),
        "read-64": ("m.read_bytes(a, n)", "m[a:b]", "m.read_into(a, buffer)"),
        "read-4k": ("m.read_bytes(a, n)", "m[a:b]", "m.read_into(a, buffer)"),
        "write-64": ("m.update_region(a, data)", "m[a:b] = data"),
        "write-4k": ("m.update_region(a, data)", "m[a:b] = data"),
        "fetch-add": ("word.fetch_add(1)",),
        "mutex": ("with mutex: pass",),
        "chunks": ("for chunk in m.chunks(n): pass",),
        "touch": ("m.touch_pages()",),
        "touch-write": ("m.touch_pages(write=True)",),
        "grow": ("m.resize(len(m) + step)",),
        **dict.fromkeys(
            FLUSHES,
            (
                "m.update_region(next(at), page); m.flush()",
                "o = next(at); m.update_region(o, page); m.flush_range(o, n)",
            ),
        ),
        "round-trip": ("t = next(turn); ask.store(t); ask.notify(); answer.wait(t - 1)",),
    }

    @classmethod
    def version(cls) -> str:
        return installed_version("mmapkv")

    def _open(self, task: Task) -> MemoryMappedFile:
        if task.path.exists():
            return MemoryMappedFile.open_rw(task.path, flush_policy=FlushPolicy.NEVER)
        return MemoryMappedFile.create_rw(task.path, task.size, flush_policy=FlushPolicy.NEVER)

    @contextmanager
    def stage(self, task: Task) -> Iterator[Stage]:
        with self._open(task) as m:
            if task.workload == "fetch-add":
                word = m.atomic_u64(0)
                yield Stage({"word": word}, state=word.load)
            elif task.workload == "mutex":
                mutex = SharedMutex(m, 0)
                yield Stage({"mutex": mutex}, state=lambda: mutex.is_held)
            elif task.workload == "grow":
                yield from _growing(m, task.path)
            elif task.workload == "round-trip":
                yield from _round_trips(m, task.path)
            else:
                yield Stage({"m": m}, state=m.resident)


class MmapioReadOnlyFile(MmapioFile):
    """The same file as `open_ro` gives it: one mapping instead of two, and reads need no guard."""

    name = "mmapio-ro"
    settings = "read-only, the rest by default"
    statements: ClassVar[Statements] = {
        name: MmapioFile.statements[name]
        for name in ("slice-64", "slice-64k", "read-64", "read-4k", "chunks")
    }

    def _open(self, task: Task) -> MemoryMappedFile:
        return MemoryMappedFile.open_ro(task.path)


def _growing(m: MemoryMappedFile, path: Path) -> Iterator[Stage]:
    address = m.address
    length = len(m)
    view = m.as_slice(0, length)

    def state() -> int:
        # The view was taken before, and goes on showing what is stored to the file.
        m[length - 1] = 1 + m[length - 1] % 255
        return len(m) if m.address == address and view[length - 1] == m[length - 1] else -1

    def note() -> str:
        return (
            f"with a live view of the {length >> 20} MiB before; the address stayed, so no byte was copied; "
            f"{path.stat().st_blocks:,} blocks of 512 B for {len(m):,} bytes"
        )

    yield Stage({"m": m}, state=state, note=note)


def _round_trips(m: MemoryMappedFile, path: Path) -> Iterator[Stage]:
    ask, answer = m.atomic_u64(0), m.atomic_u64(ANSWER_OFFSET)
    with answering(_answer, str(path)):
        try:
            names = {"ask": ask, "answer": answer, "turn": itertools.count(1)}
            yield Stage(names, state=answer.load)
        finally:
            ask.store(STOP)
            ask.notify()


def _answer(path: str) -> None:
    """What the other process does: tell every new value back."""
    with MemoryMappedFile.open_rw(path, flush_policy=FlushPolicy.NEVER) as m:
        ask, answer = m.atomic_u64(0), m.atomic_u64(ANSWER_OFFSET)
        seen = 0
        while True:
            ask.wait(seen)
            seen = ask.load()
            if seen == STOP:
                return
            answer.store(seen)
            answer.notify()
