"""Where in a log the calls reach that drop records, and what compaction keeps. Both sides compute it."""

from __future__ import annotations

WHOLE = 1024


def place(first: int, end: int, share: int) -> int:
    """A number from `first` to `end`."""
    return first + (end - first) * share // WHOLE


def is_kept(seq: int, share: int) -> bool:
    """Whether a compaction by predicate keeps a record."""
    return (seq * 2654435761 >> 7) % WHOLE < share


def key_of(seq: int, share: int) -> bytes:
    """The key of a record in a compaction by key: several records have each."""
    return b"%d" % (seq * 40503 % (share + 8))
