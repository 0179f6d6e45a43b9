"""An independent reader of hint files in plain Python, written from docs/format-kv.md alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from tests.support.plain_log import Log, Record, Segment, require
from tests.support.plain_reader import change_of

HEADER = struct.Struct("<8sIIII16s9Q")


class Told(NamedTuple):
    """What a hint says of a record."""

    seq: int
    offset: int
    size: int
    deletes: bool
    creates: bool
    previous: int | None
    hash: int


def read_hint(segment: Segment, data: bytes) -> tuple[int, list[Told]]:
    """(seed, what is said of each record) of a hint. AssertionError for what is not as the page says."""
    magic, version, _, _, incompatible, owner, *numbers = HEADER.unpack_from(data)
    segment_id, seed, seq, end, records, runs_size, steps_size, content, checksum = numbers
    require(magic == b"\x93mmaphnt" and version == 1 and incompatible == 0, "no hint of version 1")
    require(checksum == xxh3_64_intdigest(data[:104], segment.id), "the header does not verify")
    require(content == xxh3_64_intdigest(data[112:], segment.id), "the content does not verify")
    require(owner == segment.log_uuid.bytes and segment_id == segment.id, "it is of another segment")
    require((seq, end, records) == segment.footer, "it does not go with the footer")
    at = 112 + 4 * records
    runs = iter(_numbers(data[at : at + runs_size]))
    steps = iter(_numbers(data[at + runs_size : at + runs_size + steps_size]))
    bits = data[at + runs_size + steps_size :]
    require(len(bits) == (records + 7) // 8, "the file has another length")
    found: list[Told] = []
    number, offset = segment.base_seq, 4096
    for head in runs:
        count = next(runs) + 2 if head & 0x10 else 1
        number += next(runs) if head & 0x08 else 0
        for _ in range(count):
            (word,) = struct.unpack_from("<I", data, 112 + 4 * len(found))
            ninth = bits[len(found) // 8] >> len(found) % 8 & 1
            known = word >> 8 << 40 | ninth << 8 | word & 0xFF
            previous = number - next(steps) if head & 0x02 else None
            size = (head >> 5) * 8
            found.append(Told(number, offset, size, bool(head & 0x01), bool(head & 0x04), previous, known))
            number, offset = number + 1, offset + size
    require(len(found) == records and offset == end and next(steps, None) is None, "it does not add up")
    return seed, found


def expected(log: Log, segment: Segment, seed: int) -> list[Told]:
    """What the hint of a segment must say, by its records."""
    found = []
    own = [record for record in log.records if record.segment_id == segment.id]
    ends = [*(record.offset for record in own[1:]), (segment.footer or (0, 0, 0))[1]]
    for record, end in zip(own, ends, strict=True):
        found.append(_told(record, end, seed))
    return found


def _told(record: Record, end: int, seed: int) -> Told:
    change = change_of(record)
    part = xxh3_64_intdigest(change.key, seed) & (0xFFFFFF << 40 | 0x1FF)
    size = end - record.offset
    return Told(record.seq, record.offset, size, change.value is None, change.creates, change.previous, part)


def _numbers(data: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number
            number = shift = 0
    require(shift == 0, "a number is cut off")
