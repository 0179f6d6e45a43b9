"""``mmapkv bench``: a quick look at what this machine makes of a store."""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mmapio.options import FlushPolicy
from mmapkv.store import KVStore
from mmaplog._command import UsageError, named, positive_number
from mmaplog._progress import Meter

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["register"]

DESCRIPTION = """\
Make a temporary store below DIR, measure it, and remove it: putting keys of 16 bytes with values of a size,
looking all of them up in another order, looking up what is absent, walking over all, putting some so that
each is on the device before the next, and opening again. One run on a machine that may be busy: for figures
to compare with, use the project's benchmarks.
"""

DURABLE_SECONDS = 1.0
DURABLE_MAX = 1000


def bench(arguments: argparse.Namespace) -> int:
    """Measure, and show nanoseconds for each operation and operations in a second."""
    try:
        with tempfile.TemporaryDirectory(prefix="mmapkv-bench-", dir=arguments.directory) as place:
            figures = _measure(str(Path(place) / "store"), arguments.keys, arguments.value_bytes)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"cannot make a store below {named(arguments.directory or '.')}: {error}") from None
    if arguments.json:
        shape = {"keys": arguments.keys, "value_bytes": arguments.value_bytes}
        print(json.dumps({**shape, "nanoseconds": figures}))
        return 0
    print(f"{arguments.keys:,} keys of 16 bytes, values of {arguments.value_bytes:,} bytes")
    for name, ns in figures.items():
        print(f"{name:<12} {ns:>12,.0f} ns {1e9 / ns:>14,.0f} in a second")
    return 0


def _measure(path: str, count: int, value_bytes: int) -> dict[str, float]:
    # Nanoseconds for one of each.
    keys = [b"%016d" % number for number in range(count)]
    shuffled = random.sample(keys, count)
    absent = [b"-%015d" % number for number in range(count)]
    value = bytes(value_bytes)
    figures: dict[str, float] = {}

    with Meter("bench", "steps") as meter:

        def measure(name: str, work: Callable[[], int]) -> None:
            meter(len(figures), 6)
            started = time.perf_counter_ns()
            done = work()
            figures[name] = (time.perf_counter_ns() - started) / max(done, 1)

        kv = KVStore.open(path, "n", flush_policy=FlushPolicy.MANUAL)
        measure("put", lambda: _put(kv, keys, value))
        measure("get", lambda: _get(kv, shuffled))
        measure("get absent", lambda: _get(kv, absent))
        measure("scan", lambda: len(list(kv.items())))
        measure("durable put", lambda: _put_durably(kv, value))
        kv.close()

        def reopen() -> int:
            KVStore.open(path, "r").close()
            return 1

        measure("open", reopen)
        meter(6, 6)
    return figures


def _put(kv: KVStore, keys: list[bytes], value: bytes) -> int:
    for key in keys:
        kv[key] = value
    return len(keys)


def _get(kv: KVStore, keys: list[bytes]) -> int:
    for key in keys:
        kv.get(key)
    return len(keys)


def _put_durably(kv: KVStore, value: bytes) -> int:
    started = time.perf_counter()
    done = 0
    while done < DURABLE_MAX and time.perf_counter() - started < DURABLE_SECONDS:
        kv.put(b"durable %08d" % done, value, durable=True)
        done += 1
    return done


def register(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``bench`` to the commands."""
    parser = commands.add_parser(
        "bench", help="measure a store on this machine, for a few seconds", description=DESCRIPTION
    )
    parser.add_argument("directory", metavar="DIR", nargs="?", help="where; the system's when left out")
    parser.add_argument(
        "--keys", type=positive_number, default=100_000, metavar="N", help="how many (%(default)s)"
    )
    parser.add_argument(
        "--value-bytes", type=positive_number, default=100, metavar="N", help="of each value (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object")
    parser.set_defaults(run=bench)
