"""What `multiprocessing` offers for sharing a number, a lock and a message."""

from __future__ import annotations

import multiprocessing
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import ClassVar

from .other_process import answering
from .peer import Peer, Stage, Statements, Task

HOW_MANY = b"how many?"
STOP = b""


class Multiprocessing(Peer):
    """`Value` with its lock, since `+=` on it is not atomic without
    (https://docs.python.org/3/library/multiprocessing.html#shared-ctypes-objects); `Lock`; a duplex `Pipe`.
    """

    name = "multiprocessing"
    settings = "Value('Q', 0), Lock(), Pipe()"
    statements: ClassVar[Statements] = {
        "fetch-add": ("with v.get_lock(): v.value += 1",),
        "mutex": ("with lock: pass",),
        "round-trip": ("pipe.send_bytes(message); pipe.recv_bytes()",),
    }

    @classmethod
    def version(cls) -> str:
        return f"{platform.python_implementation()} {platform.python_version()}"

    @contextmanager
    def stage(self, task: Task) -> Iterator[Stage]:
        if task.workload == "fetch-add":
            value = multiprocessing.Value("Q", 0)
            yield Stage({"v": value}, state=lambda: int(value.value))
        elif task.workload == "mutex":
            lock = multiprocessing.Lock()

            def held() -> int:
                if not lock.acquire(block=False):
                    return 1
                lock.release()
                return 0

            yield Stage({"lock": lock}, state=held)
        else:
            yield from _round_trips()


def _round_trips() -> Iterator[Stage]:
    ours, theirs = multiprocessing.Pipe()

    def answered() -> int:
        ours.send_bytes(HOW_MANY)
        return int(ours.recv_bytes())

    with ours, answering(_answer, theirs):
        theirs.close()
        try:
            yield Stage({"pipe": ours, "message": bytes(8)}, state=answered)
        finally:
            ours.send_bytes(STOP)


def _answer(pipe: Connection) -> None:
    """What the other process does: send every message back."""
    count = 0
    while (message := pipe.recv_bytes()) != STOP:
        if message == HOW_MANY:
            pipe.send_bytes(b"%d" % count)
        else:
            count += 1
            pipe.send_bytes(message)
