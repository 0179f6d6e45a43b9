"""An append that a killed writer had begun, made by hand: a clock would hardly meet one at every stage."""

from __future__ import annotations

import random
import struct

import xxhash

from tests.crash.images.disk import Look
from tests.crash.images.oracle import Record
from tests.crash.wreck import HOT_OFFSET, SEGMENT_HEADER_SIZE, SEGMENT_NAME

CONTROL_SIZE = 8192
IN_FLIGHT_OFFSET = HOT_OFFSET + 56
DURABLE_OFFSET = HOT_OFFSET + 64
_SLOT = struct.Struct("<QQLL")
_HEADER = struct.Struct("<LLLBBH")
_BATCH, _BATCH_END = 0x10, 0x20


def word(control: bytes, offset: int) -> int:
    """A word of CONTROL; 0 where there is no such file."""
    return int.from_bytes(control[offset : offset + 8], "little") if len(control) == CONTROL_SIZE else 0


def slot(control: bytes) -> tuple[int, int, int]:
    """The next number, the segment that it goes to, and the offset in bytes there."""
    if len(control) != CONTROL_SIZE:
        return 0, 0, 0
    turn = word(control, HOT_OFFSET)
    seq, segment_id, end, _ = _SLOT.unpack_from(control, HOT_OFFSET + 8 + _SLOT.size * (turn & 1))
    return seq, segment_id, 8 * end


def begin_append(
    look: Look, rng: random.Random, payloads: tuple[bytes, bytes]
) -> tuple[Look, tuple[Record, ...]]:
    """The directory as it is in the middle of appending the first of two payloads, or both as a batch.

    Also the records that may be there afterwards: of a whole one, that record; of a batch, both.
    """
    control = look.get("CONTROL", (0, b""))[1]
    seq, segment_id, end = slot(control)
    name = next((name for name in look if name.endswith(f"-{segment_id:016x}.seg")), None)
    match = SEGMENT_NAME.fullmatch(name or "")
    in_batch = rng.random() < 0.4
    flags = (_BATCH, _BATCH | _BATCH_END) if in_batch else (0,)
    records = list(zip(flags, payloads, strict=False))
    size = sum(_HEADER.size + (len(payload) + 7 & ~7) for _, payload in records)
    if match is None or name is None or end < SEGMENT_HEADER_SIZE or end + size > len(look[name][1]):
        return look, ()
    file, content = look[name]
    made = bytearray(content)
    at = end
    for index, (flag, payload) in enumerate(records):
        _store(made, at, segment_id, seq + index - int(match[1]), flag, payload)
        at += _HEADER.size + (len(payload) + 7 & ~7)
    stop = size if rng.random() < 0.4 else rng.randrange(size)
    # Payload and header come first, the checksum and the length last; or the kernel has taken only a part of
    # it along.
    made[end + stop : at] = content[end + stop : at]
    if rng.random() < 0.3:
        made[end + 4 : end + 8] = content[end + 4 : end + 8]
    words = bytearray(control)
    struct.pack_into("<Q", words, IN_FLIGHT_OFFSET, at)
    changed = {name: (file, bytes(made)), "CONTROL": (look["CONTROL"][0], bytes(words))}
    batch = -seq - 1 if in_batch else None
    return {**look, **changed}, tuple(Record(payload, batch) for _, payload in records)


def _store(segment: bytearray, at: int, segment_id: int, seq: int, flag: int, payload: bytes) -> None:
    padding = -len(payload) % 8
    length = (_HEADER.size + len(payload) + padding) // 8
    # It makes no claim about what was durable.
    _HEADER.pack_into(segment, at, length, 0, seq, 1, padding | flag, 0xFFFF)
    segment[at + _HEADER.size : at + 8 * length] = payload + bytes(padding)
    seed = segment_id ^ (length | at // 8 << 32)
    checksum = xxhash.xxh3_64_intdigest(segment[at + 8 : at + 8 * length], seed) & 0xFFFFFFFF
    struct.pack_into("<L", segment, at + 4, checksum)
