# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""A thread that goes ahead of a fast writer: it allocates the next window of a segment and has its pages ready to be written.

Where a log is synced all the time it also writes what it allocated, zeros: the first sync of data in blocks that were never written
waits for a commit of the file system's journal, every later one only for the data.

Where the segment is all ready it makes a spare one, for the roll to give it a header and a name.

It never takes the GIL while it is at work, so a loop of appends does not have to let go of it. What it did is found out by who needs
the room: when it failed, or was too slow, that one does it himself.
"""

import threading

cimport cython
from libc.errno cimport EFAULT, ENOMEM
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from mmapio cimport _memory as memory
from mmapio cimport _os, _vm, _wait
from mmapio._os cimport Descriptor
from mmaplog.control cimport Control
from mmaplog.format cimport SEGMENT_HEADER_SIZE, SYNCING_AHEAD
from mmaplog.segment cimport Segment

from mmapio import _os as system

# A wake-up that was lost costs no more than this.
cdef int64_t SLICE_NS = 1_000_000_000
# Pages are made ready by so many bytes at a time, so that whoever waits for the end of the work does not wait for all of it.
cdef uint64_t PIECE = 256 << 10
# What is written at a time the kernel keeps together, and writes whole for any change in it: little where that happens with every
# sync, and else as much as makes it cheap.
cdef size_t SMALL = _vm.PAGE
cdef size_t LARGE = 8 * _vm.PAGE
# A spare segment has so many blocks, and is made where no segment is smaller.
cdef uint64_t SPARE_SIZE = 2 << 20


# Its descriptors must stay until __dealloc__ has waited for the thread: else it would write to whatever gets their numbers.
@cython.no_gc_clear
cdef class Preparer:
    """One thread, and at most one request at a time. `lock` is what makes its log the one that writes, and stays so while it works."""

    def __cinit__(self, Descriptor lock, Control control):
        self.lock = lock
        self.control = control
        self.work = <Work *>calloc(1, sizeof(Work))
        if self.work == NULL:
            raise MemoryError
        self.work.directory_fd = self.work.spare_fd = -1
        self.work.inflight = &control.hot.sync_inflight
        try:
            threading.Thread(target=serve, args=(<uintptr_t>self.work,), name="mmaplog-preparer", daemon=True).start()
        except RuntimeError:
            free(self.work)
            self.work = NULL
            raise
        except BaseException:
            # By a signal, when it may be running already: what it looks at stays, for good if it is not.
            end(self.work)
            self.work = NULL
            raise

    def __dealloc__(self):
        # The thread must be through with the file before the last reference to it goes.
        end(self.work)

    cdef bint is_busy(self) noexcept nogil:
        return self.work != NULL and memory.load_acquire_u32(&self.work.done) != self.work.asked

    cdef int ask(self, Segment segment, uint64_t start, uint64_t stop, bint written) except -1:
        # For room in [start, stop) of a segment, perhaps in blocks that have been written. Only while it is not busy.
        if self.work == NULL or self.is_busy():
            return 0
        if written:
            # Not the descriptor that acknowledges appends: the kernel tells each description once of a write that failed, and that
            # one must hear of it itself. One that is opened later, as after a roll, does not: hence `failure`.
            self.sync_through = system.open_file(segment.name, True, follow=False, directory=segment.directory)
        self.together = not written
        self.work.sync_fd = self.sync_through.fd if written else -1
        self.file = segment.handle()
        self.work.fd = self.file.descriptor.fd
        self.work.base = segment.base
        self.work.start = start
        self.work.stop = stop
        begin(self.work)
        return 0

    cdef int ask_spare(self, Descriptor directory, uint64_t size) except -1:
        # For a file of this size that the next segment can be made of, at once. Only while it is not busy.
        if self.work == NULL or self.is_busy() or self.work.spare_fd >= 0:
            return 0
        self.directory = directory
        self.work.directory_fd = directory.fd
        self.work.stop = size
        begin(self.work)
        return 0

    cdef Descriptor take_spare(self):
        # Without a name: it goes when nobody gives it one. None where it was not asked for, or could not be had.
        cdef Descriptor taken
        with nogil:
            self.finish()
        if self.work == NULL or self.work.spare_fd < 0:
            return None
        taken = Descriptor(self.work.spare_fd, self.directory.path)
        self.work.spare_fd = -1
        return taken

    cdef void finish(self) noexcept nogil:
        # Waits until it is not busy: some hundred microseconds.
        if self.work != NULL:
            wait_until_done(self.work)

    cdef int failure(self) noexcept nogil:
        # What the sync among the last request came to, once it is through: 0 or a negative errno.
        return 0 if self.work == NULL else self.work.failure

    cdef int abandon(self) except -1:
        # In a forked child, where there is no thread. The lock is the parent's.
        # Unless it was opened that very moment.
        if self.work != NULL and self.work.spare_fd >= 0:
            _os.close_file(self.work.spare_fd)
        self.work = NULL
        self.file = self.sync_through = self.directory = self.lock = self.control = None
        return 0

    cdef int stop(self) except -1:
        # For good. A request under way is carried out before.
        cdef Work *work = self.work
        self.work = NULL
        with nogil:
            end(work)
        self.file = self.sync_through = self.directory = self.lock = self.control = None
        return 0


cdef void begin(Work *work) noexcept nogil:
    memory.store_release_u32(&work.asked, work.asked + 1)
    _wait.wake_word(&work.asked, 1)


cdef void wait_until_done(Work *work) noexcept nogil:
    cdef uint32_t done = memory.load_acquire_u32(&work.done)
    while done != work.asked:
        _wait.wait_word(&work.done, done, SLICE_NS)
        done = memory.load_acquire_u32(&work.done)


cdef void end(Work *work) noexcept nogil:
    if work == NULL:
        return
    wait_until_done(work)
    memory.store_release_u32(&work.ending, 1)
    # From here on the memory is the thread's.
    begin(work)


def serve(uintptr_t address):
    """The thread: carries out requests until the end."""
    cdef Work *work = <Work *>address
    with nogil:
        work_until_end(work)


cdef void work_until_end(Work *work) noexcept nogil:
    cdef uint32_t asked
    cdef uint64_t at
    while True:
        asked = memory.load_acquire_u32(&work.asked)
        if asked == work.done:
            _wait.wait_word(&work.asked, asked, SLICE_NS)
            continue
        if work.ending:
            if work.spare_fd >= 0:
                _os.close_file(work.spare_fd)
            free(work)
            return
        # A disk without room, or a file that was cut: who needs the room meets the same, and can say so.
        work.failure = 0
        if work.directory_fd >= 0:
            make_spare(work)
            work.directory_fd = -1
        elif make_ready(work.fd, work.base, work.start, work.stop, SMALL if work.sync_fd >= 0 else LARGE) == 0 and work.sync_fd >= 0:
            memory.set_bits(work.inflight, SYNCING_AHEAD)
            work.failure = _os.sync_file(work.sync_fd, NULL, 0)
            if work.failure == 0:
                memory.clear_bits(work.inflight, SYNCING_AHEAD)
        memory.store_release_u32(&work.done, asked)
        _wait.wake_word(&work.done, 0x7FFFFFFF)


cdef void make_spare(Work *work) noexcept nogil:
    # Its blocks are set aside, and the first page is on the device: what follows there, a header, is data in a block that was written before,
    # and its sync is the only one that a roll waits for.
    cdef int fd = _os.open_unnamed(work.directory_fd), failure
    cdef void *zeros
    if fd < 0:
        return
    # A child that is forked from now on can close it.
    work.spare_fd = fd
    zeros = calloc(1, SEGMENT_HEADER_SIZE)
    failure = -ENOMEM if zeros == NULL else _os.allocate(fd, 0, work.stop)
    if failure == 0:
        # Where that cannot be, the blocks come with the windows.
        _os.set_blocks_aside(fd, 0, SPARE_SIZE)
        failure = _os.write_all(fd, zeros, SEGMENT_HEADER_SIZE, 0)
    if failure == 0:
        failure = _os.sync_file(fd, NULL, 0)
    free(zeros)
    if failure < 0:
        work.spare_fd = -1
        _os.close_file(fd)


cdef int make_ready(int fd, char *base, uint64_t start, uint64_t stop, size_t piece) noexcept nogil:
    # From the end of the file on. Where a store meets a page that is not there, the kernel takes three times as long for it.
    cdef uint64_t at = start & ~<uint64_t>(_vm.PAGE - 1)
    cdef int failure
    if _os.size_of(fd) < <long long>start:
        return -EFAULT  # cut by others: zeros would stand for what is gone
    failure = _os.allocate_written(fd, start, stop - start, piece)
    while failure == 0 and at < stop:
        failure = _vm.advise(base + at, min(PIECE, stop - at), _vm.ADVICE_POPULATE_WRITE)
        at += PIECE
    return failure
