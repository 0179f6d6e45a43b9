"""Making stores to test, and reading them by the public means."""

from __future__ import annotations

import struct
from pathlib import Path

from mmapio import FlushPolicy
from mmapkv import KVStore

MANUAL = FlushPolicy.MANUAL
NEVER = FlushPolicy.NEVER
SEGMENT = 64 << 10


def opened(path: Path, mode: str = "c", policy: FlushPolicy = MANUAL) -> KVStore:
    """A store of small segments that starts no thread: the process may fork, and nothing goes unasked."""
    return KVStore.open(path, mode, flush_policy=policy, segment_bytes=SEGMENT, compaction=False)


def contents(path: Path, mode: str = "r") -> dict[bytes, bytes]:
    """What the store holds, read in every way there is; they must agree."""
    with opened(path, mode) as kv:
        return agreeing(kv)


def agreeing(kv: KVStore) -> dict[bytes, bytes]:
    """The items of an open store, checked against look-ups, counts and the other views."""
    items = list(kv.items())
    found = dict(items)
    assert len(found) == len(items) == len(kv)
    assert list(kv) == list(kv.keys()) == [key for key, _ in items]
    assert list(kv.values()) == [value for _, value in items]
    for key, value in items:
        assert kv[key] == value
        assert key in kv
    return found


def lose(path: Path, *names: str) -> Path:
    """Take files away from a closed store."""
    for name in names:
        (path / name).unlink()
    return path


def dead_bytes(path: Path) -> dict[int, int]:
    """What the index of a closed store counts as superfluous, by segment."""
    data = (path / "INDEX").read_bytes()
    (used,) = struct.unpack_from("<Q", data, 4096 + 160)
    slots = struct.unpack_from(f"<{used}Q", data, 8192)
    dead = struct.unpack_from(f"<{used}I", data, 139264)
    return {key: units for key, units in zip(slots, dead, strict=True) if key}
