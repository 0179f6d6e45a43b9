"""Keys with a wanted hash: XXH3-64 of eight bytes under a known seed, computed backwards.

For inputs of eight bytes XXH3 is a bijection: the input, its halves exchanged, is combined with a number
that depends on the seed alone, then mixed by steps that can each be undone. One hash gives that number away.
Algorithm: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, "XXH3_64bits, 4-8 bytes".
"""

from __future__ import annotations

import struct

from xxhash import xxh3_64_intdigest

_ALL = (1 << 64) - 1
_FACTOR = 0x9FB21C651E98DF25
_INVERSE = pow(_FACTOR, -1, 1 << 64)
_LENGTH = 8


def key_with_hash(wanted: int, seed: int) -> bytes:
    """The key of eight bytes whose hash under `seed` is `wanted`.

    >>> from xxhash import xxh3_64_intdigest
    >>> hex(xxh3_64_intdigest(key_with_hash(0x123456789ABCDEF0, 42), 42))
    '0x123456789abcdef0'
    """
    return _joined(_unmixed(wanted) ^ _unmixed(xxh3_64_intdigest(bytes(_LENGTH), seed)))


def _joined(combined: int) -> bytes:
    # The first four bytes are the upper half of the combined number.
    return struct.pack("<II", combined >> 32, combined & 0xFFFFFFFF)


def _unmixed(value: int) -> int:
    value ^= value >> 28 ^ value >> 56
    value = value * _INVERSE & _ALL
    value ^= (value >> 35) + _LENGTH
    value = value * _INVERSE & _ALL
    # The first step is its own inverse when it is done 64 times: all rotations but none cancel out.
    for _ in range(63):
        value ^= _rotated(value, 49) ^ _rotated(value, 24)
    return value


def _rotated(value: int, count: int) -> int:
    return (value << count | value >> (64 - count)) & _ALL
