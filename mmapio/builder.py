"""Setting what a mapped file is to be, one property at a time, before it is made."""

from __future__ import annotations

import errno
from os import PathLike, fspath
from typing import Generic, Self, SupportsIndex, TypeAlias, TypeVar

from mmapio.errors import InvalidMode, InvalidSize
from mmapio.file import MemoryMappedFile
from mmapio.mapping import DEFAULT_RESERVE
from mmapio.options import FlushPolicy, MmapMode, TouchHint, check_choices

__all__ = ["Builder"]

_Path: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes]
_File = TypeVar("_File", bound=MemoryMappedFile)


class Builder(Generic[_File]):
    """What the constructors take as arguments, set one by one. Made by :meth:`MemoryMappedFile.builder`.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "built")
    >>> wanted = MemoryMappedFile.builder(path).size(4096).flush_policy(FlushPolicy.every_writes(100))
    >>> with wanted.create() as m:
    ...     len(m), m.flush_policy
    (4096, FlushPolicy.every_writes(100))
    """

    def __init__(self, kind: type[_File], path: _Path) -> None:
        self._kind = kind
        self._path = fspath(path)
        self._mode: MmapMode = MmapMode.READ_WRITE
        self._size: SupportsIndex | None = None
        self._policy = FlushPolicy.MANUAL
        self._touch = TouchHint.NEVER
        self._huge = False
        self._sparse = False
        self._reserve: SupportsIndex = DEFAULT_RESERVE

    def mode(self, mode: MmapMode) -> Self:
        """How :meth:`open` maps the file; read-write by default."""
        if not isinstance(mode, MmapMode):
            raise TypeError(f"a mode must be a MmapMode, not {mode!r}")
        self._mode = mode
        return self

    def size(self, size: SupportsIndex) -> Self:
        """The length in bytes that :meth:`create` gives the file."""
        self._size = size
        return self

    def flush_policy(self, policy: FlushPolicy) -> Self:
        """When writes become durable without being asked; ``FlushPolicy.MANUAL`` by default."""
        check_choices(policy, self._touch)
        self._policy = policy
        return self

    def touch_hint(self, hint: TouchHint) -> Self:
        """When pages are brought in; each at its first use by default."""
        check_choices(self._policy, hint)
        self._touch = hint
        return self

    def huge_pages(self, wanted: bool = True) -> Self:
        """Ask the kernel for huge pages. :attr:`MemoryMappedFile.huge_pages` tells what came of it."""
        self._huge = bool(wanted)
        return self

    def sparse(self, wanted: bool = True) -> Self:
        """Have :meth:`create` allocate no blocks: a store may then meet a full disk."""
        self._sparse = bool(wanted)
        return self

    def reserve(self, size: SupportsIndex) -> Self:
        """Address space in bytes to keep for growth; 64 GiB by default."""
        self._reserve = size
        return self

    def create(self) -> _File:
        """Make the file, as :meth:`MemoryMappedFile.create_rw`.

        Raises InvalidSize without a size, InvalidMode unless read-write.
        """
        self._must_be_writable("create")
        return self._kind.create_rw(
            self._path,
            self._needed_size(),
            flush_policy=self._policy,
            reserve=self._reserve,
            sparse=self._sparse,
            touch_hint=self._touch,
            huge_pages=self._huge,
        )

    def open(self) -> _File:
        """Map the file that is there, in the mode that was set. Raises the OSError that fits."""
        if self._mode is MmapMode.READ_WRITE:
            return self._kind.open_rw(
                self._path,
                flush_policy=self._policy,
                reserve=self._reserve,
                touch_hint=self._touch,
                huge_pages=self._huge,
            )
        if self._mode is MmapMode.READ_ONLY:
            return self._kind.open_ro(
                self._path, reserve=self._reserve, touch_hint=self._touch, huge_pages=self._huge
            )
        return self._kind.open_cow(self._path, touch_hint=self._touch, huge_pages=self._huge)

    def open_or_create(self) -> _File:
        """As :meth:`MemoryMappedFile.open_or_create`, with the size that was set.

        Raises what :meth:`create` does.
        """
        self._must_be_writable("open_or_create")
        return self._kind.open_or_create(
            self._path,
            self._needed_size(),
            flush_policy=self._policy,
            reserve=self._reserve,
            touch_hint=self._touch,
            huge_pages=self._huge,
        )

    def _needed_size(self) -> SupportsIndex:
        if self._size is None:
            raise InvalidSize(
                errno.EINVAL, "a file that is created needs a size: call size() first", self._path
            )
        return self._size

    def _must_be_writable(self, what: str) -> None:
        if self._mode is not MmapMode.READ_WRITE:
            raise InvalidMode(
                errno.EINVAL,
                f"{what}() makes a read-write mapping, not one that is {self._mode.value}",
                self._path,
            )
