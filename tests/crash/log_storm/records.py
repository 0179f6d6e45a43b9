"""Payloads that say where they come from, so that each byte of a log can be told from its place alone."""

from __future__ import annotations

import random
import struct
from typing import NamedTuple

SIZE_MAX = 2 << 20
# round, writer, call, index within the call, how many records the call has, size of this one
_TAG = struct.Struct("<LHLHHL")
TAG_SIZE = _TAG.size
_NOISE = random.Random("noise of the log storm").randbytes(SIZE_MAX + (64 << 10))


class Origin(NamedTuple):
    """Which record of which call of which writer of which round, and its size in bytes."""

    round: int
    writer: int
    call: int
    index: int
    count: int
    size: int


def payload_of(origin: Origin) -> bytes:
    """The bytes that were appended. Those of fewer than `TAG_SIZE` are not unique."""
    start = (origin.round * 7919 + origin.writer * 31337 + origin.call * 104729 + origin.index) % (64 << 10)
    if origin.size <= TAG_SIZE:
        return _TAG.pack(*origin)[: origin.size]
    return _TAG.pack(*origin) + _NOISE[start : start + origin.size - TAG_SIZE]


def origin_in(payload: bytes) -> Origin | None:
    """Where a payload comes from; None if it is too short to tell, or was never written by a storm."""
    if len(payload) < TAG_SIZE:
        return None
    origin = Origin(*_TAG.unpack_from(payload))
    return origin if origin.size == len(payload) and payload_of(origin) == payload else None


def shown(payload: bytes | None) -> str:
    """A payload in a message."""
    if payload is None:
        return "absent"
    origin = origin_in(payload)
    if origin is None:
        return f"{payload[:24]!r} ({len(payload)} bytes)"
    return shown_origin(origin)


def shown_origin(origin: Origin) -> str:
    """An origin in a message."""
    return (
        f"record {origin.index} of {origin.count} of call {origin.call} of writer {origin.writer} "
        f"in round {origin.round} ({origin.size} bytes)"
    )
