"""One writer of a crowd: the process that is killed, or goes on when another one was."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from mmapio import FlushPolicy
from mmapkv import KVStore
from tests.crash import defects
from tests.crash.crowd.operations import SEGMENT_BYTES, WRITERS, Kind, Operation, own_key, perform
from tests.crash.eager import compact_eagerly

EARLY_ACK = "early-ack"
LOST_UPDATE = "lost-update"
HALF_CLEAR = "half-clear"
DEFECT_SECONDS = 0.001


class Board:
    """Counters that parent and writers share. Each is one aligned 8-byte store."""

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def reset(self) -> None:
        """Back to zero, for the next round."""
        for at in range(4 * WRITERS + 1):
            self._words[at] = 0

    def step(self, writer: int, begins: bool) -> None:
        """The thread of a writer that compacts begins a step, or ends it."""
        self._words[3 * WRITERS + 1 + writer] = begins

    def submit(self, writer: int, number: int) -> None:
        """A writer is about to make this call."""
        self._words[3 * writer] = number

    def acknowledge(self, writer: int, number: int) -> None:
        """The call has returned."""
        self._words[3 * writer + 1] = number

    def finish(self, writer: int) -> None:
        """A writer has closed its store."""
        self._words[3 * writer + 2] = 1

    def submitted(self, writer: int) -> int:
        """Number of the last call that a writer was about to make."""
        return self._words[3 * writer]

    def acknowledged(self, writer: int) -> int:
        """Number of the last call that returned."""
        return self._words[3 * writer + 1]

    def finished(self, writer: int) -> bool:
        """Whether a writer has closed its store."""
        return bool(self._words[3 * writer + 2])

    def stepping(self, writer: int) -> bool:
        """Whether the thread of a writer that compacts is at a step."""
        return bool(self._words[3 * WRITERS + 1 + writer])

    @property
    def over(self) -> bool:
        """Whether the writers are to close."""
        return bool(self._words[3 * WRITERS])

    def end(self) -> None:
        """Have the writers close."""
        self._words[3 * WRITERS] = 1


def open_shared(path: Path, *, compaction: bool = False) -> KVStore:
    """The store, as one of its writers."""
    return KVStore.open(
        path,
        shared=True,
        flush_policy=FlushPolicy.MANUAL,
        segment_bytes=SEGMENT_BYTES,
        compaction=compaction,
    )


def write(
    path: Path,
    writer: int,
    work: Iterable[Operation],
    board: Board,
    defect: str | None,
    background: bool,
    started: Callable[[], None],
) -> None:
    """Carry out operations until killed, told to close, or left alone; acknowledge each when it is done.

    With `background` a thread compacts, too.
    """
    defects.plant_in_writer(defect)
    compact_eagerly(partial(board.step, writer))
    store = open_shared(path, compaction=background)
    started()
    parent = os.getppid()
    for number, operation in enumerate(work, start=1):
        board.submit(writer, number)
        if defect == EARLY_ACK:
            board.acknowledge(writer, number)
        if operation.kind is Kind.REOPEN:
            store.close()
            store = open_shared(path, compaction=background)
        elif operation.kind is Kind.COUNT and defect == LOST_UPDATE:
            value = int(store.get(operation.target, b"0"))
            # On a machine whose cores are taken no other would come in between by itself.
            time.sleep(DEFECT_SECONDS)
            store[operation.target] = b"%d" % (value + operation.amount)
        elif operation.kind is Kind.CLEAR and defect == HALF_CLEAR:
            # As if the entries of the others had been behind a copy of the index.
            prefix = own_key(writer, 0)[:-1]
            store.delete_many([key for key in store if key.startswith(prefix)])
        else:
            perform(store, operation)
        board.acknowledge(writer, number)
        if board.over or os.getppid() != parent:
            break
    store.close()
    board.finish(writer)
