"""Other processes: the other end of a round trip, and one that is killed."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 10
READY = b"ready"


@contextmanager
def answering(work: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run `work` in a new process, which must end by itself soon after the block does."""
    # Started afresh: a forked child may not write what its parent has mapped.
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.join(PATIENCE_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        process.close()


def killed(work: Callable[..., None], directory: Path) -> None:
    """Run `work(ready, directory)` in a new process, and `kill -9` it once it has called `ready`."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with ours:
        process = multiprocessing.get_context("spawn").Process(
            target=_call, args=(theirs, work, str(directory)), daemon=True
        )
        process.start()
        theirs.close()
        try:
            ours.recv_bytes()
        finally:
            process.kill()
            process.join()
            process.close()


def _call(pipe: Connection, work: Callable[..., None], directory: str) -> None:
    def ready() -> None:
        pipe.send_bytes(READY)
        # Nobody answers: until it is killed.
        time.sleep(PATIENCE_SECONDS)

    work(ready, Path(directory))
