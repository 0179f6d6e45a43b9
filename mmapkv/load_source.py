"""What an importer gives: pairs, when they expire, and an account of what cannot be one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["EXPIRES_NS_MAX", "Entry", "Refusals", "Source", "SourceError", "as_bytes"]

#: Key, value, and when that ceases to be there in nanoseconds since 1970, or None: it stays.
Entry: TypeAlias = tuple[bytes, bytes, int | None]

#: The latest time that a store can say, in 2554.
EXPIRES_NS_MAX = 2**64 - 1

_EXAMPLES_MAX = 5


class SourceError(Exception):
    """The source is not what it was said to be, or cannot be read; the message says what to do."""


@dataclass
class Refusals:
    """What was left out, counted, with some examples."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        """One more."""
        self.count += 1
        if len(self.examples) < _EXAMPLES_MAX:
            self.examples.append(what)


@dataclass(frozen=True)
class Source:
    """What is to be loaded, and what has expired; about how many pairs, or 0 when that is not known."""

    total: int
    entries: Iterator[Entry]


def as_bytes(value: object) -> bytes | None:
    """Bytes as they are, text as UTF-8, numbers as decimal text; None for anything else.

    >>> as_bytes("text"), as_bytes(12), as_bytes(0.5), as_bytes(None)
    (b'text', b'12', b'0.5', None)
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value).encode()
    return None
