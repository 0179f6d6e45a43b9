"""Whole-file operations by path, for those who want one call and no handle to keep."""

from __future__ import annotations

import operator
import os
from typing import TYPE_CHECKING, SupportsIndex, TypeAlias

from mmapio import _os
from mmapio._vm import PAGE_SIZE
from mmapio.file import MemoryMappedFile
from mmapio.options import FlushPolicy, MmapMode

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "align_up",
    "copy_mmap",
    "create_mmap",
    "delete_mmap",
    "flush",
    "load_mmap",
    "page_size",
    "update_region",
    "write_mmap",
]

_Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def create_mmap(path: _Path, size: SupportsIndex) -> MemoryMappedFile:
    """:meth:`MemoryMappedFile.create_rw`."""
    return MemoryMappedFile.create_rw(path, size)


def load_mmap(path: _Path, mode: MmapMode = MmapMode.READ_ONLY) -> MemoryMappedFile:
    """Map an existing file in a :class:`MmapMode`. Raises the OSError that fits."""
    return MemoryMappedFile.builder(path).mode(mode).open()


def write_mmap(path: _Path, offset: SupportsIndex, data: Buffer) -> None:
    """Write into an existing file, and make it durable.

    Raises OutOfBounds (nothing is written), the OSError that fits.
    """
    with MemoryMappedFile.open_rw(path, flush_policy=FlushPolicy.NEVER) as mapped:
        mapped.update_region(offset, data)
        mapped.flush()


def update_region(mapped: MemoryMappedFile, offset: SupportsIndex, data: Buffer) -> None:
    """:meth:`MemoryMappedFile.update_region`."""
    mapped.update_region(offset, data)


def flush(mapped: MemoryMappedFile) -> None:
    """:meth:`MemoryMappedFile.flush`."""
    mapped.flush()


def copy_mmap(source: _Path, destination: _Path) -> str:
    """Copy a file, durably, and return how: ``"reflink"``, ``"copy_file_range"`` or ``"read and write"``.

    Where the file system can share blocks (XFS, btrfs) no byte is copied; else the kernel copies, if it can.
    The copy is made beside the destination and renamed over it when it is whole and on the device, so that
    whoever opens the name finds the old file or the new one, and whoever has the old one mapped keeps it.
    Its permissions are those of the source. Raises the OSError that fits; the destination is then as it was.
    """
    source, destination = os.fspath(source), os.fspath(destination)
    opened = _os.open_file(source, False)
    _os.check_replaceable(destination)
    folder, name = os.path.split(os.fsdecode(destination))
    directory = _os.open_directory(folder or ".")
    # Short, whatever the name: a name has a longest length.
    temporary = f".{os.urandom(8).hex()}.tmp"
    target = _os.open_file(temporary, True, create=True, exclusive=True, directory=directory)
    try:
        how = _os.copy_content(opened, target, permissions=True)
        _os.sync(target)
        _os.replace_file(directory, temporary, name)
    except BaseException as error:
        _os.remove_file(directory, temporary)
        if isinstance(error, OSError):
            error.filename, error.filename2 = destination, None
        raise
    _os.sync(directory)
    return how


def delete_mmap(path: _Path) -> None:
    """Remove a file's name. Whoever has it mapped keeps it. Raises FileNotFoundError and the like."""
    _os.remove_file(None, os.fspath(path))


def page_size() -> int:
    """The bytes of a page of memory.

    >>> page_size() % 4096
    0
    """
    return PAGE_SIZE


def align_up(value: SupportsIndex, alignment: SupportsIndex) -> int:
    """The least multiple of `alignment` that is not below `value`. ValueError for an alignment below 1.

    >>> align_up(4097, 4096)
    8192
    """
    value, alignment = operator.index(value), operator.index(alignment)
    if alignment < 1:
        raise ValueError(f"an alignment must be at least 1, not {alignment}")
    return -(-value // alignment) * alignment
