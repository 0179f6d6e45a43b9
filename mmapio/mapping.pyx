# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""A file mapped into memory, growing in place: the part of it that is called often or touches pointers."""

import errno as _errno
import operator
import threading
import time

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EFAULT
from libc.stdint cimport uint64_t
from libc.string cimport strerror

from mmapio cimport _fault, _os, _vm
from mmapio._os cimport Descriptor
from mmapio._vm cimport COPY_ON_WRITE, READ_ONLY, READ_WRITE, Kind
from mmapio.account cimport ON_EACH, note
from mmapio.bounds cimport checked_offset, checked_size, clamped, deadline_of, is_plain_int, told
from mmapio.mutable cimport mutable_of
from mmapio.region cimport Region, copy_guarded, read_copy
from mmapio.regions cimport MappedRegions, span
from mmapio.view cimport slice_of

from mmapio import _fork
from mmapio import _os as _system
from mmapio.errors import Closed, FlushFailed, InvalidMode, OutOfBounds, ResizeFailed
from mmapio.flusher import Flusher
from mmapio.options import FlushPolicy, MmapMode, Trigger

DEFAULT_RESERVE = 64 << 30
"""Address space, in bytes, that a file may grow into without moving. Costs no memory."""

cdef extern from "Python.h":
    int unpack_slice "PySlice_Unpack"(object key, Py_ssize_t *start, Py_ssize_t *stop, Py_ssize_t *step) except -1
    Py_ssize_t fit_slice "PySlice_AdjustIndices"(Py_ssize_t length, Py_ssize_t *start, Py_ssize_t *stop, Py_ssize_t step) noexcept

cdef dict KINDS = {
    MmapMode.READ_ONLY: READ_ONLY, MmapMode.READ_WRITE: READ_WRITE, MmapMode.COPY_ON_WRITE: COPY_ON_WRITE}
cdef dict MODES = {kind: mode for mode, kind in KINDS.items()}


@cython.no_gc_clear
cdef class MappedFile(MappedRegions):
    """The native core of :class:`mmapio.MemoryMappedFile`, which has the constructors and everything that is rare."""

    def __init__(self):
        raise TypeError("use MemoryMappedFile.create_rw, open_rw or open_ro")

    @classmethod
    def from_descriptor(cls, Descriptor descriptor not None, *, bint writable, reserve=DEFAULT_RESERVE):
        """Map the file of an open `Descriptor`.

        For a layer that guards its own handles and syncs by itself: the mapping is not told of forks, and runs no Python code.
        Where it can be stored to and a page is missing, stores go into memory that is lost: the layer must look for the mark of
        the region after each store, and before it tells anybody of it.
        """
        return adopt(
            cls, descriptor, READ_WRITE if writable else READ_ONLY, checked_size(reserve, descriptor.path), FlushPolicy.NEVER, writable)

    @classmethod
    def _adopt(cls, Descriptor descriptor not None, mode, reserve, flush_policy, bint created=False, Descriptor parent=None):
        # What the constructors end in: a handle that is told of forks and flushed as its policy says.
        cdef MappedFile made = adopt(cls, descriptor, KINDS[mode], checked_size(reserve, descriptor.path), flush_policy, False)
        made.unnamed = created
        made.parent = parent
        if made.kind == READ_WRITE:
            _fork.register(made)
            if flush_policy.trigger is Trigger.MILLIS:
                made.flusher = Flusher(made, flush_policy.bound, "mmapio-flusher")
                made.flusher.start()
        return made

    @property
    def path(self):
        """The path that the file was opened by."""
        return self._path

    @property
    def mode(self):
        """The :class:`MmapMode` of this handle."""
        return MODES[self.kind]

    @property
    def closed(self):
        """True after :meth:`close`."""
        return self.region is None

    @property
    def reserved(self):
        """Bytes of address space that the file can grow into without moving. Raises Closed."""
        self.check()
        return self.region.reserved

    @property
    def address(self):
        """Where the mapping begins in this process, for C code that takes a pointer. Raises Closed.

        It does not change while the file grows within :attr:`reserved`. Nothing keeps the memory mapped for who uses the
        bare number, and what is stored through it is not on the books.
        """
        self.check()
        return <size_t>self.base

    def fileno(self):
        """The descriptor of the mapped file. Raises Closed."""
        self.check()
        return self.descriptor.fd

    def __len__(self):
        self.check()
        return self.length

    def is_empty(self):
        """Whether the file has no bytes. Raises Closed."""
        return len(self) == 0

    def as_slice(self, offset=0, length=None):
        """A zero-copy, read-only view of `length` bytes at `offset`; to the end when `length` is None.

        Costs the same whatever the length. The view stays valid after growth and close; its bytes are
        whatever the file holds. Raises OutOfBounds, Closed, MappingFault.
        """
        cdef uint64_t start, count
        span(self, offset, length, &start, &count)
        cdef Region region = self.viewed
        if region is None or region.reserved < start + count:
            region = self.view_region(start + count)
            self.check()
            if length is None:
                count = min(count, self.length - min(start, self.length))
            self.check_range(start, count)  # again: mapping it may have let another thread cut the file
        return slice_of(region, region.base + start, count)

    def read_bytes(self, offset, length):
        """Copy `length` bytes at `offset`. Raises OutOfBounds, Closed, MappingFault."""
        cdef uint64_t start, count
        span(self, offset, operator.index(length), &start, &count)
        return read_copy(self.region, start, count)

    def read_into(self, offset, buffer):
        """Fill a writable buffer from `offset` on, and return how many bytes that were: all it holds.

        Costs one copy, without the GIL from 256 KiB on. Raises OutOfBounds (the buffer is as it was), TypeError or
        BufferError for what is no writable, contiguous buffer, Closed, MappingFault.
        """
        cdef uint64_t start = checked_offset(offset, self.length, self._path)
        cdef Region region
        cdef Py_buffer view
        self.check()
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            self.check()  # again: the exporter is free to run code that closes this handle
            self.check_range(start, view.len)
            region = self.region
            copy_guarded(region, start, view.len, <char *>view.buf, region.base + start, type(buffer) is not bytearray)
            return view.len
        finally:
            PyBuffer_Release(&view)

    def __getitem__(self, key):
        """As of ``bytes``: an index gives an int, a slice a copy. Raises IndexError (OutOfBounds), Closed, MappingFault."""
        cdef Py_ssize_t begin, end, stride, count
        self.check()
        if isinstance(key, slice):
            unpack_slice(key, &begin, &end, &stride)
            self.check()
            count = fit_slice(self.length, &begin, &end, stride)
            if stride == 1 or count == 0:
                return read_copy(self.region, max(begin, 0), count)
            # Only what lies between the ends is copied.
            end = begin + (count - 1) * stride
            return read_copy(self.region, min(begin, end), abs(end - begin) + 1)[::stride]
        return read_copy(self.region, self.index(key), 1)[0]

    def update_region(self, offset, data):
        """Write a contiguous buffer at `offset`; visible to every process that maps the file when it returns.

        Costs one copy, without the GIL from 256 KiB on. Durable after :meth:`flush`, or as the flush policy says. Raises
        OutOfBounds (nothing is written), InvalidMode on a read-only mapping, TypeError for what is no buffer, Closed,
        MappingFault (part of it may be written), FlushFailed.
        """
        store(self, checked_offset(offset, self.length, self._path), data, -1)

    def __setitem__(self, key, value):
        """As of a ``bytearray`` that keeps its length. Raises what :meth:`update_region` does, and ValueError for another length."""
        cdef Py_ssize_t begin, end, stride, count
        self.check_writable()
        if not isinstance(key, slice):
            start = self.index(key)
            value = operator.index(value)
            if not 0 <= value <= 255:
                raise ValueError(f"a byte must be between 0 and 255, not {value}")
            self.update_region(start, value.to_bytes(1, "little"))
            return
        unpack_slice(key, &begin, &end, &stride)
        if stride != 1:
            raise ValueError(f"a slice that is assigned to must be contiguous: step must be 1, not {stride}")
        self.check()
        count = fit_slice(self.length, &begin, &end, stride)
        store(self, begin, value, count)

    def __delitem__(self, key):
        raise TypeError("bytes of a mapped file cannot be deleted; resize the file")

    def as_slice_mut(self, offset=0, length=None):
        """A writable zero-copy view, a :class:`MappedSliceMut`; to the end when `length` is None. A context manager.

        Costs the same whatever the length. Raises OutOfBounds, InvalidMode on a read-only mapping, Closed, MappingFault.
        """
        cdef uint64_t start, count
        span(self, offset, length, &start, &count)
        self.check_writable()
        return mutable_of(self, self.region, self.base + start, count)

    def resize(self, size, timeout=0):
        """Set the file's length in bytes. Upward, blocks are allocated and no address changes.

        Growth beyond the reservation maps the file anew; views taken before keep the old mapping of the same pages.
        Downward, views and atomics of this handle that reach beyond the new end are waited for, `timeout` seconds at
        most, and then ResizeFailed is raised. Raises ResizeFailed with errno (ENOSPC: the file is as it was), InvalidSize
        (a ValueError), InvalidMode unless the mapping is read-write, Closed.
        """
        cdef uint64_t count = checked_size(size, self._path), before
        cdef int result
        cdef Descriptor descriptor
        deadline = deadline_of(timeout)
        self.check_writable()
        if self.kind == COPY_ON_WRITE:
            raise InvalidMode(
                _errno.EACCES, "a private copy cannot change the file's length; open it with open_rw", self._path)
        if count >= self.learn_length():
            self.grow_to(count)
            return
        wait_for_views(self, count, deadline)
        self.check_writable()
        descriptor = self.descriptor
        # At once, so that no view is taken meanwhile of what is being cut.
        before = self.length
        self.length = min(count, before)
        with nogil:
            result = _os.truncate(descriptor.fd, count)
        if result < 0:
            self.length = before
            raise ResizeFailed(-result, f"cannot shrink to {count} bytes: {strerror(-result).decode()}", self._path)
        # Others may have made the file longer than this handle had mapped, and the new length may be beyond that.
        if self.region is not None:
            self.refresh()
        self.resized()

    def refresh(self):
        """Learn the file's length again, after another process changed it, and return it. Costs one fstat.

        After a MappingFault it maps what is there now, and the handle can be used again; views taken before are not mended. A
        private copy keeps its length; after a MappingFault it begins anew, and what was written to it is gone.
        """
        self.check_open()
        _fault.install()  # again, if somebody has put a handler over it
        cdef uint64_t found = self.learn_length()
        if self.kind == COPY_ON_WRITE and not self.faulted():
            return self.length  # it has no more than it was opened with
        while found > self.region.reserved or self.faulted():
            self.renew(max(2 * found, self.region.reserved), found)
            # Again: while this mapped, another thread may have cut or extended the file.
            found = self.learn_length()
        self.length = found
        return found

    def flush(self, bint wait=True):
        """Make everything written to the file, through whichever handle, durable: on the device when it returns.

        Runs without the GIL. With ``wait=False`` it only has the kernel begin to write, which promises nothing and leaves the
        books as they are. On a read-only or private mapping there is nothing to do. Raises FlushFailed with errno, and from
        then on always: after a failed sync the kernel has dropped the dirty state, so a later success would be a lie.
        """
        self.check()
        if self.kind != READ_WRITE:
            return
        self.check_writable()
        if wait:
            self.sync_all()
        else:
            self.begin_writeback(self.region, 0, self.length)

    def flush_range(self, offset, length, bint wait=True):
        """As :meth:`flush`, for `length` bytes at `offset` and whatever else lies on their pages.

        Takes `length` off :attr:`pending_bytes`. Raises OutOfBounds, and what :meth:`flush` raises.
        """
        cdef uint64_t start, count
        span(self, offset, operator.index(length), &start, &count)
        if self.kind != READ_WRITE:
            return
        self.check_writable()
        if count == 0:
            return
        if wait:
            self.sync_pages(self.region, start, count)
        else:
            self.begin_writeback(self.region, start, count)

    def close(self):
        """Flush what the policy owes, end the background flusher, and close; the second time does nothing.

        ``FlushPolicy.NEVER`` owes nothing. Live views stay valid; what is stored through them later is nobody's business.
        Raises FlushFailed, MappingFault; the handle is closed all the same.
        """
        if self.region is None:
            return
        try:
            self.settle_debts()
        finally:
            self.stopped = True
            self.region = None
            self.viewed = None
            self.base = NULL
            self.length = 0
            self.descriptor = None
            self.parent = None

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
        return f"<{type(self).__name__} {self._path!r} {state}>"

    def _after_fork_in_child(self):
        self.forked = True
        self.stopped = True
        # The parent owes what is on the books.
        self.private = True

    def _locate(self, offset, length):
        # The checked numbers of a range; `length` None means to the end.
        cdef uint64_t start, count
        span(self, offset, length, &start, &count)
        return start, count

    def _descriptor(self):
        self.check()
        return self.descriptor

    def _nobody_heard(self):
        # Of a failed sync.
        self.unheard = self.poison is not None

    def _check_writable(self):
        self.check_writable()

    def _note(self, uint64_t count):
        # A write that was made by a system call.
        note(self, count)

    cdef Py_ssize_t index(self, key) except -1:
        cdef Py_ssize_t at = clamped(key)
        self.check()
        if at < 0:
            at += self.length
        if at < 0 or <uint64_t>at >= self.length:
            raise OutOfBounds(_errno.EINVAL, f"index {told(key)} is outside the {self.length} bytes mapped", self._path)
        return at

    cdef int check_writable(self) except -1:
        self.check()
        return self.refuse_write() if self.stopped else 0

    cdef int refuse_write(self) except -1:
        # Says why no write may begin; nothing, when one may.
        self.check_open()
        if self.kind == READ_ONLY:
            raise InvalidMode(_errno.EACCES, "the file is mapped read-only; open it with open_rw", self._path)
        if self.forked:
            raise Closed(
                _errno.EBADF, "a writable mapping inherited by fork belongs to the parent; open the file again in the child",
                self._path)
        return self.raise_poison()

    cdef int grow_to(self, uint64_t size) except -1:
        cdef Descriptor descriptor = self.descriptor
        cdef uint64_t now = self.learn_length()
        cdef int result = 0
        if size > now:
            with nogil:
                result = _os.allocate(descriptor.fd, now, size - now)
            if result == -EFAULT and self.region is not None:
                self.region.fail()  # cut by others meanwhile
            if result < 0:
                raise ResizeFailed(
                    -result, f"cannot grow from {now} to {size} bytes: {strerror(-result).decode()}", self._path)
            self.resized()
        if self.region is not None:
            self.refresh()
        return 0

    cdef int resized(self) except -1:
        # No bytes and no write, but something that the next flush makes durable.
        self.generation += 1
        if self.when == ON_EACH:
            self.sync_all()
        return 0

    cdef int sync_all(self) except -1:
        return self.sync_file(self.region, self.length)

    cdef int settle_debts(self) except -1:
        if self.forked:
            return 0  # nor is there a thread to be stopped, and its locks may be held for ever
        flusher, self.flusher = self.flusher, None
        if flusher is not None:
            flusher.stop()
        # After a sync of another thread, which may be a close.
        with self.turn:
            if self.poison is not None and self.unheard:
                self.raise_poison()
            if self.region is None or self.kind != READ_WRITE or self.policy.trigger is Trigger.NEVER:
                return 0
            if self.dirty():
                self.check()
                if self.poison is None:
                    self.sync_all()
        return 0


cdef int store(MappedFile file, uint64_t start, data, Py_ssize_t wanted) except -1:
    # All of a buffer, which has `wanted` bytes unless that is negative.
    cdef Region region
    cdef Py_buffer view
    file.check_writable()
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        file.check_writable()  # again: the exporter is free to run code that closes this handle
        if wanted >= 0 and view.len != wanted:
            raise ValueError(f"a slice of {wanted} bytes cannot be assigned {view.len}: a mapped file does not shift")
        file.check_range(start, view.len)
        region = file.region
        copy_guarded(region, start, view.len, region.base + start, <const char *>view.buf, type(data) is not bytes)
        if view.len:
            note(file, view.len)
    finally:
        PyBuffer_Release(&view)
    return 0


cdef adopt(cls, Descriptor opened, Kind kind, uint64_t reserve, policy, bint checked):
    cdef MappedFile made = cls.__new__(cls)
    made.descriptor = opened
    made.turn = threading.RLock()
    made.kind = kind
    made.checked = checked
    made._path = opened.path
    made.retired = []
    made.set_policy(policy)
    made.private = kind == COPY_ON_WRITE
    made.stopped = kind == READ_ONLY
    made.length = made.learn_length()
    # A private mapping has nothing to grow into.
    made.region = made.map_stores(opened.fd, 0 if kind == COPY_ON_WRITE else reserve, made.length)
    made.base = made.region.base
    if kind != READ_WRITE:
        made.viewed = made.region
    return made


cdef int wait_for_views(MappedFile mapped, uint64_t size, deadline) except -1:
    # Views end in other threads, in no order and without a word: look again, at intervals that grow to 5 ms.
    cdef uint64_t end = mapped.furthest_view()
    if end <= size:
        return 0
    pause = 0.0002
    while time.monotonic() < deadline:
        time.sleep(min(pause, max(deadline - time.monotonic(), 0)))
        pause = min(2 * pause, 0.005)
        mapped.check_writable()
        end = mapped.furthest_view()
        if end <= size:
            return 0
    raise ResizeFailed(
        _errno.EBUSY, f"cannot shrink to {size} bytes: a live view reaches to byte {end}; "
        "let go of it (and of arrays and memoryviews made from it) first, or give a timeout", mapped._path)
