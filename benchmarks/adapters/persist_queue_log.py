"""The persist-queue package of PyPI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import ClassVar

import persistqueue

from .log_peer import ONE_DURABLE, LogPeer, LogStage, is_durable, is_filled, records_of
from .peer import Statements, Task
from .rival import installed_version


class PersistQueueLog(LogPeer):
    """Its file queue, whose `put` "will always persist immediately" but is not synced; so where
    durable it is `FIFOSQLiteQueue`, with `auto_commit`, which leaves SQLite's `synchronous=FULL`.

    Both pickle what they are given. The file queue can be read once only, and keeps no checksums
    (https://pypi.org/project/persist-queue/). It is given 500 of the records that the others are given.
    """

    name = "persist-queue"
    settings = (
        "Queue(path, tempdir=path), at most 500 records; FIFOSQLiteQueue(path, auto_commit=True) "
        "where durable; no checksums"
    )
    records_max = 500
    statements: ClassVar[Statements] = {
        "append": ("for r in records: queue.put(r)",),
        "replay": ("for r in records: queue.get()",),
        **dict.fromkeys(ONE_DURABLE, ("queue.put(next(record))",)),
        "threads": tuple(f"in_threads({count}, queue.put)" for count in (8, 1)),
    }

    @classmethod
    def version(cls) -> str:
        return installed_version("persist-queue")

    @contextmanager
    def scene(self, task: Task) -> Iterator[LogStage]:
        path = str(task.path)
        if is_durable(task):
            with closing(persistqueue.FIFOSQLiteQueue(path, auto_commit=True, multithreading=True)) as table:
                yield LogStage({"queue": table}, read_back=lambda: (item["data"] for item in table.queue()))
            return
        queue = persistqueue.Queue(path, tempdir=path)
        try:
            if is_filled(task):
                for record in records_of(task):
                    queue.put(record)
            yield LogStage(
                {"queue": queue},
                state=queue.qsize,
                consumes=True,
                read_back=lambda: (queue.get(block=False) for _ in range(queue.qsize())),
            )
        finally:
            # It has no close of its own.
            queue.headf.close()
            queue.tailf.close()
