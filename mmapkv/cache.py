"""A store as a cache: what `max_bytes` and `eviction` of ``KVStore.open`` may be, and what comes of it."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Literal, SupportsIndex

from mmapkv import marks
from mmapkv.eviction import Eviction
from mmapkv.remover import Remover

if TYPE_CHECKING:
    from mmapkv.store import KVStore

#: A cache is evicted by the piece; below this there would be too few of them.
MAX_BYTES_LEAST = 256 << 10
#: More an index cannot lead to: 16,384 segments of a gibibyte.
MAX_BYTES_MOST = 1 << 44
#: The log's files are so small a part of it: what was evicted goes file by file.
SEGMENT_PART = 16
SEGMENT_BYTES_LEAST = 1 << 20


def checked_bound(max_bytes: SupportsIndex | None, eviction: str | None, mode: str, *, shared: bool) -> int:
    """The bound of a cache in bytes, 0 for None. ValueError for what is none, or nothing to a reader."""
    if eviction not in (None, "clock", "fifo"):
        raise ValueError(f'eviction is "clock" or "fifo", not {eviction!r}')
    if max_bytes is None:
        if eviction is not None:
            raise ValueError(
                f"eviction={eviction!r} goes with max_bytes=: a store without a bound evicts nothing"
            )
        return 0
    bound = operator.index(max_bytes)
    if not MAX_BYTES_LEAST <= bound <= MAX_BYTES_MOST:
        raise ValueError(f"a cache has max_bytes={MAX_BYTES_LEAST} to {MAX_BYTES_MOST}, not {bound}")
    if mode == "r":
        raise ValueError("max_bytes is for who writes; a reader evicts nothing")
    if shared:
        raise ValueError("a cache has one writer; open it with max_bytes= or with shared=True, not with both")
    return bound


def segment_bytes_of(bound: int, segment_bytes: SupportsIndex) -> int:
    """How large the files of a log may grow, that of a cache if `bound` is not 0."""
    wanted = operator.index(segment_bytes)
    return min(wanted, max(bound // SEGMENT_PART, SEGMENT_BYTES_LEAST)) if bound else wanted


def begin(store: KVStore, bound: int, eviction: Literal["clock", "fifo"] | None) -> Eviction | None:
    """Make a store that was just opened a cache, if `bound` is not 0; by the clock, unless told otherwise."""
    if not bound:
        found = marks.find(store._log)
        if found is not None:
            store._count(found)
        return None
    store._remover = Remover(store)
    store._count(marks.provide(store._log, bound) if eviction != "fifo" else None)
    store._bind(bound)
    return Eviction(store._remover, bound, eviction or "clock")
