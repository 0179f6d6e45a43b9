"""The other end of a round trip."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE_SECONDS = 10


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
