# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""A mutex in a mapped file that processes share, and that survives the death of its owner."""

import errno as _errno
import os
import time

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EBUSY, EFAULT, EPERM, ETIMEDOUT
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset, strerror

from mmapio cimport _fault, _wait
from mmapio._fault cimport LOAD, STORE
from mmapio.bounds cimport checked_offset, deadline_of
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
    uint32_t reserved
    uint64_t incarnation        # random: another mutex in the same place is not this one
    char mutex[64]

cdef uint32_t MAGIC = 0x58544D6D            # "mMTX"
# In its place while the cell is being made: whoever finds it, below the lock, knows that the maker was killed.
cdef uint32_t BEING_MADE = 0x3F544D6D
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
        self.check_there()
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
        deadline = deadline_of(timeout)
        if timeout == -1:
            deadline = None
        elif timeout < 0 or not blocking:
            raise ValueError(f"a timeout of {timeout} s makes no sense: it must not be negative, and goes with blocking only")
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
            if result == -ETIMEDOUT:
                _fault.call(disown_now, &request)
            elif result != -EBUSY:
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
        self.check_there()
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
        result = 0 if self.lost else _fault.call(unlock_now, &request)
        self.let_go()
        if self.lost:
            self.gone()
        if result == -EFAULT:
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
            self.gone()
        return self.check_kind()

    cdef int gone(self) except -1:
        raise MappingFault(
            _errno.EFAULT, f"the mutex at offset {self.offset} is gone: the file was cut, or its bytes overwritten by others",
            self.region.path)

    cdef int check_kind(self) except -1:
        # The C library trusts these bytes, and ends the process where they make no sense to it.
        cdef Cell found
        if _fault.copy(&found, self.cell, CELL_SIZE) < 0:
            fault_in(self.region.path)
        if _wait.mutex_kind(&found.mutex) != KIND:
            raise MmapIoError(
                _errno.EBADMSG, f"the mutex at offset {self.offset} is damaged: its bytes were overwritten by others",
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
        cdef uint64_t magic = MAGIC, being_made = BEING_MADE, died
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
        wanted.incarnation = int.from_bytes(os.urandom(8), "little")
        if _fault.copy(&found, self.cell, sizeof(found)) < 0:
            fault_in(self.region.path)
        if found.magic == MAGIC:
            if memcmp(found.boot, wanted.boot, 16) == 0 and found.device == wanted.device and found.inode == wanted.inode:
                self.must_match("C library", found.layout, wanted.layout)
                self.must_match("namespace of processes", found.namespace, wanted.namespace)
                return self.check_kind()
        elif found.magic != BEING_MADE and any((<char *>&found)[:sizeof(found)]):
            raise MmapIoError(
                _errno.EINVAL, f"the {CELL_SIZE} bytes at offset {self.offset} are not zero and no mutex", self.region.path)
        # In a copy of its own and from there in one piece, so that a fault can only happen in the copying.
        result = _wait.make_mutex(&wanted.mutex)
        if result < 0:
            raise MmapIoError(-result, f"cannot make a mutex: {strerror(-result).decode()}", self.region.path)
        # Who held it before the reboot may have left things half done. Noted first, for this process may be killed, too.
        died = found.needs_recovery or (found.magic == MAGIC and any(found.mutex[:4]))
        wanted.needs_recovery = died
        self.access(STORE, &self.cell.needs_recovery, &died)
        wanted.magic = BEING_MADE
        self.access(STORE, &self.cell.magic, &being_made)
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


cdef int mend_held(uint64_t thread) except -1:
    # Before the C library follows the links between the mutexes that this thread holds, those whose bytes are gone, or are
    # not what they were, are taken out of them.
    cdef SharedMutex mutex
    cdef Cell found
    cdef list lost = []
    for each in HELD.get(thread, ()):
        mutex = each
        if mutex.lost:
            continue
        if (
            _fault.copy(&found, mutex.cell, CELL_SIZE) < 0
            or found.magic != MAGIC
            or found.incarnation != mutex.shadow.incarnation
        ):
            mutex.lost = True
            lost.append(mutex)
    for each in lost:
        unlink(each, lost)
    if lost:
        remember_held(thread)
    return 0


cdef int unlink(SharedMutex mutex, list lost) except -1:
    # By what its links were last. A neighbour that is lost, too, is told in its shadow.
    cdef uint64_t *back = <uint64_t *>(mutex.shadow.mutex + _wait.LINK_BACK)
    cdef uint64_t *on = <uint64_t *>(mutex.shadow.mutex + _wait.LINK_ON)
    if _wait.LINK_ON and back[0] and on[0]:
        set_link(lost, (on[0] & ~<uint64_t>1) - sizeof(void *), back[0])
        set_link(lost, back[0] & ~<uint64_t>1, on[0])
    return 0


cdef int set_link(list lost, uint64_t place, uint64_t link) except -1:
    cdef SharedMutex other
    cdef uint64_t ignored = 0
    for each in lost:
        other = each
        if <uint64_t>other.cell <= place < <uint64_t>other.cell + CELL_SIZE:
            memcpy(<char *>&other.shadow + (place - <uint64_t>other.cell), &link, sizeof(link))
            return 0
    _fault.word64(STORE, <void *>place, link, &ignored, 4)
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


cdef int disown_now(void *argument) noexcept nogil:
    return _wait.disown_mutex((<Request *>argument).mutex)


cdef unsigned int kind_of_ours() except? 0:
    cdef char place[64]
    memset(place, 0, sizeof(place))
    if _wait.make_mutex(place) < 0:
        return 0
    return _wait.mutex_kind(place)


# What the mutexes that are made here have for their kind.
cdef unsigned int KIND = kind_of_ours()


cdef int unlock_now(void *argument) noexcept nogil:
    return _wait.unlock_mutex((<Request *>argument).mutex)
