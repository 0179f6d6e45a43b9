"""The subject."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

from mmapio import MemoryMappedFile
from mmaplog import Entry, FlushPolicy, Log

from .log_peer import (
    LAST_WORDS,
    ONE_DURABLE,
    STOP,
    LogPeer,
    LogStage,
    is_durable,
    is_filled,
    listening,
    records_of,
)
from .other_process import killed
from .peer import Statements, Task
from .rival import installed_version

THREADS = "in_threads({}, durably)"

LARGE_RECORD = bytes(1 << 20)
LOOKS_EVERY = 32
KEPT_BYTES = 128 << 10


class MmaplogLog(LogPeer):
    """A log that syncs when it is asked to.

    `FlushPolicy.NEVER`, where nothing waits for the device, differs from `MANUAL` at close only.
    """

    name = "mmaplog"
    settings = "flush_policy=FlushPolicy.NEVER, MANUAL where durable, the rest by default; checksums verified"
    statements: ClassVar[Statements] = {
        "append": ("for r in records: log.append(r)",),
        "append-many": ("log.append_many(joined, offsets)", "log.append_many(records)"),
        "replay": ("for entry in log.replay(): pass", "for entry in log.replay(verify=False): pass"),
        "verify": ("verified.append(log.verify())",),
        "look-up": (
            "for n in numbers: log[n]",
            "for n in numbers: bytes(log[n].payload)",
            "for entry in log.read_many(numbers): pass",
        ),
        **dict.fromkeys(ONE_DURABLE, ("log.append(next(record), durable=True)",)),
        "group": (
            "[log.append(r) for r in next(group)]; log.flush()",
            "log.append_many(next(group), durable=True)",
        ),
        "threads": tuple(THREADS.format(count) for count in (8, 4, 2, 1)),
        "wake": ("log.append(stamp())",),
        "reopen": ("opened.append(Log.open(path, 'w', flush_policy=NEVER))",),
    }

    @classmethod
    def version(cls) -> str:
        return installed_version("mmapkv")

    @contextmanager
    def scene(self, task: Task) -> Iterator[LogStage]:
        directory = task.path / "log"
        policy = FlushPolicy.MANUAL if is_durable(task) else FlushPolicy.NEVER
        if task.workload == "reopen":
            yield from _reopening(directory, task)
            return
        with Log.open(directory, "n", flush_policy=policy) as log:
            if task.workload == "wake":
                with listening(_follow, str(directory)) as (heard, note):
                    try:
                        yield LogStage({"log": log}, heard=heard, note=note, payload=_payload)
                    finally:
                        log.append(STOP)
                return
            if is_filled(task):
                log.append_many(records_of(task))
            yield LogStage(
                {"log": log, "durably": partial(log.append, durable=True)},
                read_back=lambda: map(_payload, log.replay()),
                payload=_payload,
            )


def _payload(entry: Entry) -> bytes:
    return bytes(entry.payload)


def _follow(ready: Callable[[], None], tell: Callable[[bytes], None], directory: str) -> None:
    """What the other process does: tell of every entry."""
    with Log.open(directory, "r") as log:
        entries = log.follow(0)
        ready()
        for entry in entries:
            received = bytes(entry.payload)
            if received == STOP:
                return
            tell(received)


def _reopening(directory: Path, task: Task) -> Iterator[LogStage]:
    size = task.operands["log_bytes"]
    assert isinstance(size, int)
    with Log.open(directory, "n", flush_policy=FlushPolicy.NEVER) as log:
        _fill_sparsely(log, directory, size)
        log.flush()
        segments = log.stats()["segments"]

    def check_and_close(opened: Log) -> bytes:
        with opened:
            return _payload(opened[-1])

    def note() -> str:
        return f"a log of {size >> 20:,} MiB in {segments} files, sparse"

    yield LogStage(
        {"Log": Log, "path": directory, "NEVER": FlushPolicy.NEVER},
        payload=check_and_close,
        crash=partial(killed, _append_and_die, directory),
        note=note,
    )


def _fill_sparsely(log: Log, directory: Path, size: int) -> None:
    """Append so much, and of the files that are full give back what lies in the middle."""
    done: set[Path] = set()
    for number in range(size // len(LARGE_RECORD)):
        log.append(LARGE_RECORD)
        if number % LOOKS_EVERY:
            continue
        *full, _tail = sorted(directory.glob("*.seg"))
        for path in full:
            if path not in done:
                done.add(path)
                with MemoryMappedFile.open_rw(path, flush_policy=FlushPolicy.NEVER) as file:
                    file.punch_hole(KEPT_BYTES, max(len(file) - 2 * KEPT_BYTES, 0))


def _append_and_die(ready: Callable[[], None], directory: Path) -> None:
    """What the process does that is killed."""
    log = Log.open(directory, "w", flush_policy=FlushPolicy.NEVER)
    log.append(LAST_WORDS)
    ready()
