"""The choices a caller makes when a file, a log or a store is opened."""

from __future__ import annotations

import enum
import operator
from dataclasses import dataclass
from typing import ClassVar, SupportsIndex

__all__ = ["FlushPolicy", "MmapMode", "Trigger"]


BOUND_MAX = (1 << 31) - 1
"""The largest bound of a policy, in its unit: 24 days, or 2 GiB."""


class MmapMode(enum.Enum):
    """How a file is mapped."""

    READ_ONLY = "read-only"
    READ_WRITE = "read-write"


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


# The class cannot be called inside its own body, so its constants follow it.
FlushPolicy.NEVER = FlushPolicy(Trigger.NEVER)
FlushPolicy.MANUAL = FlushPolicy(Trigger.MANUAL)
FlushPolicy.ALWAYS = FlushPolicy(Trigger.ALWAYS)
