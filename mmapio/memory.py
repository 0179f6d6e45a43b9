"""The pages below a mapped file: advice, locking, prefaulting, residency, holes, huge pages."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, SupportsIndex

from mmapio import _os, _vm
from mmapio.errors import AdviceFailed, InvalidMode, MappingFault, Unsupported
from mmapio.mapping import MappedFile
from mmapio.options import MmapAdvice, MmapMode

if TYPE_CHECKING:
    from mmapio.region import Region

__all__ = ["HugePages"]

THREADS_MAX = 4
"""Threads that bring pages in; memory has no bandwidth for more."""

PART_MIN = 64 << 20
"""The fewest bytes that are worth a thread of their own."""

HUGE = 2 << 20
"""Parts begin at multiples of this from where the range begins."""


class HugePages(enum.Enum):
    """How far a mapping got with huge pages, which save the processor look-ups of addresses."""

    HUGETLB = "hugetlb"
    """The file lies on hugetlbfs: every page is huge."""
    MAPPED = "mapped"
    """The kernel has mapped at least one huge page."""
    ADVISED = "advised"
    """The kernel was asked, agreed, and has not mapped one yet:

    none was touched, or the file system has none to give.
    """
    NONE = "none"
    """Ordinary pages, and no promise of others."""


def advise(file: MappedFile, offset: SupportsIndex, length: SupportsIndex | None, advice: MmapAdvice) -> None:
    """See `MemoryMappedFile.advise`."""
    advice = MmapAdvice(advice)
    start, count = file._locate(offset, length)
    if not _vm.ADVICE_SUPPORTED[advice]:
        raise Unsupported(errno.ENOTSUP, f"this platform has no advice {advice.name}", file.path)
    writing = advice is MmapAdvice.POPULATE_WRITE
    if writing and file.mode is MmapMode.READ_ONLY:
        raise InvalidMode(errno.EACCES, "pages of a read-only mapping cannot be made writable", file.path)
    if advice is MmapAdvice.DONT_NEED and file.mode is MmapMode.COPY_ON_WRITE:
        raise InvalidMode(
            errno.EINVAL, "DONT_NEED would discard what was written to a private copy", file.path
        )
    if count == 0:
        return
    with _marking(file):
        for region in file._regions()[: 1 if writing else None]:
            region.advise(start, count, advice, advice.name)


def prefetch(file: MappedFile, offset: SupportsIndex, length: SupportsIndex) -> None:
    """See `MemoryMappedFile.prefetch_range`."""
    start, count = file._locate(offset, length)
    if count == 0:
        return
    try:
        _os.prefetch(file._descriptor(), start, count)
    except OSError as error:
        text = f"cannot prefetch {count} bytes at offset {start}: {error.strerror}"
        raise AdviceFailed(error.errno, text, file.path) from None


def lock(file: MappedFile, offset: SupportsIndex, length: SupportsIndex) -> None:
    """See `MemoryMappedFile.lock`."""
    start, count = file._locate(offset, length)
    if count:
        # One mapping is enough: locked pages stay in memory for all of them.
        file.region.lock(start, count)


def unlock(file: MappedFile, offset: SupportsIndex, length: SupportsIndex) -> None:
    """See `MemoryMappedFile.unlock`."""
    start, count = file._locate(offset, length)
    if count:
        file.region.unlock(start, count)


def touch(file: MappedFile, offset: SupportsIndex, length: SupportsIndex, *, write: bool) -> None:
    """See `MemoryMappedFile.touch_pages_range`."""
    start, count = file._locate(offset, length)
    if write:
        file._check_writable()
    if count == 0:
        return
    parts = _parts(start, count)
    with _marking(file):
        for region in file._regions()[: 1 if write else None]:
            if len(parts) == 1:
                _populate(region, start, count, write)
            else:
                _populate_at_once(region, parts, write)
    if write:
        file._note(0)


def _parts(start: int, count: int) -> list[tuple[int, int]]:
    """A range in as many parts as are worth a thread each: most of the time goes into zeroing memory."""
    threads = max(min(os.cpu_count() or 1, THREADS_MAX, count // PART_MIN), 1)
    step = -(-count // (threads * HUGE)) * HUGE
    return [(at, min(step, start + count - at)) for at in range(start, start + count, step)]


def _populate_at_once(region: Region, parts: list[tuple[int, int]], write: bool) -> None:
    # Imported late: most processes never get here.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(parts), thread_name_prefix="mmapio-touch") as pool:
        jobs = [pool.submit(_populate, region, start, count, write) for start, count in parts]
        for job in jobs:
            job.result()


@contextmanager
def _marking(file: MappedFile) -> Iterator[None]:
    """Mark the file when the kernel reports, without a signal, that pages of it are gone."""
    try:
        yield
    except MappingFault:
        file._mark_if_cut()
        raise


def _populate(region: Region, start: int, count: int, write: bool) -> None:
    advice = MmapAdvice.POPULATE_WRITE if write else MmapAdvice.POPULATE_READ
    try:
        region.advise(start, count, advice, advice.name)
    except AdviceFailed as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        # A kernel before 5.14, or none of Linux.
        if write:
            region.touch_for_writing(start, count)
        else:
            region.touch(start, count)


def resident(file: MappedFile, offset: SupportsIndex, length: SupportsIndex | None) -> int:
    """See `MemoryMappedFile.resident`."""
    start, count = file._locate(offset, length)
    return int(file.region.resident(start, count).count(1)) * _vm.PAGE_SIZE


def punch_hole(file: MappedFile, offset: SupportsIndex, length: SupportsIndex) -> None:
    """See `MemoryMappedFile.punch_hole`."""
    start, count = file._locate(offset, length)
    file._check_writable()
    if file.mode is not MmapMode.READ_WRITE:
        raise InvalidMode(errno.EACCES, "a private copy has no blocks of its own to give back", file.path)
    if count == 0:
        return
    try:
        _os.punch_hole(file._descriptor(), start, count)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTSUP):
            raise Unsupported(error.errno, "the file system cannot punch holes", file.path) from None
        raise
    file._note(count)


def huge_page_tier(file: MappedFile) -> HugePages:
    """See `MemoryMappedFile.huge_pages`."""
    if _vm.hugetlb_block(file.fileno()):
        return HugePages.HUGETLB
    details = file.region.details()
    if any(details.get(name) for name in ("FilePmdMapped", "ShmemPmdMapped", "AnonHugePages")):
        return HugePages.MAPPED
    return HugePages.ADVISED if details.get("advised") else HugePages.NONE
