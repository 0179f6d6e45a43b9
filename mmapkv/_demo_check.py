"""What the demo compares: the store against what was put into it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from mmapio import MmapIoError
from mmapkv._demo_crash import Kill
from mmapkv._demo_files import Loaded
from mmapkv._demo_report import AfterKill, Findings
from mmapkv.store import KVStore
from mmaplog._command import named
from mmaplog._progress import Bar

__all__ = ["check_after_kill", "check_first_load"]


def check_first_load(kv: KVStore, loaded: Loaded, bar: Bar) -> tuple[Findings, float]:
    """Read every key of `loaded` and compare. Returns what differs, and the seconds spent in gets."""
    different = Findings()
    seconds = 0.0
    for key in loaded:
        started = time.perf_counter()
        value, problem = _get(kv, key)
        seconds += time.perf_counter() - started
        if value is not None:
            problem = loaded.difference(key, value)
        if problem is not None:
            different.add(f"{named(key)}: {problem}")
        bar.advance()
    return different, seconds


def check_after_kill(kv: KVStore, loaded: Loaded, kills: Sequence[Kill], bar: Bar) -> AfterKill:
    """Compare the second load with what its children acknowledged.

    Lost is an acknowledged write that is absent or differs in a byte. Invented is a key that nobody
    submitted, and the write in flight when it is neither absent nor complete.
    """
    result = AfterKill()
    submitted = set(loaded)
    for kill in kills:
        for index in range(kill.acknowledged):
            key = kill.load.key(index)
            submitted.add(key)
            problem = _second_difference(kv, kill, index, loaded)
            if problem is not None:
                result.lost.add(f"{named(key)}: {problem}")
            bar.advance()
        if kill.acknowledged < len(kill.load):
            submitted.add(kill.load.key(kill.acknowledged))
            _check_in_flight(kv, kill, loaded, result)
        result.submitted += len(kill.load)
        result.acknowledged += kill.acknowledged
    _check_keys(kv, submitted, result)
    return result


def _check_in_flight(kv: KVStore, kill: Kill, loaded: Loaded, result: AfterKill) -> None:
    key = kill.load.key(kill.acknowledged)
    if key not in kv:
        return
    result.in_flight = "complete"
    problem = _second_difference(kv, kill, kill.acknowledged, loaded)
    if problem is not None:
        result.in_flight = "damaged"
        result.invented.add(f"{named(key)}: in flight at the kill, {problem}")


def _check_keys(kv: KVStore, submitted: set[bytes], result: AfterKill) -> None:
    count = 0
    for key in kv:
        count += 1
        if key not in submitted:
            result.invented.add(f"{named(key)}: was never submitted")
    if len(kv) != count:
        result.invented.add(f"the store says it has {len(kv):,} keys, and iterating gives {count:,}")


def _second_difference(kv: KVStore, kill: Kill, index: int, loaded: Loaded) -> str | None:
    value, problem = _get(kv, kill.load.key(index))
    if value is None:
        return problem
    stamp = kill.load.stamp(index)
    if not value.startswith(stamp):
        return f"begins with {value[: len(stamp)]!r} instead of its own key"
    return loaded.difference(kill.load.source(index), value[len(stamp) :])


def _get(kv: KVStore, key: bytes) -> tuple[bytes | None, str | None]:
    """The value of `key`, or why there is none; a store that refuses one key is asked for the next."""
    try:
        return kv[key], None
    except KeyError:
        return None, "is absent"
    except MmapIoError as error:
        return None, f"cannot be read: {error}"
