"""Views and their files collected in one cycle, in whatever order the collector chooses."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from mmapio import MemoryMappedFile, SharedMutex

VIEWS: dict[str, Callable[[MemoryMappedFile], object]] = {
    "as_slice": lambda mapped: mapped.as_slice(),
    "as_slice_mut": lambda mapped: mapped.as_slice_mut(),
    "memoryview": lambda mapped: memoryview(mapped.as_slice_mut()),
    "chunks": lambda mapped: mapped.chunks(1),
    "atomic": lambda mapped: mapped.atomic_u64(0),
    "atomic slice": lambda mapped: mapped.atomic_u32_slice(0, 4),
    "mutex": lambda mapped: SharedMutex(mapped, 1024),
}


class Owner(MemoryMappedFile):
    """A file with attributes, which can refer back to it."""

    views: list[object]


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS.keys())
def test_a_cycle_of_a_file_and_its_views_is_collected(
    tmp_path: Path, make: Callable[[MemoryMappedFile], object]
) -> None:
    """A view that outlives its region by one step of the collector took itself off a list in freed memory."""
    freed = []
    for number in range(20):
        mapped = Owner.create_rw(tmp_path / f"file{number}", 4096)
        mapped.views = [make(mapped), make(mapped), lambda file=mapped: file]
        freed.append(mapped.address)
        del mapped
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    assert [address for address in freed if f"{address:x}-" in maps] == []
