"""The queuelib package of PyPI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import ClassVar

from queuelib import FifoDiskQueue

from .log_peer import LogPeer, LogStage, is_filled, records_of
from .peer import Statements, Task
from .rival import installed_version


class QueuelibLog(LogPeer):
    """Its first-in-first-out queue of files: a write a record, nothing synced ever, no checksums.

    It can be read once only, and what was pushed is found again only if it was closed
    (https://github.com/scrapy/queuelib).
    """

    name = "queuelib"
    settings = "FifoDiskQueue(path), which never syncs; no checksums"
    statements: ClassVar[Statements] = {
        "append": ("for r in records: queue.push(r)",),
        "replay": ("for record in iter(queue.pop, None): pass",),
    }

    @classmethod
    def version(cls) -> str:
        return installed_version("queuelib")

    @contextmanager
    def scene(self, task: Task) -> Iterator[LogStage]:
        queue = FifoDiskQueue(task.path / "queue")
        with closing(queue):
            if is_filled(task):
                for record in records_of(task):
                    queue.push(record)
            yield LogStage(
                {"queue": queue},
                state=queue.__len__,
                consumes=True,
                read_back=lambda: iter(queue.pop, None),
            )
