"""Segment files taken apart and put together by hand, to make damaged logs.

Written from docs/format-log.md; shares nothing with the code under test but the checksum's package.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

HEADER = struct.Struct("<QIIII16sQQQQIIQQ")
HEADER_SIZE = 4096
MARK_OFFSETS = (512, 1024)
FOOTER_OFFSETS = (1536, 2048)
RECORD = struct.Struct("<IIIBBH")
NO_CLAIM = 0xFFFF
TYPE_DATA = 1
FLAG_TIME = 0x08
# Places of fields in the header.
VERSION_AT, INCOMPATIBLE_AT, CHECKSUM_AT = 8, 20, 88


@dataclass(frozen=True)
class Found:
    """One record as it lies in a file."""

    offset: int
    size: int
    seq: int
    payload: bytes
    lag: int


class SegmentFile:
    """The bytes of one segment; `save` writes them back in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = bytearray(path.read_bytes())
        fields = HEADER.unpack_from(self.data)
        self.log_uuid, self.segment_id, self.base_seq = fields[5], fields[6], fields[7]

    def save(self, path: Path | None = None) -> None:
        """Write the bytes to where they came from, or elsewhere, into the same inode if there is one."""
        target = path or self.path
        with target.open("r+b" if target.exists() else "wb") as file:
            file.truncate(len(self.data))
            file.write(self.data)

    def records(self) -> Iterator[Found]:
        """The records from the first to where none follows."""
        offset = HEADER_SIZE
        while offset + RECORD.size <= len(self.data):
            length, checksum, number, _, flags, lag = RECORD.unpack_from(self.data, offset)
            size = length * 8
            if not length or offset + size > len(self.data) or self.checksum(offset, size) != checksum:
                return
            head = RECORD.size + (8 if flags & FLAG_TIME else 0)
            payload = bytes(self.data[offset + head : offset + size - (flags & 7)])
            yield Found(offset, size, self.base_seq + number, payload, lag)
            offset += size

    def end(self) -> int:
        """The offset after the last record."""
        found = list(self.records())
        return found[-1].offset + found[-1].size if found else HEADER_SIZE

    def checksum(self, offset: int, size: int) -> int:
        """What seals the record of `size` bytes at `offset`."""
        seed = self.segment_id ^ (size // 8 | offset // 8 << 32)
        return xxhash.xxh3_64_intdigest(bytes(self.data[offset + 8 : offset + size]), seed) & 0xFFFFFFFF

    def put_record(
        self,
        offset: int,
        seq: int,
        payload: bytes,
        *,
        lag: int = NO_CLAIM,
        kind: int = TYPE_DATA,
        flags: int = 0,
    ) -> int:
        """Write a valid record at `offset` and return where it ends."""
        size = (RECORD.size + len(payload) + 7) // 8 * 8
        pad = size - RECORD.size - len(payload)
        # A writer at work has room there.
        self.data.extend(bytes(max(offset + size - len(self.data), 0)))
        self.data[offset : offset + size] = (
            RECORD.pack(size // 8, 0, seq - self.base_seq, kind, pad | flags, lag) + payload + bytes(pad)
        )
        self.reseal(offset)
        return offset + size

    def reseal(self, offset: int) -> None:
        """Make the checksum of the record at `offset` right again."""
        (length,) = struct.unpack_from("<I", self.data, offset)
        struct.pack_into("<I", self.data, offset + 4, self.checksum(offset, length * 8))

    def patch_header(self, offset: int, form: str, value: object) -> None:
        """Change a field of the segment's header and make its checksum right again."""
        struct.pack_into(form, self.data, offset, value)
        digest = xxhash.xxh3_64_intdigest(bytes(self.data[:CHECKSUM_AT]), 0)
        struct.pack_into("<Q", self.data, CHECKSUM_AT, digest)

    def reseal_footer(self, seq: int) -> None:
        """Have both copies of the footer say that the record `seq` follows, with the right checksums."""
        for offset in FOOTER_OFFSETS:
            struct.pack_into("<Q", self.data, offset, seq)
            digest = xxhash.xxh3_64_intdigest(bytes(self.data[offset : offset + 40]), self.segment_id)
            struct.pack_into("<Q", self.data, offset + 40, digest)

    def drop_mark(self) -> None:
        """Take the durable mark and the footer away, as if the log had never been closed."""
        for offset in (*MARK_OFFSETS, *FOOTER_OFFSETS):
            self.data[offset : offset + 512] = bytes(512)


def segment_paths(directory: Path) -> list[Path]:
    """The segments of a log in order of their records."""
    return sorted(directory.glob("*.seg"))


def segment_files(directory: Path) -> list[SegmentFile]:
    """The same, read."""
    return [SegmentFile(path) for path in segment_paths(directory)]


def payloads_on_disk(directory: Path) -> list[bytes]:
    """Every record that the files hold, read by hand."""
    return [record.payload for segment in segment_files(directory) for record in segment.records()]
