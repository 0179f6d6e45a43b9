"""Keys of a chosen hash, for a store whose seed is known.

XXH3-64 of eight bytes is a one-to-one function, so it can be run backwards. An index can thus be driven into
corners that random keys would need months to reach.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import xxhash

MASK = (1 << 64) - 1
MULTIPLIER = 0x9FB21C651E98DF25
INVERSE = pow(MULTIPLIER, -1, 1 << 64)
SEED_AT = 40
BUCKET_BITS = 9


def seed_of(store: Path) -> int:
    """The hash seed that the store's index has now."""
    (seed,) = struct.unpack_from("<Q", (store / "INDEX").read_bytes(), SEED_AT)
    return int(seed)


class HashInverter:
    """Finds the eight-byte key that has a wanted hash under one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        # The one constant that depends on seed and secret, learnt from a single key.
        probe = bytes(8)
        self.flip = _unmix(xxhash.xxh3_64_intdigest(probe, seed)) ^ _as_input(probe)

    def key(self, wanted: int) -> bytes:
        """The key whose hash is `wanted`."""
        word = _unmix(wanted & MASK) ^ self.flip
        found = struct.pack("<II", word >> 32, word & 0xFFFFFFFF)
        assert xxhash.xxh3_64_intdigest(found, self.seed) == wanted & MASK
        return found

    def keys(self, top: int, top_bits: int, bucket: int, count: int) -> Iterator[bytes]:
        """`count` keys that agree in the highest `top_bits` bits and their bucket, and differ in between."""
        for middle in range(count):
            spread = middle << (64 - top_bits - (count - 1).bit_length())
            yield self.key(top << (64 - top_bits) | spread | bucket)

    def twins(self, top: int, top_bits: int, bucket: int, count: int) -> Iterator[bytes]:
        """The same, differing only in the bits right above the bucket: no directory parts them."""
        for middle in range(count):
            yield self.key(top << (64 - top_bits) | middle << BUCKET_BITS | bucket)


def _as_input(key: bytes) -> int:
    low, high = struct.unpack("<II", key)
    return int(high | low << 32)


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & MASK


def _unmix(word: int) -> int:
    # The last step of the hash, backwards.
    word ^= word >> 28 ^ word >> 56
    word = word * INVERSE & MASK
    word ^= (word >> 35) + 8
    word = word * INVERSE & MASK
    # x ^ rotl(x, 49) ^ rotl(x, 24) has itself as inverse, 63 times over.
    for _ in range(63):
        word ^= _rotate(word, 49) ^ _rotate(word, 24)
    return word
