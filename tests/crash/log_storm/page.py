"""The page that the writers share with their parent. A store to it outlives the process that made it."""

from __future__ import annotations

import mmap

from tests.crash.log_storm.plan import WRITERS_MAX

CALLS_MAX = 1 << 14
"""A writer stops after so many calls."""

NO_SEQ = 1 << 63
"""What a call that appends nothing returned."""

_SUBMITTED, _ACKNOWLEDGED, _DURABLE, _STOP = range(4)
_WORDS = 8 + CALLS_MAX


class Line:
    """One writer's words. Each is one aligned 8-byte store: a kill leaves it as it was or as it should be."""

    def __init__(self, words: memoryview) -> None:
        self._words = words

    def reset(self) -> None:
        """Back to zero, for the next round."""
        for word in (_SUBMITTED, _ACKNOWLEDGED, _DURABLE, _STOP):
            self._words[word] = 0

    @property
    def submitted(self) -> int:
        """Number of the last call that was about to be made."""
        return int(self._words[_SUBMITTED])

    @property
    def acknowledged(self) -> int:
        """Number of the last call that returned."""
        return int(self._words[_ACKNOWLEDGED])

    @property
    def durable(self) -> int:
        """The number below which every record was said to be on the device."""
        return int(self._words[_DURABLE])

    @property
    def stopping(self) -> bool:
        """Whether the parent wants this writer to close and end."""
        return bool(self._words[_STOP])

    def stop(self) -> None:
        """Ask the writer to close and end."""
        self._words[_STOP] = 1

    def submit(self, number: int) -> None:
        """Call `number` is about to be made."""
        self._words[_SUBMITTED] = number

    def acknowledge(self, number: int, seq: int, durable: int) -> None:
        """It has returned, its first record is `seq`, and those below `durable` are on the device."""
        self._words[8 + number - 1] = seq
        if durable > self._words[_DURABLE]:
            self._words[_DURABLE] = durable
        self._words[_ACKNOWLEDGED] = number

    def seq_of(self, number: int) -> int:
        """What call `number`, which was acknowledged, returned."""
        return int(self._words[8 + number - 1])


class Page:
    """A line for each writer."""

    def __init__(self) -> None:
        words = memoryview(mmap.mmap(-1, 8 * _WORDS * WRITERS_MAX)).cast("Q")
        self.lines = [Line(words[at * _WORDS : (at + 1) * _WORDS]) for at in range(WRITERS_MAX)]
