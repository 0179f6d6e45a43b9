"""Random changes to a store, the same for the same seed, and a process that makes them until it is killed.

Run as a program, `changes.py PATH SEED`, it opens the store and writes one byte to standard output after each
change that was acknowledged.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator, MutableMapping

import mmapkv

KEYS = 150
SEGMENT_BYTES = 64 << 10

Change = tuple[bytes, bytes | None]


def changes(seed: int) -> Iterator[Change]:
    """Pairs of a key and its new value, None for a deletion; endless. Every twelfth value is large."""
    rng = random.Random(seed)
    while True:
        key = b"key-%d" % rng.randrange(KEYS)
        size = rng.choice((0, 1, 2, 7, 8, 9, 15, 16, 17, 100, 1000, rng.randrange(100_000)))
        yield key * rng.choice((1, 1, 20)), None if rng.random() < 0.2 else rng.randbytes(size)


def apply(store: MutableMapping[bytes, bytes], change: Change) -> None:
    """Make one change; deleting what is absent changes nothing."""
    key, value = change
    if value is None:
        store.pop(key, None)
    else:
        # A key that is set again goes to the end, as in the order of a log.
        if isinstance(store, dict):
            store.pop(key, None)
        store[key] = value


def _main(path: str, seed: int) -> None:
    store = mmapkv.KVStore.open(path, segment_bytes=SEGMENT_BYTES, flush_policy=mmapkv.FlushPolicy.MANUAL)
    for change in changes(seed):
        apply(store, change)
        os.write(sys.stdout.fileno(), b".")


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
