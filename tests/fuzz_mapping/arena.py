"""The file that is fuzzed, and the handles that all threads share."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

from mmapio import PAGE_SIZE, FlushPolicy, MemoryMappedFile

HEADER = PAGE_SIZE
"""Bytes that all threads write: two words to add to, a mutex, and the number that it guards."""

COUNTER, SMALL_COUNTER, MUTEX, GUARDED = 0, 8, 128, 512

LANE = 80 * PAGE_SIZE
"""Bytes of a thread, which no other writes and nobody cuts; enough for copies that run without the GIL."""

ANNEX_MAX = 64 * PAGE_SIZE
"""Bytes behind the lanes that come and go."""

POLICIES = (
    FlushPolicy.MANUAL,
    FlushPolicy.NEVER,
    FlushPolicy.NEVER,
    FlushPolicy.every_bytes(1 << 20),
    FlushPolicy.every_writes(5000),
    FlushPolicy.every_millis(20),
)


class Handle(MemoryMappedFile):
    """One that can be part of a cycle: it has attributes."""

    keeps: Any = None


class Arena:
    """A header, a lane for each thread, and an annex."""

    def __init__(self, directory: Path, threads: int) -> None:
        self.path = directory / "file"
        self.lanes_end = HEADER + threads * LANE
        self.base = Handle.create_rw(self.path, self.lanes_end, reserve=1)
        """Never closed, and used for nothing that can fault."""
        self.descriptor = os.open(self.path, os.O_RDWR)
        chance = random.Random(0)
        self.handles = [self.opened(chance) for _ in range(6)]
        self.lock = threading.Lock()

    def close(self) -> None:
        """And everything that is open."""
        for handle in [*self.handles, self.base]:
            handle.refresh()
            handle.close()
        os.close(self.descriptor)

    def lane(self, number: int) -> int:
        """Where a thread's bytes begin."""
        return HEADER + number * LANE

    def opened(self, chance: random.Random) -> Handle:
        """Another handle."""
        reserve = chance.choice((1, self.lanes_end + 8 * PAGE_SIZE, 1 << 30))
        if chance.random() < 0.3:
            return Handle.open_ro(self.path, reserve=reserve)
        return Handle.open_rw(self.path, reserve=reserve, flush_policy=chance.choice(POLICIES))

    def read(self, offset: int, count: int) -> bytes:
        """What the file holds, past all mappings."""
        return os.pread(self.descriptor, count, offset)

    def replace(self, chance: random.Random) -> None:
        """Close a handle, whoever is using it, and open another in its place."""
        fresh = self.opened(chance)
        slot = chance.randrange(len(self.handles))
        with self.lock:
            old, self.handles[slot] = self.handles[slot], fresh
        old.close()
