"""What a peer of the log has to offer besides statements: a directory, and what shows that they worked."""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

from .other_process import PATIENCE_SECONDS, READY, answering
from .peer import Peer, Stage, Task

DURABLE = ("durable", "durable-bytes", "group", "threads")
"""Workloads that wait for the device: what peers are opened differently for."""

ONE_DURABLE = ("durable", "durable-bytes")
"""Workloads that run the same statements, and differ in what is measured."""

FILLED = ("replay", "verify", "look-up", "reopen")
"""Workloads that begin with all records stored."""

LAST_WORDS = b"the last record of a process that is killed"
STOP = b"stop"
STAMP_BYTES = 8


def _nothing_kept() -> Iterable[bytes]:
    return ()


def _no_crash() -> None:
    raise AssertionError("the peer does not take part in reopen")


def _nothing_heard() -> tuple[bytes, int]:
    raise AssertionError("the peer does not take part in wake")


@dataclass(frozen=True, slots=True)
class LogStage(Stage):
    """As a `Stage`; `state` counts what is left of a store that is emptied by reading, else nothing."""

    read_back: Callable[[], Iterable[bytes]] = _nothing_kept
    """Give all that is stored, in order; a queue is empty afterwards."""

    payload: Callable[[Any], bytes] = bytes
    """Make a record of what a statement that reads gives; of what `reopen` has opened the last."""

    consumes: bool = False
    """Whether reading empties it."""

    crash: Callable[[], None] = _no_crash
    """Have another process append `LAST_WORDS`, and kill it."""

    heard: Callable[[], tuple[bytes, int]] = _nothing_heard
    """Wait for the next that the other process has received, and tell it and when that was, in ns."""


class LogPeer(Peer):
    """Something that keeps records in order, in a directory of its own, which is removed with the stage."""

    records_max: ClassVar[int | None] = None
    """How many records one is given at most that needs too long for all."""

    @abstractmethod
    def scene(self, task: Task) -> AbstractContextManager[LogStage]:
        """Set the stage in the directory `task.path`, full or empty as the workload wants it."""

    @contextmanager
    def stage(self, task: Task) -> Iterator[Stage]:
        fewer = {}
        if self.records_max is not None and "records" in task.operands:
            fewer["records"] = records_of(task)[: self.records_max]
        task = dataclasses.replace(task, operands={**task.operands, **fewer})
        task.path.mkdir()
        try:
            with self.scene(task) as stage:
                yield dataclasses.replace(stage, names={**stage.names, **fewer})
        finally:
            shutil.rmtree(task.path)


def records_of(task: Task) -> Sequence[bytes]:
    """The records of a task that names some."""
    records = task.operands["records"]
    assert isinstance(records, list)
    return records


def is_filled(task: Task) -> bool:
    """Whether the stage begins with all records stored."""
    return task.workload in FILLED


def is_durable(task: Task) -> bool:
    """Whether the statements wait for the device."""
    return task.workload in DURABLE


def size_note(task: Task, path: Path) -> str:
    """What a stage notes of the size of what was reopened."""
    return f"{path.stat().st_blocks * 512 / 2**20:,.1f} MiB on disk" if task.workload == "reopen" else ""


@contextmanager
def listening(
    listen: Callable[..., None], *arguments: object
) -> Iterator[tuple[Callable[[], tuple[bytes, int]], Callable[[], str]]]:
    """Run `listen(tell, ...)` in a new process, which tells of what it receives until that is `STOP`.

    Gives what a stage has for `heard` and for `note`.
    """
    latencies: list[int] = []
    ours, theirs = multiprocessing.Pipe(duplex=False)

    def heard() -> tuple[bytes, int]:
        if not ours.poll(PATIENCE_SECONDS):
            return b"nothing", 0
        told = ours.recv_bytes()
        received, then = told[STAMP_BYTES:], int.from_bytes(told[:STAMP_BYTES], "little")
        latencies.append(then - int.from_bytes(received, "little"))
        return received, then

    def note() -> str:
        ordered = sorted(latencies)
        rare = ordered[len(ordered) * 99 // 100]
        return f"of {len(ordered):,}, 1 in 100 took more than {rare / 1e3:,.0f} us"

    with ours, answering(_listen, theirs, listen, *arguments):
        theirs.close()
        assert ours.recv_bytes() == READY
        yield heard, note


def _listen(pipe: Connection, listen: Callable[..., None], *arguments: object) -> None:
    def tell(received: bytes) -> None:
        # The clock is the machine's, not a process's: its differences count between processes too.
        now = time.perf_counter_ns()
        pipe.send_bytes(now.to_bytes(STAMP_BYTES, "little") + received)

    listen(lambda: pipe.send_bytes(READY), tell, *arguments)
