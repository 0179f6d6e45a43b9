# cython: language_level=3, auto_pickle=False
"""The on-disk format of a log: sizes pinned at import, and the one reader of a record."""

import sys

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from mmaplog.checksum cimport xxh3

if sys.byteorder != "little":
    raise ImportError("logs are little-endian and mapped as they are; this machine is big-endian and not supported")

assert sizeof(SegmentHeader) == 96 <= MARK_OFFSET
assert sizeof(DurableMark) == 24 <= SECTOR
assert sizeof(Footer) == 48 <= SECTOR
assert FOOTER_OFFSET == MARK_OFFSET + COPIES * SECTOR
assert FOOTER_OFFSET + COPIES * SECTOR <= SEGMENT_HEADER_SIZE
assert sizeof(RecordHeader) == RECORD_HEADER_SIZE
assert sizeof(ControlIdentity) == 104 <= CONTROL_HOT_OFFSET
assert sizeof(CommitSlot) == 24
assert sizeof(ControlHot) == 192

cdef uint64_t SEGMENT_MAGIC = int.from_bytes(b"\x93mmaplog", "little")
cdef uint64_t CONTROL_MAGIC = int.from_bytes(b"\x93mmapctl", "little")
# Room for a payload of 4 GiB - 1 MiB and for what an upper layer puts before it.
cdef uint64_t RECORD_SIZE_MAX = (4 << 30) - (512 << 10)


cdef uint64_t seed_of(uint64_t segment_id, uint64_t offset, uint32_t length) noexcept nogil:
    # The position is part of what is sealed: a record copied elsewhere, even within its segment, does not verify.
    return segment_id ^ (length | (offset // UNIT) << 32)


cdef uint32_t checksum_of(const char *record, uint64_t segment_id, uint64_t offset, uint32_t length) noexcept nogil:
    return <uint32_t>xxh3(record + 8, <uint64_t>length * UNIT - 8, seed_of(segment_id, offset, length))


cdef Found read_record(
    const char *base, uint64_t offset, uint64_t limit, uint64_t segment_id, uint64_t base_seq, bint verify,
    Record *out) noexcept nogil:
    # Reads the record at `offset` of a segment mapped at `base`, nothing at or beyond `limit`. The header is
    # loaded once, so that another process that rewrites it cannot pass a check with one value and use another.
    cdef RecordHeader header
    cdef uint64_t head = RECORD_HEADER_SIZE, size
    if offset > limit or limit - offset < RECORD_HEADER_SIZE:
        return NOTHING
    memcpy(&header, base + offset, sizeof(header))
    if header.length == 0:
        return NOTHING
    size = <uint64_t>header.length * UNIT
    if size > limit - offset:
        return BROKEN
    if header.flags & FLAG_TIME:
        head += TIME_SIZE
    if size < head + (header.flags & FLAG_PAD):
        return BROKEN
    if verify and checksum_of(base + offset, segment_id, offset, header.length) != header.checksum:
        return BROKEN
    if header.type != TYPE_DATA or header.flags & ~<uint32_t>FLAG_KNOWN:
        return UNKNOWN
    out.seq = base_seq + header.seq
    out.size = size
    out.flags = header.flags
    out.payload = base + offset + head
    out.payload_size = size - head - (header.flags & FLAG_PAD)
    out.durable = out.seq - header.lag if header.lag != LAG_UNKNOWN and header.lag <= out.seq else 0
    out.time = 0
    if header.flags & FLAG_TIME:
        memcpy(&out.time, base + offset + RECORD_HEADER_SIZE, sizeof(out.time))
    return RECORD
