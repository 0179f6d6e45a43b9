# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""A file mapped into memory, growing in place."""

import errno as _errno
import operator
import os

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport uint64_t
from libc.string cimport memmove, strerror

from mmapio cimport _os
from mmapio._os cimport Descriptor
from mmapio.view cimport slice_of

from mmapio import _fork
from mmapio import _os as _system
from mmapio.errors import Closed, FlushFailed, InvalidMode, OutOfBounds, ResizeFailed
from mmapio.options import MmapMode

DEFAULT_RESERVE = 64 << 30
"""Address space, in bytes, that a file may grow into without moving. Costs no memory."""

# File offsets are signed in the system interface.
cdef uint64_t MAX_SIZE = 0x7FFFFFFFFFFFF000


@cython.final
cdef class Region:
    """Address space with a file mapped over it; everything that points into it holds a reference."""

    def __dealloc__(self):
        if self.base != NULL:
            _os.unmap(self.base, self.reserved)


cdef Region map_region(int fd, uint64_t want, uint64_t least, bint writable, path):
    cdef Region region = Region.__new__(Region)
    cdef size_t got = 0
    cdef char *base
    cdef int result
    want = whole_pages(max(want, least, 1))
    least = whole_pages(max(least, 1))
    with nogil:
        base = <char *>_os.map_reserve(want, least, &got)
        result = -errno if base == NULL else 0
    if base != NULL:
        region.base = base
        region.reserved = got
        result = _os.map_file(base, got, fd, writable)
    if result < 0:
        raise OSError(
            -result, f"cannot map {least} bytes ({strerror(-result).decode()}); "
            "is the process' address space limited (ulimit -v)?", path)
    return region


cdef uint64_t whole_pages(uint64_t count):
    return (count + _os.PAGE - 1) // _os.PAGE * _os.PAGE


cdef class MemoryMappedFile:
    """A file mapped into memory: read and write it without system calls, grow it without moving.

    Make one with :meth:`create_rw`, :meth:`open_rw` or :meth:`open_ro`. Address space is reserved up front, so
    :meth:`resize` upward keeps every address and every view valid. All handles of a file, in all
    processes, see each other's bytes at once; :meth:`flush` makes them durable. mmapio takes no file
    lock. A handle serves any number of threads. A forked child may read an inherited handle but not write it.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "greeting")
    >>> with MemoryMappedFile.create_rw(path, 4096) as m:
    ...     m.update_region(0, b"hello")
    ...     bytes(m.as_slice(0, 5))
    b'hello'
    """

    def __init__(self):
        raise TypeError("use MemoryMappedFile.create_rw, open_rw or open_ro")

    @classmethod
    def create_rw(cls, path, size, *, reserve=DEFAULT_RESERVE):
        """Create a file of `size` zero bytes, every block allocated, replacing the content of an existing one.

        Costs one allocation by the file system, no writing. `reserve` is the address space in bytes to keep
        for growth. Raises ValueError for a size that is not positive, OSError as the system reports it
        (ENOSPC leaves no new file behind).
        """
        cdef uint64_t count = checked_size(size), room = checked_size(reserve)
        path = os.fspath(path)
        existed = os.path.lexists(path)
        cdef Descriptor opened = _system.open_file(path, True, create=True)
        cdef int result
        with nogil:
            result = _os.truncate(opened.fd, 0)
            if result == 0:
                result = _os.allocate(opened.fd, 0, count)
        if result < 0:
            if not existed:
                _system.remove_file(None, path)
            raise ResizeFailed(-result, f"cannot allocate {count} bytes: {strerror(-result).decode()}", path)
        return guarded(adopt(cls, opened, True, room))

    @classmethod
    def open_rw(cls, path, *, reserve=DEFAULT_RESERVE):
        """Map an existing file for reading and writing. Raises the OSError that fits (FileNotFoundError, ...)."""
        cdef uint64_t room = checked_size(reserve)
        return guarded(adopt(cls, _system.open_file(os.fspath(path), True), True, room))

    @classmethod
    def open_ro(cls, path, *, reserve=DEFAULT_RESERVE):
        """Map an existing file for reading. Raises the OSError that fits (FileNotFoundError, ...)."""
        cdef uint64_t room = checked_size(reserve)
        return adopt(cls, _system.open_file(os.fspath(path), False), False, room)

    @classmethod
    def from_descriptor(cls, Descriptor descriptor not None, *, bint writable, reserve=DEFAULT_RESERVE):
        """Map the file of an open `Descriptor`.

        For a layer that guards its own handles: the mapping is not told of forks, and runs no Python code.
        """
        return adopt(cls, descriptor, writable, checked_size(reserve))

    @property
    def path(self):
        """The path that the file was opened by."""
        return self._path

    @property
    def mode(self):
        """The :class:`MmapMode` of this handle."""
        return MmapMode.READ_WRITE if self.writable else MmapMode.READ_ONLY

    @property
    def closed(self):
        """True after :meth:`close`."""
        return self.region is None

    @property
    def reserved(self):
        """Bytes of address space that the file can grow into without moving."""
        self.check()
        return self.region.reserved

    def fileno(self):
        """The descriptor of the mapped file. Raises Closed."""
        self.check()
        return self.descriptor.fd

    def __len__(self):
        self.check()
        return self.length

    def as_slice(self, offset=0, length=None):
        """A zero-copy, read-only view of `length` bytes at `offset`; to the end when `length` is None.

        Costs the same whatever the length. The view stays valid after growth and close; its bytes are
        whatever the file holds. Raises OutOfBounds, Closed.
        """
        self.check()
        cdef uint64_t start = checked_offset(self, offset)
        cdef uint64_t count = self.length - min(start, self.length) if length is None else checked_offset(self, length)
        self.check_range(start, count)
        return slice_of(self.region, self.base + start, count)

    def read_bytes(self, offset, length):
        """Copy `length` bytes at `offset`. Raises OutOfBounds, Closed."""
        self.check()
        cdef uint64_t start = checked_offset(self, offset), count = checked_offset(self, length)
        self.check_range(start, count)
        return PyBytes_FromStringAndSize(self.base + start, count)

    def update_region(self, offset, data):
        """Write a contiguous buffer at `offset`; visible to every process that maps the file when it returns.

        Costs one copy; not durable before :meth:`flush`. Raises OutOfBounds (nothing is written),
        InvalidMode on a read-only mapping, TypeError for what is no buffer, Closed.
        """
        self.check_writable()
        cdef uint64_t start = checked_offset(self, offset)
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.check_writable()  # again: the exporter is free to run code that closes this handle
            self.check_range(start, view.len)
            memmove(self.base + start, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def resize(self, size):
        """Set the file's length in bytes. Upward, blocks are allocated and no address changes.

        Growth beyond the reservation maps the file anew; views taken before keep the old mapping of the
        same pages. Downward, views beyond the new end fault when touched. Raises ResizeFailed with errno (ENOSPC: the
        file is as it was), InvalidMode, Closed, ValueError.
        """
        cdef uint64_t count = checked_size(size)
        cdef int result
        cdef Descriptor descriptor
        self.check_writable()
        if count >= self.learn_length():
            self.grow_to(count)
            return
        descriptor = self.descriptor
        with nogil:
            result = _os.truncate(descriptor.fd, count)
        if result < 0:
            raise ResizeFailed(-result, f"cannot shrink to {count} bytes: {strerror(-result).decode()}", self._path)
        self.length = count

    def refresh(self):
        """Learn the file's length again, after another process grew it, and return it. Costs one fstat."""
        self.check()
        cdef uint64_t found = self.learn_length()
        if found > self.region.reserved:
            self.region = map_region(self.descriptor.fd, 2 * found, found, self.writable, self._path)
            self.base = self.region.base
        self.length = found
        return found

    def flush(self):
        """Make everything written to the file, through whichever handle, durable: on the device when it returns.

        Runs without the GIL. Raises FlushFailed with errno, and from then on always: after a failed sync
        the kernel has dropped the dirty state, so a later success would be a lie.
        """
        self.check_writable()
        self.sync_all()

    def close(self):
        """Close the handle; the second time does nothing. Live views stay valid. Does not flush."""
        self.region = None
        self.base = NULL
        self.length = 0
        self.descriptor = None

    def __enter__(self):
        self.check()
        return self

    def __exit__(self, *exc):
        self.close()
        return False

    def __reduce__(self):
        raise TypeError("a mapped file cannot be pickled or copied; open its path again")

    def __repr__(self):
        state = "closed" if self.region is None else f"{self.mode.value}, {self.length} bytes"
        return f"<MemoryMappedFile {self._path!r} {state}>"

    def _after_fork_in_child(self):
        self.forked = True

    cdef int check(self) except -1:
        if self.region is None:
            raise Closed(_errno.EBADF, "the mapped file is closed; open it again", self._path)
        return 0

    cdef int check_writable(self) except -1:
        self.check()
        if not self.writable:
            raise InvalidMode(_errno.EACCES, "the file is mapped read-only; open it with open_rw", self._path)
        if self.forked:
            raise Closed(
                _errno.EBADF, "a writable mapping inherited by fork belongs to the parent; open the file again in the child",
                self._path)
        if self.poison is not None:
            raise FlushFailed(*self.poison)
        return 0

    cdef int check_range(self, uint64_t offset, uint64_t count) except -1:
        if offset > self.length or count > self.length - offset:
            raise OutOfBounds(
                _errno.EINVAL, f"{count} bytes at offset {offset} reach outside the {self.length} bytes mapped", self._path)
        return 0

    cdef uint64_t learn_length(self) except? 0:
        cdef long long found = _os.size_of(self.descriptor.fd)
        if found < 0:
            raise OSError(<int>-found, strerror(<int>-found).decode(), self._path)
        return found

    cdef int grow_to(self, uint64_t size) except -1:
        cdef Descriptor descriptor = self.descriptor
        cdef uint64_t now = self.learn_length()
        cdef int result = 0
        if size > now:
            with nogil:
                result = _os.allocate(descriptor.fd, now, size - now)
            if result < 0:
                raise ResizeFailed(
                    -result, f"cannot grow from {now} to {size} bytes: {strerror(-result).decode()}", self._path)
        if self.region is not None:
            self.refresh()
        return 0

    cdef int sync_all(self) except -1:
        cdef Descriptor descriptor = self.descriptor
        cdef int result
        with nogil:
            result = _os.sync_file(descriptor.fd)
        if result < 0:
            self.poison = (-result, f"sync failed: {strerror(-result).decode()}; "
                           "bytes written since the last flush may be lost, close the file and check it", self._path)
            raise FlushFailed(*self.poison)
        return 0


cdef adopt(cls, Descriptor opened, bint writable, uint64_t reserve):
    cdef MemoryMappedFile made = cls.__new__(cls)
    made.descriptor = opened
    made.writable = writable
    made._path = opened.path
    made.length = made.learn_length()
    made.region = map_region(opened.fd, reserve, made.length, writable, opened.path)
    made.base = made.region.base
    return made


cdef guarded(MemoryMappedFile made):
    if made.writable:
        _fork.register(made)
    return made


cdef uint64_t checked_size(size) except? 0:
    size = operator.index(size)
    if not 0 < size <= MAX_SIZE:
        raise ValueError(f"a size must be between 1 and {MAX_SIZE} bytes, not {size}")
    return size


cdef uint64_t checked_offset(MemoryMappedFile mapped, offset) except? 0:
    offset = operator.index(offset)
    if not 0 <= offset <= MAX_SIZE:
        raise OutOfBounds(
            _errno.EINVAL, f"offset or length {offset} is outside the {mapped.length} bytes mapped", mapped._path)
    return offset
