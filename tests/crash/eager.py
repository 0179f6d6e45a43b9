"""Compaction in the background for a process that lives some milliseconds, and whether it is at a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmapkv import compaction, victims

# A thread that compacts is to have something to do in the time that there is.
SEGMENT_BYTES = 64 << 10


def compact_eagerly(tell: Callable[[bool], object]) -> None:
    """From here on as if each store were large. `tell` is called when a step begins and when it ends."""
    vars(victims)["SEGMENT_BYTES_MIN"] = SEGMENT_BYTES
    step = compaction.step

    def told(*arguments: Any) -> Any:
        tell(True)
        try:
            return step(*arguments)
        finally:
            tell(False)

    vars(compaction)["step"] = told
