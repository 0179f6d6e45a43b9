"""`python -m benchmarks.bench_cache`: how often a cache has what is asked for, and what it costs to ask.

The keys of a trace are drawn from a Zipf distribution; with `--scan` every eighth request is for the next of
an endless row of keys that come once. Each cache gets the same trace and the same number of bytes, and puts
what it did not have. With `--costs` it prints what a put of a new key into a full cache and a get take, and
the same of a store that is none.
"""

from __future__ import annotations

import argparse
import functools
import random
import shutil
import statistics
import tempfile
import time
from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from mmapkv import FlushPolicy, KVStore


class Cache(Protocol):
    """As far as the benchmark goes."""

    def get(self, key: bytes) -> bytes | None: ...
    def __setitem__(self, key: bytes, value: bytes, /) -> None: ...


class ExactLru:
    """The least recently used goes, by the bytes of keys and values, in memory."""

    def __init__(self, max_bytes: int) -> None:
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._left = max_bytes

    def get(self, key: bytes) -> bytes | None:
        """The value, which was used last then."""
        value = self._kept.get(key)
        if value is not None:
            self._kept.move_to_end(key)
        return value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._kept[key] = value
        self._left -= len(key) + len(value)
        while self._left < 0:
            self._left += sum(map(len, self._kept.popitem(last=False)))


class Memoised:
    """`functools.lru_cache`, which counts entries, whatever their size, and calls what makes a value."""

    def __init__(self, entries: int, value: bytes) -> None:
        self._missed = False

        @functools.lru_cache(entries)
        def made(_: bytes) -> bytes:
            self._missed = True
            return value

        self._made = made

    def get(self, key: bytes) -> bytes | None:
        """The value, or None where it had to be made."""
        self._missed = False
        value = self._made(key)
        return None if self._missed else value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """It is there by now."""


def trace(requests: int, keys: int, skew: float, scan: bool, seed: int) -> list[bytes]:
    """The keys that are asked for, in their order."""
    chance = random.Random(seed)
    sums = list(accumulate(1 / rank**skew for rank in range(1, keys + 1)))
    names = [b"key-%012d" % number for number in range(keys)]
    chance.shuffle(names)
    drawn = [names[bisect(sums, chance.random() * sums[-1])] for _ in range(requests)]
    if scan:
        drawn[::8] = [b"one-%012d" % number for number in range(len(drawn[::8]))]
    return drawn


def replay(cache: Cache, asked: Sequence[bytes], value: bytes) -> tuple[float, float]:
    """The share of requests that found something, once a third have gone by, and microseconds each."""
    hits, warm = 0, len(asked) // 3
    begun = time.perf_counter()
    for at, key in enumerate(asked):
        if cache.get(key) is None:
            cache[key] = value
        else:
            hits += at >= warm
    return hits / (len(asked) - warm), (time.perf_counter() - begun) / len(asked) * 1e6


def costs(bound: int, value: bytes, directory: Path, *, diskcache: bool) -> None:
    """Print microseconds for a put of a new key where there is no more room, and for a get."""
    entries = bound // (len(value) + 48)
    count = min(max(entries, 20_000), 100_000)
    names = [b"key-%012d" % number for number in range(entries * 3 // 2 + count)]
    makers: dict[str, Callable[[Path], Cache]] = {
        "mmapkv, clock": lambda path: _store(path, bound, "clock"),
        "mmapkv, no bound": lambda path: KVStore.open(path, flush_policy=FlushPolicy.MANUAL),
        "exact LRU": lambda _: ExactLru(bound),
    }
    if diskcache:
        makers["diskcache, LRU"] = lambda path: _diskcache(path, bound)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
    for turn in range(3):
        for name, make in makers.items():
            slow = name.startswith("diskcache")
            if slow and turn:
                continue
            cache = make(directory / f"{turn}-{name}")
            new = names[-count // 20 :] if slow else names[-count:]
            for key in names[-len(new) - entries * 3 // 2 : -len(new)]:
                cache[key] = value
            begun = time.perf_counter()
            for key in new:
                cache[key] = value
            put = time.perf_counter() - begun
            asked = new[-min(len(new), entries // 2) :]
            random.Random(turn).shuffle(asked)
            begun = time.perf_counter()
            for key in asked:
                cache.get(key)
            found[name].append((put / len(new) * 1e6, (time.perf_counter() - begun) / len(asked) * 1e6))
            if isinstance(cache, KVStore):
                cache.close()
    for name, each in found.items():
        put, get = (statistics.median(column) for column in zip(*each, strict=True))
        print(f"{bound >> 20:5} MiB  {name:18} put {put:8.2f} us  get {get:8.2f} us")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each cache."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=300_000)
    parser.add_argument("--keys", type=int, default=50_000)
    parser.add_argument("--value-bytes", type=int, default=400)
    parser.add_argument("--skew", type=float, default=0.9, help="of the Zipf distribution; 0.9 by default")
    parser.add_argument(
        "--part", type=float, default=0.1, help="of all the bytes a cache may have; 0.1 by default"
    )
    parser.add_argument("--scan", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-diskcache", action="store_true", help="it is slow")
    parser.add_argument("--costs", type=int, nargs="+", metavar="MIB", help="of a put and a get, by size")
    options = parser.parse_args(arguments)
    if options.costs:
        place = Path(tempfile.mkdtemp(prefix="bench-cache-"))
        try:
            for size in options.costs:
                content = random.Random(options.seed).randbytes(options.value_bytes)
                costs(size << 20, content, place, diskcache=not options.without_diskcache)
        finally:
            shutil.rmtree(place)
        return 0
    asked = trace(options.requests, options.keys, options.skew, options.scan, options.seed)
    value = random.Random(options.seed).randbytes(options.value_bytes)
    bound = int(options.keys * options.part * (options.value_bytes + len(asked[0])))
    # What the format adds to a record is no reason to compare with less.
    record = (16 + 8 + 16 + len(asked[0]) + 7) // 8 * 8 + (options.value_bytes + 7) // 8 * 8
    ours = int(options.keys * options.part * record)
    directory = Path(tempfile.mkdtemp(prefix="bench-cache-"))
    caches: dict[str, Callable[[], Cache]] = {
        "mmapkv, clock": lambda: _store(directory / "clock", ours, "clock"),
        "mmapkv, fifo": lambda: _store(directory / "fifo", ours, "fifo"),
        "exact LRU": lambda: ExactLru(bound),
        "lru_cache": lambda: Memoised(int(options.keys * options.part), value),
    }
    if not options.without_diskcache:
        caches["diskcache, LRU"] = lambda: _diskcache(directory / "diskcache", ours)
    try:
        print(f"{options.requests} requests for {options.keys} keys, {options.part:.0%} of the bytes fit")
        for name, make in caches.items():
            found, cost_us = replay(make(), asked, value)
            print(f"{name:16} {found:7.1%} found  {cost_us:8.2f} us a request")
    finally:
        shutil.rmtree(directory)
    return 0


def _store(path: Path, bound: int, eviction: str) -> KVStore:
    return KVStore.open(
        path,
        flush_policy=FlushPolicy.MANUAL,
        max_bytes=bound,
        eviction=eviction,  # type: ignore[arg-type]
    )


def _diskcache(path: Path, bound: int) -> Cache:
    # It counts the pages of its database, as the bound of a store counts what the format adds.
    from diskcache import Cache as Diskcache  # type: ignore[import-untyped, unused-ignore]

    made: Cache = Diskcache(
        str(path), size_limit=bound, eviction_policy="least-recently-used", sqlite_synchronous=0
    )
    return made


if __name__ == "__main__":
    raise SystemExit(main())
