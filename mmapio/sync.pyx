# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""A mutex in a mapped file that processes share, and that survives the death of its owner."""

import errno as _errno
import time

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EBUSY, EFAULT, EPERM, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset, strerror

from mmapio cimport _fault, _wait
from mmapio._fault cimport LOAD, STORE
from mmapio._os cimport Descriptor
from mmapio.bounds cimport checked_offset, deadline_of
from mmapio.mapping cimport MappedFile
from mmapio.region cimport attach, detach, fault_in

from mmapio import _os as system
from mmapio import _wait as waiting
from mmapio.errors import InvalidMode, MappingFault, Misaligned, MmapIoError, Unsupported
from mmapio.options import MmapMode

cdef extern from "errno.h":
    enum: EDEADLK, EOWNERDEAD

cdef uint32_t MAGIC = 0x58544D6D            # "mMTX"
# While it is initialised. Who finds it under the lock knows that the one who did so was killed.
cdef uint32_t BEGUN = 0x42544D6D            # "mMTB"
cdef size_t CELL_SIZE = sizeof(Cell)
assert CELL_SIZE == 128 and (waiting.MUTEX_LAYOUT & 0xFFFF) <= 64

# Where in the space of file offsets the byte is that is locked while a mutex at offset 0 is initialised: no file reaches there.
cdef uint64_t LOCK_BASE = 1 << 62

# How long a thread sleeps before it looks for signals.
cdef int64_t SLICE_NS = 100_000_000


cdef object FOR_EVER = -1

cdef struct Request:
    void *mutex
    int64_t wait_ns


# The link lies in the region's list until the end, so the region must not be taken away by the collector before.
@cython.no_gc_clear
@cython.final
cdef class SharedMutex:
    """A mutex in a mapped file: one thread of all threads of all processes holds it. It takes SIZE bytes at `offset`.

    The first to come initialises it, in bytes that must be zero; after a reboot, or in a copy of the file, it is initialised again. It is
    robust: when a thread or process dies holding it, the next gets it, and sees :attr:`owner_died`, for as long as nobody has called
    :meth:`mark_consistent`. Uncontended it costs some 250 ns to take and give. It is not reentrant, and only the
    thread that holds it can release it. Writes below it are not made durable by it. Linux only.

    >>> import tempfile, os
    >>> from mmapio import MemoryMappedFile
    >>> with MemoryMappedFile.create_rw(os.path.join(tempfile.mkdtemp(), "shared"), 4096) as m:
    ...     mutex = SharedMutex(m, 0)
    ...     with mutex:
    ...         m[SharedMutex.SIZE] = 1
    ...     mutex.owner_died
    False

    Raises Unsupported where the system has no robust mutexes, InvalidMode unless the mapping is read-write, Misaligned,
    OutOfBounds, MmapIoError when the bytes hold something else or belong to another namespace of processes or C library.
    """

    SIZE = CELL_SIZE

    def __cinit__(self, MappedFile file not None, offset=0):
        if not waiting.HAS_ROBUST_MUTEX:
            raise Unsupported(_errno.ENOTSUP, "this system has no robust mutexes", file.path)
        cdef uint64_t start = checked_offset(offset, file.length, file._path)
        file.check_writable()
        if file.mode is not MmapMode.READ_WRITE:
            raise InvalidMode(_errno.EACCES, "a mutex in a private copy would exclude nobody", file.path)
        if start % 8:
            raise Misaligned(_errno.EINVAL, f"a mutex needs an offset that is a multiple of 8, not {start}", file.path)
        file.check_range(start, CELL_SIZE)
        self.file = file
        self.region = file.region
        self.cell = <Cell *>(file.base + start)
        self.offset = start
        attach(self.region, &self.link, <char *>self.cell, CELL_SIZE)
        self.join()

    def __dealloc__(self):
        detach(&self.link)

    @property
    def owner_died(self):
        """Whether an owner died holding it and nobody has called :meth:`mark_consistent` since."""
        self.region.check()
        self.check_magic()
        return self.word(LOAD, &self.cell.needs_recovery, 0) != 0

    @property
    def is_held(self):
        """Whether it is held through this object."""
        return self.held

    def acquire(self, bint blocking=True, timeout=FOR_EVER):
        """Take the mutex; False when it was not free, at once or within `timeout` seconds. As of ``threading.Lock``.

        Waits without the GIL; signal handlers run. Look at :attr:`owner_died` before you trust what it guards. Raises RuntimeError
        in the thread that holds it, Closed, MappingFault.
        """
        if timeout is FOR_EVER or timeout == FOR_EVER:
            return self.take(blocking, None)
        deadline = deadline_of(timeout)
        if timeout < 0 or not blocking:
            raise ValueError(f"a timeout of {timeout} s makes no sense: it must not be negative, and goes with blocking only")
        return self.take(blocking, deadline)

    cdef bint take(self, bint blocking, deadline) except -1:
        cdef Request request
        cdef int result
        cdef double left
        request.mutex = &self.cell.mutex
        request.wait_ns = 0
        while True:
            self.file.check_writable()
            self.region.check()
            self.check_magic()
            if request.wait_ns == 0:
                # Free, most of the time: not worth letting go of the GIL.
                result = call(lock_now, &request)
            else:
                with nogil:
                    result = call(lock_now, &request)
            if result == 0 or result == -EOWNERDEAD:
                break
            if result == -EFAULT:
                fault_in(self.region.path)
            if result == -EDEADLK:
                raise RuntimeError("this thread holds the mutex already; it is not reentrant")
            if result != -EBUSY and result != -ETIMEDOUT:
                raise MmapIoError(-result, f"cannot lock: {strerror(-result).decode()}", self.region.path)
            PyErr_CheckSignals()
            if not blocking:
                return False
            request.wait_ns = SLICE_NS
            if deadline is not None:
                left = (deadline - time.monotonic()) * 1e9
                if left < 1:
                    return False
                if left < SLICE_NS:
                    request.wait_ns = <int64_t>left
        # The C library links what a thread holds into a list: the memory must stay mapped until the release. A thread that ended
        # without one has left its reference.
        if not self.held:
            Py_INCREF(self)
        self.held = True
        self.owner = _wait.thread_number()
        try:
            self.check_magic()
            if result == -EOWNERDEAD:
                self.word(STORE, &self.cell.needs_recovery, 1)
        except MappingFault:
            self.give()
            raise
        return True

    def mark_consistent(self):
        """Say that what the mutex guards is whole again after :attr:`owner_died`. RuntimeError unless this thread holds it through this object."""
        if not self.held or self.owner != _wait.thread_number():
            raise RuntimeError("only who holds the mutex can tell that what it guards is whole")
        self.check_magic()
        self.word(STORE, &self.cell.needs_recovery, 0)

    def release(self):
        """Give the mutex back. RuntimeError unless this thread holds it through this object."""
        self.give()

    cdef int give(self) except -1:
        cdef Request request
        cdef int result
        if not self.held:
            raise RuntimeError("the mutex is not held")
        request.mutex = &self.cell.mutex
        result = call(unlock_now, &request)
        if result == -EPERM and self.owner != _wait.thread_number():
            raise RuntimeError("the mutex is held by another thread, or by the parent of this process")
        self.held = False
        Py_DECREF(self)
        if result == -EFAULT or result == -EPERM:
            # Its bytes are gone, and so is what it excluded.
            self.lost()
        if result < 0:
            raise MmapIoError(-result, f"cannot unlock: {strerror(-result).decode()}", self.region.path)
        return 0

    def __enter__(self):
        self.take(True, None)
        return self

    def __exit__(self, *exc):
        self.give()
        return False

    def __reduce__(self):
        raise TypeError("a mutex cannot be pickled or copied; make one in the other process, of the same file and offset")

    def __repr__(self):
        return f"<SharedMutex at offset {self.offset}{', held' if self.held else ''}>"

    cdef int check_magic(self) except -1:
        # Zeros, as a file has that was cut and extended again, are a free mutex to the C library, but not one that is shared.
        if self.word(LOAD, &self.cell.magic, 0) != MAGIC:
            self.lost()
        return 0

    cdef int lost(self) except -1:
        raise MappingFault(
            _errno.EFAULT, f"the mutex at offset {self.offset} is gone: the file was cut, or its bytes overwritten by others",
            self.region.path)

    cdef uint32_t word(self, int operation, uint32_t *place, uint32_t value) except? 0xFFFFFFFF:
        cdef uint64_t seen = 0
        if _fault.word32(operation, place, value, &seen, 4) < 0:
            fault_in(self.region.path)
        return seen

    cdef int join(self) except -1:
        # One process at a time looks at the cell and initialises it.
        cdef Descriptor descriptor = self.file.descriptor
        own = system.reopen(descriptor)
        try:
            system.lock_byte(own, LOCK_BASE + self.offset, True, wait=True)
            # It may have taken long.
            self.file.check_writable()
            return self.join_locked(descriptor)
        finally:
            # Not left to the descriptor's end: a child that was forked meanwhile has a copy of it.
            system.unlock_byte(own, LOCK_BASE + self.offset)

    cdef int join_locked(self, Descriptor descriptor) except -1:
        cdef Cell wanted, found
        cdef uint64_t seen = 0
        cdef int result
        memset(&wanted, 0, sizeof(wanted))
        device, inode, _, _, _, _ = system.identity(descriptor)
        boot = system.boot_id()
        wanted.layout = waiting.MUTEX_LAYOUT
        wanted.device = device
        wanted.inode = inode
        wanted.namespace = waiting.pid_namespace()
        memcpy(wanted.boot, <const char *>boot, 16)
        if _fault.copy(&found, self.cell, sizeof(found)) < 0:
            fault_in(self.region.path)
        if found.magic == MAGIC:
            if memcmp(found.boot, wanted.boot, 16) == 0 and found.device == wanted.device and found.inode == wanted.inode:
                self.must_match("C library", found.layout, wanted.layout)
                self.must_match("namespace of processes", found.namespace, wanted.namespace)
                if not _wait.mutex_is_ours(&found.mutex):
                    raise MmapIoError(_errno.EINVAL, f"the mutex at offset {self.offset} is damaged", self.region.path)
                return 0
            # Who held it before the reboot, or when the file was copied, may have left things half done.
            wanted.needs_recovery = found.needs_recovery or _wait.mutex_is_taken(&found.mutex)
        elif found.magic == BEGUN:
            wanted.needs_recovery = found.needs_recovery
        elif any((<char *>&found)[:sizeof(found)]):
            raise MmapIoError(
                _errno.EINVAL, f"the {CELL_SIZE} bytes at offset {self.offset} are not zero and no mutex", self.region.path)
        result = _wait.make_mutex(&wanted.mutex)
        if result < 0:
            raise MmapIoError(-result, f"cannot make a mutex: {strerror(-result).decode()}", self.region.path)
        wanted.magic = BEGUN
        # In this order: whoever comes after a death between two of them finds what it needs to begin again.
        if (
            _fault.word32(STORE, &self.cell.needs_recovery, wanted.needs_recovery, &seen, 4) < 0
            or _fault.word32(STORE, &self.cell.magic, BEGUN, &seen, 4) < 0
            or _fault.copy(self.cell, &wanted, sizeof(wanted)) < 0
            or _fault.word32(STORE, &self.cell.magic, MAGIC, &seen, 4) < 0
        ):
            fault_in(self.region.path)
        return 0

    cdef int must_match(self, what, uint64_t found, uint64_t own) except -1:
        if found != own:
            raise MmapIoError(
                _errno.EINVAL, f"the mutex at offset {self.offset} is used from another {what} ({found:#x}, this process has "
                f"{own:#x}): neither could tell the other's dead owners", self.region.path)
        return 0


cdef int lock_now(void *argument) noexcept nogil:
    return _wait.lock_mutex((<Request *>argument).mutex, (<Request *>argument).wait_ns)


cdef int unlock_now(void *argument) noexcept nogil:
    return _wait.unlock_mutex((<Request *>argument).mutex)


cdef int is_there(void *mutex) noexcept nogil:
    return _fault.touch(mutex, 64, 63) == 0 and _wait.mutex_is_own(mutex)


cdef int mend_now(void *argument) noexcept nogil:
    return _wait.mend_mutexes(is_there)


cdef int call(int (*function)(void *) noexcept nogil, Request *request) noexcept nogil:
    # A fault may have come from the page of another mutex that this thread holds: then it is forgotten, and the call made again.
    cdef int result = _fault.call(function, request)
    cdef int attempts = 2
    while result == -EFAULT:
        _fault.call(mend_now, NULL)
        attempts -= 1
        if attempts == 0:
            break
        result = _fault.call(function, request)
    return result
