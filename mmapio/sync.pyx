# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""A mutex in a mapped file that processes share, and that survives the death of its owner."""

import errno as _errno
import time

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EBUSY, EFAULT, EPERM, ETIMEDOUT
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset, strerror

from mmapio cimport _fault, _wait
from mmapio._fault cimport LOAD, STORE
from mmapio.bounds cimport checked_offset
from mmapio.mapping cimport MappedFile
from mmapio.region cimport Link, Region, attach, detach, fault_in

from mmapio import _os as system
from mmapio import _wait as waiting
from mmapio.errors import InvalidMode, MappingFault, Misaligned, MmapIoError, Unsupported
from mmapio.options import MmapMode

cdef extern from "errno.h":
    enum: EDEADLK, EOWNERDEAD

# One mutex in a file. All but the flag is written by who initialises it and compared by who joins.
cdef struct Cell:
    uint32_t magic              # MAGIC, stored last
    uint32_t layout             # of whose C library the mutex is
    uint8_t boot[16]            # a mutex outlives no reboot: its owners' numbers mean nothing then
    uint64_t device             # nor a copy of the file
    uint64_t inode
    uint64_t namespace          # owners are known by thread number, which another namespace of processes reads differently
    uint32_t needs_recovery     # an owner died, and none has said since that what it left is whole
    uint32_t reserved0
    uint64_t reserved1
    char mutex[64]

cdef uint32_t MAGIC = 0x58544D6D            # "mMTX"
cdef size_t CELL_SIZE = sizeof(Cell)
assert CELL_SIZE == 128 and (waiting.MUTEX_LAYOUT & 0xFFFF) <= 64

# Where in the space of file offsets the byte is that is locked while a mutex at offset 0 is initialised: no file reaches there.
cdef uint64_t LOCK_BASE = 1 << 62

# How long a thread sleeps before it looks for signals.
cdef int64_t SLICE_NS = 100_000_000


cdef struct Request:
    void *mutex
    int64_t wait_ns


# What each thread holds, by the thread's number. The C library links these mutexes to each other, through their own memory.
cdef dict HELD = {}


# The link lies in the region's list until the end, so the region must not be taken away by the collector before.
@cython.no_gc_clear
@cython.final
cdef class SharedMutex:
    """A mutex in a mapped file: one thread of all threads of all processes holds it. It takes SIZE bytes at `offset`.

    The first to come initialises it, in bytes that must be zero; after a reboot, or in a copy of the file, it is initialised again. It is
    robust: when a thread or process dies holding it, the next gets it, and sees :attr:`owner_died`, for as long as nobody has called
    :meth:`mark_consistent`. Uncontended it costs some 150 ns to take and give. It is not reentrant, and only the
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

    cdef MappedFile file
    cdef Region region
    cdef Cell *cell
    cdef readonly uint64_t offset
    cdef bint held
    cdef bint lost              # while it was held, its bytes were cut off, or overwritten
    cdef uint64_t owner         # the thread that holds it
    cdef Cell shadow            # what the bytes were after the last operation on any mutex of that thread
    cdef Link link

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
        """Whether an owner died holding it and nobody has called :meth:`mark_consistent` since. Raises MappingFault."""
        cdef uint64_t flag = 0
        self.region.check()
        self.access(LOAD, &self.cell.needs_recovery, &flag)
        return flag != 0

    @property
    def is_held(self):
        """Whether it is held through this object, by whichever thread."""
        return self.held

    def acquire(self, bint blocking=True, timeout=-1):
        """Take the mutex; False when it was not free, at once or within `timeout` seconds. As of ``threading.Lock``.

        Waits without the GIL; signal handlers run. Look at :attr:`owner_died` before you trust what it guards. Raises RuntimeError
        in the thread that holds it, Closed, MappingFault.
        """
        cdef Request request
        cdef int result
        cdef uint64_t flag = 1, self_number = _wait.thread_number()
        timeout = timeout + 0.0
        if timeout != timeout or (timeout != -1 and (timeout < 0 or not blocking)):
            raise ValueError(f"a timeout of {timeout} s makes no sense: it must not be negative, and goes with blocking only")
        deadline = None if timeout == -1 else time.monotonic() + timeout
        request.mutex = &self.cell.mutex
        request.wait_ns = 0
        while True:
            self.file.check_writable()
            self.region.check()
            mend_held(self_number)
            self.check_there()
            if request.wait_ns == 0:
                # Free, most of the time: not worth letting go of the GIL.
                result = _fault.call(lock_now, &request)
            else:
                with nogil:
                    result = _fault.call(lock_now, &request)
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
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if left * 1e9 < SLICE_NS:
                    request.wait_ns = <int64_t>(left * 1e9) + 1
        self.take_over(self_number)
        # What was locked may have been zeros that have come in place of the mutex; then nobody is excluded by it.
        self.check_there()
        if result == -EOWNERDEAD:
            self.access(STORE, &self.cell.needs_recovery, &flag)
        return True

    def mark_consistent(self):
        """Say that what the mutex guards is whole again after :attr:`owner_died`. RuntimeError unless this thread holds it."""
        cdef uint64_t flag = 0
        if not self.held or self.owner != _wait.thread_number():
            raise RuntimeError("only who holds the mutex can tell that what it guards is whole")
        self.region.check()
        self.access(STORE, &self.cell.needs_recovery, &flag)

    def release(self):
        """Give the mutex back. RuntimeError unless this thread holds it; MappingFault when it was lost meanwhile."""
        cdef Request request
        cdef int result
        if not self.held:
            raise RuntimeError("the mutex is not held")
        if self.owner != _wait.thread_number():
            raise RuntimeError("the mutex is held by another thread, or by the parent of this process")
        mend_held(self.owner)
        request.mutex = &self.cell.mutex
        result = _fault.call(unlock_now, &request)
        self.let_go()
        if self.lost or result == -EFAULT:
            self.lost = False
            fault_in(self.region.path)
        if result < 0:
            raise MmapIoError(-result, f"cannot unlock: {strerror(-result).decode()}", self.region.path)

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, *exc):
        self.release()
        return False

    def __reduce__(self):
        raise TypeError("a mutex cannot be pickled or copied; make one in the other process, of the same file and offset")

    def __repr__(self):
        return f"<SharedMutex at offset {self.offset}{', held' if self.held else ''}>"

    cdef int access(self, int operation, uint32_t *word, uint64_t *value) except -1:
        # Of the cell's words, below a guard.
        if _fault.word32(operation, word, value[0], value, 4) < 0:
            fault_in(self.region.path)
        return 0

    cdef int check_there(self) except -1:
        # Zeros, as a file has where it was cut and extended again, are a mutex to the C library: one that is free.
        cdef uint64_t magic = 0
        self.access(LOAD, &self.cell.magic, &magic)
        if magic != MAGIC:
            raise MappingFault(
                _errno.EFAULT, f"the mutex at offset {self.offset} is gone: the file was cut, or its bytes overwritten by others",
                self.region.path)
        return 0

    cdef int take_over(self, uint64_t thread) except -1:
        # The C library has linked the mutex into what this thread holds: its memory must stay mapped until the release.
        if self.held:
            # By a thread that has ended since; this one got it from the kernel.
            HELD[self.owner].remove(self)
        else:
            Py_INCREF(self)
        self.held = True
        self.lost = False
        self.owner = thread
        HELD.setdefault(thread, []).append(self)
        remember_held(thread)
        return 0

    cdef int let_go(self) except -1:
        cdef list others = HELD[self.owner]
        self.held = False
        others.remove(self)
        if others:
            remember_held(self.owner)
        else:
            del HELD[self.owner]
        Py_DECREF(self)
        return 0

    cdef int join(self) except -1:
        # One process at a time looks at the cell and initialises it. The lock goes with its own open file description.
        own = system.reopen(self.file.descriptor)
        system.lock_byte(own, LOCK_BASE + self.offset, True, wait=True)
        try:
            self.file.check_writable()  # again: waiting for the lock may have taken long
            self.initialise()
        finally:
            # Not by closing alone: a child forked meanwhile has the description open, too.
            system.unlock_byte(own, LOCK_BASE + self.offset)
        return 0

    cdef int initialise(self) except -1:
        cdef Cell wanted, found
        cdef uint64_t magic = MAGIC
        cdef int result
        memset(&wanted, 0, sizeof(wanted))
        device, inode, _, _, _, _ = system.identity(self.file.descriptor)
        boot = system.boot_id()
        wanted.magic = MAGIC
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
                return 0
        elif any((<char *>&found)[:sizeof(found)]) and not was_begun(&found, &wanted):
            raise MmapIoError(
                _errno.EINVAL, f"the {CELL_SIZE} bytes at offset {self.offset} are not zero and no mutex", self.region.path)
        # In a copy of its own and from there in one piece, so that a fault can only happen in the copying.
        result = _wait.make_mutex(&wanted.mutex)
        if result < 0:
            raise MmapIoError(-result, f"cannot make a mutex: {strerror(-result).decode()}", self.region.path)
        wanted.magic = 0
        if found.magic == MAGIC:
            # Who held it before the reboot may have left things half done.
            wanted.needs_recovery = found.needs_recovery or any(found.mutex[:4])
        if _fault.copy(self.cell, &wanted, sizeof(wanted)) < 0:
            fault_in(self.region.path)
        # Last: until now it was no mutex to anybody.
        return self.access(STORE, &self.cell.magic, &magic)

    cdef int must_match(self, what, uint64_t found, uint64_t own) except -1:
        if found != own:
            raise MmapIoError(
                _errno.EINVAL, f"the mutex at offset {self.offset} is used from another {what} ({found:#x}, this process has "
                f"{own:#x}): neither could tell the other's dead owners", self.region.path)
        return 0


cdef bint was_begun(Cell *found, Cell *wanted) noexcept:
    # Left by an initialiser that was killed before it stored the magic number: the words that bind a mutex to its place, or
    # as many of them as were copied.
    return found.magic == 0 and found.layout == wanted.layout and memcmp(found.boot, wanted.boot, 16) == 0


cdef int mend_held(uint64_t thread) except -1:
    # Before the C library follows the links between the mutexes that this thread holds. One whose bytes are gone, or zero
    # again, is given private memory with what was there last: its links hold, and its release harms nobody.
    cdef SharedMutex mutex
    cdef uint64_t magic = 0
    cdef list mutexes = HELD.get(thread)
    if mutexes is None:
        return 0
    for each in mutexes:
        mutex = each
        if mutex.lost:
            continue
        if _fault.word32(LOAD, &mutex.cell.magic, 0, &magic, 4) < 0 or magic != MAGIC:
            if _fault.replace(mutex.region.slot, mutex.cell, &mutex.shadow, CELL_SIZE) < 0:
                raise MemoryError
            mutex.lost = True
    return 0


cdef int remember_held(uint64_t thread) except -1:
    # After an operation, which has changed links.
    cdef SharedMutex mutex
    for each in HELD[thread]:
        mutex = each
        if not mutex.lost:
            _fault.copy(&mutex.shadow, mutex.cell, CELL_SIZE)
    return 0


cdef int lock_now(void *argument) noexcept nogil:
    return _wait.lock_mutex((<Request *>argument).mutex, (<Request *>argument).wait_ns)


cdef int unlock_now(void *argument) noexcept nogil:
    return _wait.unlock_mutex((<Request *>argument).mutex)
