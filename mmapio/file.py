"""A mapped file with all its surface: what is called often is native, in `mapping`; the rest is here."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, BinaryIO, Self, SupportsIndex, TypeAlias, cast

from mmapio import _os, atomic, iterate, memory
from mmapio._vm import PAGE_SIZE
from mmapio.aio import AsyncTwins
from mmapio.bounds import checked
from mmapio.errors import InvalidMode, ResizeFailed
from mmapio.mapping import DEFAULT_RESERVE, MappedFile
from mmapio.options import FlushPolicy, MmapAdvice, MmapMode, TouchHint, check_choices

if TYPE_CHECKING:
    from mmapio.builder import Builder
    from mmapio.mutable import MappedSliceMut
    from mmapio.reader import Reader
    from mmapio.view import MappedSlice
    from mmapio.watch import ChangeEvent, WatchHandle

__all__ = ["ChunksMut", "MemoryMappedFile"]

logger = logging.getLogger("mmapio")

_Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class MemoryMappedFile(MappedFile, AsyncTwins):
    """A file mapped into memory: read and write it without system calls, grow it without moving.

    Make one with :meth:`create_rw`, :meth:`open_rw`, :meth:`open_ro`, :meth:`open_cow`,
    :meth:`open_or_create`, :meth:`from_file` or a :meth:`builder`. Address space is reserved up front, so
    :meth:`resize` upward keeps every address and every view valid. All handles of a file, in all processes,
    see each other's bytes at once; :meth:`flush` makes them durable. mmapio takes no file lock. A handle
    serves any number of threads. A forked child may read an inherited handle but not write it.

    Where the file is cut by others, or its device fails, calls raise MappingFault, until :meth:`refresh`.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "greeting")
    >>> with MemoryMappedFile.create_rw(path, 4096) as m:
    ...     m.update_region(0, b"hello")
    ...     bytes(m.as_slice(0, 5))
    b'hello'
    """

    __slots__ = ()

    @classmethod
    def create_rw(
        cls,
        path: _Path,
        size: SupportsIndex,
        *,
        flush_policy: FlushPolicy = FlushPolicy.MANUAL,
        reserve: SupportsIndex = DEFAULT_RESERVE,
        sparse: bool = False,
        touch_hint: TouchHint = TouchHint.NEVER,
        huge_pages: bool = False,
    ) -> Self:
        """Create a file of `size` zero bytes, every block allocated, replacing the content of an existing
        one.

        Costs one allocation by the file system, no writing. With `sparse` no block is allocated: a store may
        then meet a full disk, which is a MappingFault at best. `reserve` is the address space in bytes to
        keep for growth. Raises InvalidSize (a ValueError) for a size that is not positive, ResizeFailed with
        errno (ENOSPC leaves no new file behind), OSError as the system reports it.
        """
        path = os.fspath(path)
        count, room = checked(size, path), checked(reserve, path)
        check_choices(flush_policy, touch_hint)
        existed = os.path.lexists(path)
        opened = _os.open_file(path, True, create=True)
        try:
            _os.set_size(opened, 0)
            if sparse:
                _os.set_size(opened, count)
            else:
                _os.grow(opened, count)
        except OSError as error:
            if not existed:
                _os.remove_file(None, path)
            text = f"cannot allocate {count} bytes: {error.strerror}"
            raise ResizeFailed(error.errno, text, path) from None
        made = cls._adopt(
            opened,
            MmapMode.READ_WRITE,
            room,
            flush_policy,
            created=not existed,
            parent=None if existed else _os.open_parent(opened),
        )
        return made._prepared(touch_hint, huge_pages)

    @classmethod
    def open_rw(
        cls,
        path: _Path,
        *,
        flush_policy: FlushPolicy = FlushPolicy.MANUAL,
        reserve: SupportsIndex = DEFAULT_RESERVE,
        touch_hint: TouchHint = TouchHint.NEVER,
        huge_pages: bool = False,
    ) -> Self:
        """Map an existing file for reading and writing.

        Raises the OSError that fits (FileNotFoundError, ...).
        """
        path = os.fspath(path)
        room = checked(reserve, path)
        check_choices(flush_policy, touch_hint)
        made = cls._adopt(_os.open_file(path, True), MmapMode.READ_WRITE, room, flush_policy)
        return made._prepared(touch_hint, huge_pages)

    @classmethod
    def open_ro(
        cls,
        path: _Path,
        *,
        reserve: SupportsIndex = DEFAULT_RESERVE,
        touch_hint: TouchHint = TouchHint.NEVER,
        huge_pages: bool = False,
    ) -> Self:
        """Map an existing file for reading. Raises the OSError that fits (FileNotFoundError, ...)."""
        path = os.fspath(path)
        room = checked(reserve, path)
        check_choices(FlushPolicy.NEVER, touch_hint)
        opened = _os.open_file(path, False)
        made = cls._adopt(opened, MmapMode.READ_ONLY, room, FlushPolicy.NEVER)
        return made._prepared(touch_hint, huge_pages)

    @classmethod
    def open_cow(
        cls, path: _Path, *, touch_hint: TouchHint = TouchHint.NEVER, huge_pages: bool = False
    ) -> Self:
        """Map an existing file as a private copy: writable, but no write reaches the file or another mapping.

        Costs memory for the pages that are written, nothing for the others, which go on showing the file. It
        needs no permission to write the file, keeps the length it was opened with, and has nothing to flush.
        Raises the OSError that fits.
        """
        check_choices(FlushPolicy.NEVER, touch_hint)
        opened = _os.open_file(os.fspath(path), False)
        made = cls._adopt(opened, MmapMode.COPY_ON_WRITE, DEFAULT_RESERVE, FlushPolicy.NEVER)
        return made._prepared(touch_hint, huge_pages)

    @classmethod
    def open_or_create(
        cls,
        path: _Path,
        default_size: SupportsIndex,
        *,
        flush_policy: FlushPolicy = FlushPolicy.MANUAL,
        reserve: SupportsIndex = DEFAULT_RESERVE,
        touch_hint: TouchHint = TouchHint.NEVER,
        huge_pages: bool = False,
    ) -> Self:
        """Map a file for reading and writing; where there is none, or an empty one, give it `default_size`
        zero bytes.

        Several processes may do so at once: none cuts what another has made. Raises what :meth:`create_rw`
        does.
        """
        path = os.fspath(path)
        count, room = checked(default_size, path), checked(reserve, path)
        check_choices(flush_policy, touch_hint)
        try:
            opened = _os.open_file(path, True, create=True, exclusive=True)
            created = True
        except FileExistsError:
            opened = _os.open_file(path, True)
            created = False
        if _os.file_size(opened) == 0:
            try:
                _os.grow(opened, count)
            except OSError as error:
                # Another process may have found the file, and grown it, meanwhile.
                if created and _os.file_size(opened) == 0:
                    _os.remove_file(None, path)
                text = f"cannot allocate {count} bytes: {error.strerror}"
                raise ResizeFailed(error.errno, text, path) from None
        parent = _os.open_parent(opened) if created else None
        made = cls._adopt(opened, MmapMode.READ_WRITE, room, flush_policy, created=created, parent=parent)
        return made._prepared(touch_hint, huge_pages)

    @classmethod
    def from_file(
        cls,
        file: int | IO[bytes],
        mode: MmapMode = MmapMode.READ_WRITE,
        path: _Path | None = None,
        *,
        flush_policy: FlushPolicy = FlushPolicy.MANUAL,
        reserve: SupportsIndex = DEFAULT_RESERVE,
    ) -> Self:
        """Map a file that is open already: a file object or a descriptor, which stays open and the caller's.

        `path` is what messages and :attr:`path` say; by default the file's own name. Raises InvalidMode when
        the file was not opened as `mode` needs, the OSError that fits for what is no regular file.
        """
        if not isinstance(mode, MmapMode):
            raise TypeError(f"a mode must be a MmapMode, not {mode!r}")
        check_choices(flush_policy, TouchHint.NEVER)
        if not isinstance(file, int) and not hasattr(file, "fileno"):
            raise TypeError(f"an open file or a descriptor's number is needed, not {type(file).__name__}")
        if path is None:
            name = getattr(file, "name", None)
            number = file if isinstance(file, int) else file.fileno()
            path = name if isinstance(name, str | bytes) else f"<descriptor {number}>"
        path = os.fspath(path)
        room = checked(reserve, path)
        opened = _os.duplicate(file, path)
        if not _os.is_readable(opened):
            text = "the file was opened for writing only, and every mapping reads; open it with 'r+b'"
            raise InvalidMode(errno.EACCES, text, path)
        if mode is MmapMode.READ_WRITE and not _os.is_writable(opened):
            text = "the file was opened for reading only; open it with 'r+b', or map it read-only"
            raise InvalidMode(errno.EACCES, text, path)
        policy = flush_policy if mode is MmapMode.READ_WRITE else FlushPolicy.NEVER
        return cls._adopt(opened, mode, room, policy)

    @classmethod
    def builder(cls, path: _Path) -> Builder[Self]:
        """A :class:`Builder` for the file `path`, to set what the constructors take and then make it."""
        from mmapio.builder import Builder

        return Builder(cls, path)

    def _prepared(self, touch_hint: TouchHint, huge_pages: bool) -> Self:
        if huge_pages:
            self._want_huge_pages()
        if touch_hint is TouchHint.EAGER:
            self.touch_pages()
        elif touch_hint is TouchHint.LAZY:
            self.advise(0, None, MmapAdvice.WILL_NEED)
        return self

    def unmap(self) -> BinaryIO:
        """Close the handle as :meth:`close` does and return the file, open as it was for reading or writing.

        Live views keep their pages. Raises Closed, FlushFailed.
        """
        file = _os.file_object(self._descriptor())
        try:
            self.close()
        except OSError:
            file.close()
            raise
        return file

    def __del__(self) -> None:
        # As of Python's own files: what was dropped is closed, and so flushed if the policy says so.
        try:
            self.close()
        except OSError as error:
            logger.error("closing a dropped handle failed: %s", error)  # noqa: TRY400

    def chunks(self, size: SupportsIndex) -> Iterator[MappedSlice]:
        """Zero-copy views of `size` bytes each, the last one shorter, over the file as it is long now.

        The iterator is a live view of what is still to come: the file cannot be cut meanwhile. Raises
        InvalidSize, Closed.
        """
        return cast("Iterator[MappedSlice]", iterate.Chunks(self, size, False))

    def pages(self) -> Iterator[MappedSlice]:
        """:meth:`chunks` of a page each."""
        return self.chunks(PAGE_SIZE)

    def chunks_owned(self, size: SupportsIndex) -> Iterator[bytes]:
        """As :meth:`chunks`, but copies, which no later write changes."""
        return cast("Iterator[bytes]", iterate.Chunks(self, size, True))

    def pages_owned(self) -> Iterator[bytes]:
        """:meth:`chunks_owned` of a page each."""
        return self.chunks_owned(PAGE_SIZE)

    def chunks_mut(self, size: SupportsIndex) -> ChunksMut:
        """The file in writable pieces of `size` bytes each, to be handed to a function.

        Raises InvalidSize, InvalidMode, Closed.
        """
        self._check_writable()
        return ChunksMut(self, iterate.checked_chunk(size))

    def reader(self) -> Reader:
        """A cursor over the file:

        an ``io.RawIOBase`` with a position of its own, for code that reads files. Raises Closed.
        """
        from mmapio.reader import Reader

        return Reader(self)

    def atomic_u32(self, offset: SupportsIndex) -> atomic.AtomicU32:
        """The 32-bit word at `offset`, for atomic operations.

        Raises Misaligned, OutOfBounds, Closed, MappingFault.
        """
        return cast(atomic.AtomicU32, atomic.atomic(self, offset, False))

    def atomic_u64(self, offset: SupportsIndex) -> atomic.AtomicU64:
        """The 64-bit word at `offset`, for atomic operations.

        Raises Misaligned, OutOfBounds, Closed, MappingFault.
        """
        return cast(atomic.AtomicU64, atomic.atomic(self, offset, True))

    def atomic_u32_slice(self, offset: SupportsIndex, count: SupportsIndex) -> atomic.AtomicSliceU32:
        """`count` 32-bit words from `offset` on. Raises Misaligned, OutOfBounds, Closed, MappingFault."""
        return cast(atomic.AtomicSliceU32, atomic.atomic(self, offset, False, count))

    def atomic_u64_slice(self, offset: SupportsIndex, count: SupportsIndex) -> atomic.AtomicSliceU64:
        """`count` 64-bit words from `offset` on. Raises Misaligned, OutOfBounds, Closed, MappingFault."""
        return cast(atomic.AtomicSliceU64, atomic.atomic(self, offset, True, count))

    def advise(self, offset: SupportsIndex, length: SupportsIndex | None, advice: MmapAdvice) -> None:
        """Tell the kernel how a range will be used; to the end when `length` is None. It goes by whole pages.

        Nothing that the file holds is changed by any advice. Raises OutOfBounds, AdviceFailed with errno,
        Unsupported where the platform has no such advice, InvalidMode for POPULATE_WRITE on a read-only
        mapping, Closed.
        """
        memory.advise(self, offset, length, advice)

    def prefetch_range(self, offset: SupportsIndex, length: SupportsIndex) -> None:
        """Have the kernel read a range of the file into the page cache, and do not wait for it.

        Works on the file; :meth:`advise` with WILL_NEED works on the mapping. Raises OutOfBounds,
        AdviceFailed, Closed.
        """
        memory.prefetch(self, offset, length)

    def lock(self, offset: SupportsIndex, length: SupportsIndex) -> None:
        """Keep the pages of a range in memory until :meth:`unlock` or close. Brings them in first.

        Raises OutOfBounds, LockFailed with errno (ENOMEM or EPERM: the limit of ``ulimit -l``), Closed.
        """
        memory.lock(self, offset, length)

    def unlock(self, offset: SupportsIndex, length: SupportsIndex) -> None:
        """Let the pages of a range go, locked or not. Raises OutOfBounds, UnlockFailed with errno, Closed."""
        memory.unlock(self, offset, length)

    def lock_all(self) -> None:
        """:meth:`lock` of the whole file."""
        self.lock(0, len(self))

    def unlock_all(self) -> None:
        """:meth:`unlock` of the whole file."""
        self.unlock(0, len(self))

    def touch_pages(self, *, write: bool = False) -> None:
        """Bring every page of the file in, so that no later access waits for one.

        See :meth:`touch_pages_range`.
        """
        self.touch_pages_range(0, len(self), write=write)

    def touch_pages_range(self, offset: SupportsIndex, length: SupportsIndex, *, write: bool = False) -> None:
        """Bring the pages of a range in. Reads and dirties nothing; with `write`, they can be stored to
        without a fault.

        With `write` the kernel takes the pages for written: the next flush writes them. Raises OutOfBounds,
        MappingFault for a page that cannot be had, InvalidMode for `write` on a read-only mapping, Closed.
        """
        memory.touch(self, offset, length, write=write)

    def resident(self, offset: SupportsIndex = 0, length: SupportsIndex | None = None) -> int:
        """How many bytes of a range are in memory, by whole pages. Costs 1 byte and some 10 ns a page.

        On Linux all of a file counts as in memory for who may not write it. Raises OutOfBounds, Closed.
        """
        return memory.resident(self, offset, length)

    def punch_hole(self, offset: SupportsIndex, length: SupportsIndex) -> None:
        """Give the blocks of a range back to the file system; the range reads as zeros, the length stays.

        Whole blocks are freed, the rest of the range is overwritten with zeros. A later store to the hole
        allocates again, and may meet a full disk. It counts as a write. Raises OutOfBounds, InvalidMode,
        Unsupported where the file system cannot do it, Closed.
        """
        memory.punch_hole(self, offset, length)

    @property
    def huge_pages(self) -> memory.HugePages:
        """Which tier of huge pages the mapping has reached by now, a :class:`HugePages`.

        Costs a look into /proc.
        """
        return memory.huge_page_tier(self)

    def watch(
        self, callback: Callable[[ChangeEvent], object], *, interval_seconds: float = 0.1
    ) -> WatchHandle:
        """Call `callback` with a :class:`ChangeEvent` whenever the file changes, by whatever means, until the
        handle is stopped.

        The callback runs in a thread of the watch. Stores through a mapping raise no event of the system;
        they are seen by the file's time stamp, `interval_seconds` later at most. Needs the extra ``watch``.
        Raises WatchFailed, Closed.
        """
        from mmapio.watch import watch

        self._descriptor()
        return watch(self.path, callback, interval_seconds=interval_seconds)

    def as_slice_bytes(self, offset: SupportsIndex, length: SupportsIndex) -> memoryview:
        """A ``memoryview`` of a range;

        InvalidMode on a read-write mapping, as in mmap-io before 0.9.7. Use :meth:`as_slice`.
        """
        if self.mode is MmapMode.READ_WRITE:
            raise InvalidMode(
                errno.EACCES, "as_slice_bytes does not serve read-write mappings; use as_slice", self.path
            )
        return memoryview(self.as_slice(offset, length))


class ChunksMut:
    """A file in writable pieces; made by :meth:`MemoryMappedFile.chunks_mut`."""

    __slots__ = ("_file", "_size")

    def __init__(self, file: MemoryMappedFile, size: int) -> None:
        self._file = file
        self._size = size

    def for_each_mut(self, function: Callable[[int, MappedSliceMut], object]) -> None:
        """Call ``function(offset, view)`` with a :class:`MappedSliceMut` of each piece, the last one shorter,
        in order.

        Each view is released, and its write on the books, before the next is made. What `function` raises
        ends the iteration and is raised; the pieces before stay written.
        """
        length = len(self._file)
        for offset in range(0, length, self._size):
            with self._file.as_slice_mut(offset, min(self._size, length - offset)) as view:
                function(offset, view)

    def for_each_mut_legacy(self, function: Callable[[int, MappedSliceMut], object]) -> Exception | None:
        """As :meth:`for_each_mut`, but what `function` raises is returned: None when all went well."""
        failure: list[Exception] = []

        def guarded(offset: int, view: MappedSliceMut) -> None:
            try:
                function(offset, view)
            except Exception as error:
                failure.append(error)
                raise

        try:
            self.for_each_mut(guarded)
        except Exception as error:
            if failure and error is failure[0]:
                return error
            raise
        return None
