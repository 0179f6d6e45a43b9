# cython: language_level=3, auto_pickle=False
"""What was written and is not known to be durable: bytes and writes, each counted once, on every path."""

import errno as _errno

cimport cython
from libc.stdint cimport uint64_t
from libc.string cimport strerror

from mmapio cimport _os, _vm
from mmapio._os cimport Descriptor
from mmapio.region cimport Region

from mmapio import _os as system
from mmapio.errors import Closed, FlushFailed
from mmapio.options import Trigger

cdef dict WHEN = {
    Trigger.NEVER: ON_DEMAND,
    Trigger.MANUAL: ON_DEMAND,
    Trigger.ALWAYS: ON_EACH,
    Trigger.BYTES: ON_BYTES,
    Trigger.WRITES: ON_WRITES,
    Trigger.MILLIS: ON_TIMER,
}


# Writable views that go later than their file, collected in one cycle with it, still end on its books.
@cython.no_gc_clear
cdef class Account:
    """The books of one handle. The counters decide when a policy flushes, never whether a flush does anything."""

    def __init__(self):
        raise TypeError("an account is part of a mapped file; use MemoryMappedFile.create_rw, open_rw or open_ro")

    @property
    def flush_policy(self):
        """The :class:`FlushPolicy` that the file was opened with."""
        return self.policy

    @property
    def pending_bytes(self):
        """Bytes written since they were last flushed; a writable view counts whole while it is out.

        A byte written twice counts twice. Only a guide to when the next flush is due: :meth:`flush` never relies on it.
        """
        return 0 if self.private else self.bytes_pending + self.bytes_exported

    def needs_flush(self):
        """Whether anything may have been written since the last full flush."""
        return self.dirty()

    cdef int set_policy(self, policy) except -1:
        self.policy = policy
        self.when = WHEN[policy.trigger]
        self.bound = policy.bound
        return 0

    cdef int after_write(self) except -1:
        if not self.private and (
            self.when == ON_EACH
            or (self.when == ON_BYTES and self.bytes_pending >= self.bound)
            or (self.when == ON_WRITES and self.writes_pending >= self.bound)
        ):
            return self.sync_due()
        return 0

    cdef int sync_due(self) except -1:
        # Another thread's sync that began after this write has made it durable, too.
        cdef uint64_t generation = self.generation
        with self.turn:
            if self.poison is not None or self.durable_generation < generation:
                self.sync_all()
        return 0

    cdef bint dirty(self) noexcept:
        return not self.private and (self.generation != self.durable_generation or self.bytes_exported != 0)

    cdef Descriptor open_descriptor(self):
        # Another thread may have closed the handle while this one copied without the GIL.
        if self.descriptor is None:
            raise Closed(_errno.EBADF, "the mapped file was closed meanwhile; what was written is not flushed", self._path)
        return self.descriptor

    cdef int sync_file(self, Region region, uint64_t length) except -1:
        # Everything. What is written meanwhile stays on the books.
        with self.turn:
            self.raise_poison()
            self.sync_file_now(region, length)
        return 0

    cdef int sync_file_now(self, Region region, uint64_t length) except -1:
        cdef uint64_t count = self.bytes_pending, writes = self.writes_pending, generation = self.generation
        cdef Descriptor descriptor = self.open_descriptor()
        cdef Region held = region
        cdef int result
        with nogil:
            result = _os.sync_file(descriptor.fd, held.base, length)
        if result < 0:
            self.fail(result)
        if self.unnamed:
            # Bytes that no name leads to are not durable. Where the directory cannot be opened, the file's own metadata must do.
            try:
                system.sync(descriptor if self.parent is None else self.parent, metadata=True)
            except OSError as error:
                self.fail(-error.errno)
            self.unnamed = False
            self.parent = None
        # No less than nothing: a destructor that ran meanwhile, in this thread, may have synced and settled the same.
        self.bytes_pending -= min(count, self.bytes_pending)
        self.writes_pending -= min(writes, self.writes_pending)
        self.durable_generation = max(generation, self.durable_generation)
        return 0

    cdef int sync_pages(self, Region region, uint64_t offset, uint64_t count) except -1:
        with self.turn:
            self.raise_poison()
            self.sync_pages_now(region, offset, count)
        return 0

    cdef int sync_pages_now(self, Region region, uint64_t offset, uint64_t count) except -1:
        cdef uint64_t covered = min(count, self.bytes_pending)
        cdef Descriptor descriptor = self.open_descriptor()
        cdef Region held = region
        cdef uint64_t first = offset // _vm.PAGE * _vm.PAGE
        cdef int result
        with nogil:
            result = _vm.sync_range(descriptor.fd, held.base + first, offset + count - first)
        if result < 0:
            self.fail(result)
        self.bytes_pending -= min(covered, self.bytes_pending)
        return 0

    cdef int begin_writeback(self, Region region, uint64_t offset, uint64_t count) except -1:
        cdef Descriptor descriptor = self.open_descriptor()
        cdef Region held = region
        cdef uint64_t first = offset // _vm.PAGE * _vm.PAGE
        cdef int result
        with nogil:
            result = _vm.start_writeback(descriptor.fd, held.base + first, first, offset + count - first)
        return self.fail(result) if result < 0 else 0

    cdef int raise_poison(self) except -1:
        if self.poison is not None:
            self.unheard = False
            raise FlushFailed(*self.poison)
        return 0

    cdef int fail(self, int result) except -1:
        self.stopped = True
        self.poison = (-result, f"sync failed: {strerror(-result).decode()}; "
                       "bytes written since the last flush may be lost, close the file and check it", self._path)
        raise FlushFailed(*self.poison)

    cdef int sync_all(self) except -1:
        raise TypeError("this account has no file")

    cdef int refuse_write(self) except -1:
        raise TypeError("this account has no file")
