"""The page that the writer shares with its parent. A store to it outlives the process that made it."""

from __future__ import annotations

import mmap

SUBMITTED = 0
"""Word: number of the last operation that was about to be called."""
ACKNOWLEDGED = 1
"""Word: number of the last operation that returned."""
MISSES = 2
"""Word: how many deletions found their key absent."""


class AckPage:
    """A few counters. Each is one aligned 8-byte store: a kill leaves it as it was or as it should be."""

    def __init__(self) -> None:
        self.words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def reset(self) -> None:
        """Back to zero, for the next writer."""
        for word in (SUBMITTED, ACKNOWLEDGED, MISSES):
            self.words[word] = 0

    @property
    def submitted(self) -> int:
        """Number of the last operation that was about to be called."""
        return self.words[SUBMITTED]

    @property
    def acknowledged(self) -> int:
        """Number of the last operation that returned."""
        return self.words[ACKNOWLEDGED]

    @property
    def misses(self) -> int:
        """How many deletions found their key absent."""
        return self.words[MISSES]
