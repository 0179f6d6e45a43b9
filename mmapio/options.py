"""The choices a caller makes when a file, a log or a store is opened."""

from __future__ import annotations

import enum
import operator
from dataclasses import dataclass
from typing import ClassVar, SupportsIndex

__all__ = ["FlushPolicy", "MmapAdvice", "MmapMode", "Ordering", "TouchHint", "Trigger"]


BOUND_MAX = (1 << 31) - 1
"""The largest bound of a policy, in its unit: 24 days, or 2 GiB."""


class MmapMode(enum.Enum):
    """How a file is mapped."""

    READ_ONLY = "read-only"
    READ_WRITE = "read-write"
    COPY_ON_WRITE = "copy-on-write"
    """Writable, but what is written stays in this process and never reaches the file."""


class TouchHint(enum.Enum):
    """When the pages of a file are brought in."""

    NEVER = "never"
    """Each at its first use."""
    EAGER = "eager"
    """All of them before the file is handed out."""
    LAZY = "lazy"
    """Each at its first use, after the kernel was told that all will be needed."""


class MmapAdvice(enum.IntEnum):
    """What the kernel can be told about a range of a mapping. The numbers are ours, not the system's.

    All are safe on a mapping of a file: none changes what the file holds. Those after ``DONT_NEED`` are
    Linux's alone.
    """

    NORMAL = 0
    RANDOM = 1
    """No reading ahead. Given before the first touch, it also keeps the cache in small pieces: a flush of one
    page then writes a page or two, and not some 260 KiB."""
    SEQUENTIAL = 2
    WILL_NEED = 3
    DONT_NEED = 4
    """Take the pages out of this mapping. What was written to a file stays in the file's cache."""
    COLD = 5
    """Let the pages be the first to go when memory is short. Linux 5.4."""
    PAGE_OUT = 6
    """Write the pages back and free them now. Linux 5.4."""
    POPULATE_READ = 7
    """Bring every page in, readable, before returning. Linux 5.14."""
    POPULATE_WRITE = 8
    """Bring every page in, writable, before returning; a page that cannot be had is an error. Linux 5.14."""
    HUGE_PAGE = 9
    NO_HUGE_PAGE = 10


class Ordering(enum.IntEnum):
    """Memory orders of atomic operations, as in C11 and C++11."""

    RELAXED = 0
    ACQUIRE = 1
    RELEASE = 2
    ACQ_REL = 3
    SEQ_CST = 4


class Trigger(enum.Enum):
    """What makes a policy sync; :class:`FlushPolicy` pairs it with a bound."""

    NEVER = "never"
    MANUAL = "manual"
    ALWAYS = "always"
    BYTES = "bytes"
    WRITES = "writes"
    MILLIS = "millis"


@dataclass(frozen=True, slots=True)
class FlushPolicy:
    """When writes become durable without being asked one by one.

    Use one of the constants ``NEVER`` (not even on close), ``MANUAL`` (on ``flush()`` and on close),
    ``ALWAYS`` (before each write returns), or a bound: :meth:`every_bytes`, :meth:`every_writes`,
    :meth:`every_millis`. Policies are values: they compare and hash.

    >>> FlushPolicy.every_millis(1000)
    FlushPolicy.every_millis(1000)
    >>> FlushPolicy.ALWAYS == FlushPolicy.ALWAYS
    True
    """

    NEVER: ClassVar[FlushPolicy]
    MANUAL: ClassVar[FlushPolicy]
    ALWAYS: ClassVar[FlushPolicy]

    trigger: Trigger
    bound: int = 0

    @classmethod
    def every_bytes(cls, count: SupportsIndex) -> FlushPolicy:
        """Sync as soon as `count` bytes were written since the last sync. ValueError below 1."""
        return cls(Trigger.BYTES, operator.index(count))

    @classmethod
    def every_writes(cls, count: SupportsIndex) -> FlushPolicy:
        """Sync as soon as `count` writes were made since the last sync. ValueError below 1."""
        return cls(Trigger.WRITES, operator.index(count))

    @classmethod
    def every_millis(cls, milliseconds: SupportsIndex) -> FlushPolicy:
        """Sync in the background at most `milliseconds` after a write. ValueError below 1."""
        return cls(Trigger.MILLIS, operator.index(milliseconds))

    def __post_init__(self) -> None:
        bounded = self.trigger in (Trigger.BYTES, Trigger.WRITES, Trigger.MILLIS)
        if bounded != (1 <= self.bound <= BOUND_MAX):
            raise ValueError(
                f"a flush policy's bound must be between 1 and {BOUND_MAX}, not {self.bound}"
                if bounded
                else f"the policy {self.trigger.name} has no bound"
            )

    def __repr__(self) -> str:
        if self.bound:
            return f"FlushPolicy.every_{self.trigger.value}({self.bound})"
        return f"FlushPolicy.{self.trigger.name}"


def check_choices(policy: object, hint: object) -> None:
    """TypeError unless these are what they should be: before a file is touched for them."""
    if not isinstance(policy, FlushPolicy):
        raise TypeError(f"a flush policy must be a FlushPolicy, not {policy!r}")
    if not isinstance(hint, TouchHint):
        raise TypeError(f"a touch hint must be a TouchHint, not {hint!r}")


# The class cannot be called inside its own body, so its constants follow it.
FlushPolicy.NEVER = FlushPolicy(Trigger.NEVER)
FlushPolicy.MANUAL = FlushPolicy(Trigger.MANUAL)
FlushPolicy.ALWAYS = FlushPolicy(Trigger.ALWAYS)
