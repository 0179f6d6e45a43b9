"""What `multiprocessing` offers to hand something to another process: a pipe and a queue."""

from __future__ import annotations

import multiprocessing
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from typing import ClassVar

from .log_peer import STOP, LogPeer, LogStage, listening
from .peer import Statements, Task


class PipeWake(LogPeer):
    """One end of a `Pipe` here, the other there: a write and a read of it. Nothing is kept."""

    name = "mp-pipe"
    settings = "multiprocessing.Pipe(duplex=False); keeps nothing"
    statements: ClassVar[Statements] = {"wake": ("pipe.send_bytes(stamp())",)}

    @classmethod
    def version(cls) -> str:
        return f"{platform.python_implementation()} {platform.python_version()}"

    @contextmanager
    def scene(self, task: Task) -> Iterator[LogStage]:
        theirs, ours = multiprocessing.Pipe(duplex=False)
        with ours, listening(_listen_to_pipe, theirs) as (heard, note):
            theirs.close()
            try:
                yield LogStage({"pipe": ours}, heard=heard, note=note)
            finally:
                ours.send_bytes(STOP)


class QueueWake(LogPeer):
    """A `Queue`, whose `put` pickles and has a thread of its own write to its pipe. Nothing is kept."""

    name = "mp-queue"
    settings = "multiprocessing.Queue(); keeps nothing"
    statements: ClassVar[Statements] = {"wake": ("queue.put(stamp())",)}

    @classmethod
    def version(cls) -> str:
        return PipeWake.version()

    @contextmanager
    def scene(self, task: Task) -> Iterator[LogStage]:
        queue: Queue[bytes] = multiprocessing.get_context("spawn").Queue()
        try:
            with listening(_listen_to_queue, queue) as (heard, note):
                try:
                    yield LogStage({"queue": queue}, heard=heard, note=note)
                finally:
                    queue.put(STOP)
        finally:
            queue.close()
            queue.join_thread()


def _listen_to_pipe(ready: Callable[[], None], tell: Callable[[bytes], None], pipe: Connection) -> None:
    ready()
    while (received := pipe.recv_bytes()) != STOP:
        tell(received)


def _listen_to_queue(ready: Callable[[], None], tell: Callable[[bytes], None], queue: Queue[bytes]) -> None:
    ready()
    while (received := queue.get()) != STOP:
        tell(received)
