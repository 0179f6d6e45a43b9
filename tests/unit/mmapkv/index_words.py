"""The index of a store, taken apart by hand and put back, to plant what is wrong.

Written from docs/format-kv.md; shares nothing with the code under test but the hash function.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xxhash import xxh3_64_intdigest

from tests.unit.mmaplog.damage import overwrite

STATE, SLOTS, PAGE, LINE = 4096, 8192, 4096, 64
ROOT, CLEAN, COUNTING, INCARNATION, END, SPARE, SLOTS_USED, SEGMENTS = (
    STATE + at for at in (64, 72, 96, 128, 136, 144, 160, 168)
)
SEGMENT_BYTES = 9 * PAGE
BUCKETS = 512


class IndexWords:
    """The words of an index file, by their offsets; `planted` writes them back for a while."""

    def __init__(self, store: Path) -> None:
        self.path = store / "INDEX"
        self.original = self.path.read_bytes()
        self.data = bytearray(self.original)

    def __getitem__(self, at: int) -> int:
        (word,) = struct.unpack_from("<Q", self.data, at)
        return int(word)

    def __setitem__(self, at: int, word: int) -> None:
        struct.pack_into("<Q", self.data, at, word)

    @property
    def seed(self) -> int:
        """The hash seed."""
        return self[40]

    @property
    def count_at(self) -> int:
        """Where the number of keys stands that is current."""
        return STATE + 16 + 16 * (self[STATE] & 1)

    @property
    def depth(self) -> int:
        """Of the directory."""
        return self[ROOT] & 0x7F

    @property
    def directory(self) -> range:
        """The offsets of the directory's words."""
        start = (self[ROOT] >> 8) * PAGE
        return range(start, start + (8 << self.depth), 8)

    @property
    def segments(self) -> list[int]:
        """The offsets of the index segments in use."""
        return sorted({(self[at] >> 32) * PAGE for at in self.directory})

    def chain(self, segment: int, bucket: int) -> list[int]:
        """The offsets of a bucket's lines."""
        lines = [segment + LINE * (1 + bucket)]
        while link := self[lines[-1] + 56]:
            lines.append(segment + LINE * (BUCKETS + link))
        return lines

    def entries(self) -> Iterator[tuple[int, int, int]]:
        """The offset of each index segment, each bucket and each entry that is used."""
        for segment in self.segments:
            for bucket in range(BUCKETS):
                for line in self.chain(segment, bucket):
                    for at in range(line, line + 56, 8):
                        if self[at]:
                            yield segment, bucket, at

    def place_of(self, key: bytes) -> tuple[int, tuple[int, int]]:
        """The tag of a key, and the index segment and bucket that it belongs into."""
        hashed = xxh3_64_intdigest(key, self.seed)
        word = self[self.directory[hashed >> (64 - self.depth)]]
        return hashed << (word & 63) >> 40 & 0xFFFFFF, ((word >> 32) * PAGE, hashed & (BUCKETS - 1))

    @contextmanager
    def planted(self) -> Iterator[None]:
        """What was changed stands in the file while the block runs; then all is as it was, here and there."""
        spans = [
            at
            for at in range(0, len(self.data), PAGE)
            if self.data[at : at + PAGE] != self.original[at : at + PAGE]
        ]
        for at in spans:
            overwrite(self.path, bytes(self.data[at : at + PAGE]), at)
        try:
            yield
        finally:
            for at in spans:
                overwrite(self.path, self.original[at : at + PAGE], at)
            self.data[:] = self.original
