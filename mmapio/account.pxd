# What was written to a file and is not known to be durable yet, and the policy that says when it must be.

from libc.stdint cimport uint64_t

from mmapio._os cimport Descriptor
from mmapio.region cimport Region


cdef enum When:
    ON_DEMAND, ON_EACH, ON_BYTES, ON_WRITES, ON_TIMER


cdef class Account:
    cdef uint64_t bytes_pending
    cdef uint64_t writes_pending
    cdef uint64_t bytes_exported    # of the writable views that are out: any of their bytes may be changing
    cdef uint64_t generation        # counts writes, never set back
    cdef uint64_t durable_generation
    cdef uint64_t bound
    cdef When when
    cdef bint stopped               # closed, poisoned, read-only or another process' after a fork: no write may begin
    cdef bint private               # what is written stays in this process: nothing is ever owed to the file
    cdef Descriptor parent          # the directory of a file that this handle created, until the first full flush
    cdef bint unnamed               # created by this handle, and its name in the directory not synced yet
    cdef object policy
    cdef object poison              # the arguments of the FlushFailed that every later write and flush raises
    cdef bint unheard               # the sync failed where nothing could be raised: the next call, or close, says so
    cdef object turn                # held for each sync: a failure is told once, to whoever asks first
    cdef object _path
    cdef Descriptor descriptor      # None once closed

    cdef int set_policy(self, policy) except -1
    cdef int after_write(self) except -1
    cdef int sync_due(self) except -1
    cdef bint dirty(self) noexcept
    cdef Descriptor open_descriptor(self)
    cdef int sync_file(self, Region region, uint64_t length) except -1
    cdef int sync_file_now(self, Region region, uint64_t length) except -1
    cdef int sync_pages(self, Region region, uint64_t offset, uint64_t count) except -1
    cdef int sync_pages_now(self, Region region, uint64_t offset, uint64_t count) except -1
    cdef int begin_writeback(self, Region region, uint64_t offset, uint64_t count) except -1
    cdef int raise_poison(self) except -1
    cdef int fail(self, int result) except -1
    cdef int sync_all(self) except -1
    cdef int refuse_write(self) except -1


# Every write path calls this once its bytes are in place, with their number. May flush, as the policy says.
cdef inline int note(Account account, uint64_t count) except -1:
    account.bytes_pending += count
    account.writes_pending += 1
    account.generation += 1
    if account.when != ON_DEMAND:
        account.after_write()
    return 0
