"""The page that the writer shares with its parent. A store to it outlives the process that made it."""

from __future__ import annotations

import mmap

SUBMITTED = 0
"""Word: number of the last operation that was about to be called."""
ACKNOWLEDGED = 1
"""Word: number of the last operation that returned."""
MISSES = 2
"""Word: how many deletions found their key absent."""
ROUND = 3
"""Word: the round."""
NUMBER = 4
"""Word: the highest number of a write in it that was about to be made."""
STEPPING = 5
"""Word: whether the thread that compacts is at a step."""


class AckPage:
    """A few counters. Each is one aligned 8-byte store: a kill leaves it as it was or as it should be."""

    def __init__(self) -> None:
        self.words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def reset(self, round_number: int = 0) -> None:
        """Back to zero, for the next writer."""
        # First of all the round: who sees a new one does not ask for the numbers of the last one any more.
        self.words[ROUND] = round_number
        for word in (SUBMITTED, ACKNOWLEDGED, MISSES, NUMBER, STEPPING):
            self.words[word] = 0

    def was_submitted(self, round_number: int, number: int) -> bool:
        """Whether a write can be there already."""
        # In this order, for the same reason.
        submitted = self.words[NUMBER]
        current = self.words[ROUND]
        return round_number < current or (round_number == current and number <= submitted)

    @property
    def submitted(self) -> int:
        """Number of the last operation that was about to be called."""
        return self.words[SUBMITTED]

    @property
    def acknowledged(self) -> int:
        """Number of the last operation that returned."""
        return self.words[ACKNOWLEDGED]

    def step(self, begins: bool) -> None:
        """The thread that compacts begins a step, or ends it."""
        self.words[STEPPING] = begins

    @property
    def stepping(self) -> bool:
        """Whether the thread that compacts is at a step."""
        return bool(self.words[STEPPING])

    @property
    def misses(self) -> int:
        """How many deletions found their key absent."""
        return self.words[MISSES]
