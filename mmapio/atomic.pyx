# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Words of a mapped file that any number of threads and processes operate on at the same time."""

import errno as _errno
import operator
import time

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EFAULT, EINTR, ETIMEDOUT
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport strerror

from mmapio cimport _fault, _wait
from mmapio._fault cimport ADD, AND, COMPARE, LOAD, MAX, MIN, OR, STORE, SUB, SWAP, XOR
from mmapio.account cimport note
from mmapio.bounds cimport checked_offset, clamped, deadline_of, is_plain_int, told
from mmapio.mapping cimport MappedFile
from mmapio.region cimport attach, detach, fault_in

from mmapio.errors import Misaligned, OutOfBounds
from mmapio.options import Ordering

cdef object RELAXED = Ordering.RELAXED
cdef object ACQUIRE = Ordering.ACQUIRE
cdef object RELEASE = Ordering.RELEASE
cdef object ACQ_REL = Ordering.ACQ_REL
cdef object SEQ_CST = Ordering.SEQ_CST

# A call that waits looks at the word at least this often: a futex compares 32 bits, so that a change of the upper half of a
# wide word may slip in between the look and the sleep.
cdef int64_t SLICE_NS = 500_000_000


# The links lie in the region's list until the end, so the region must not be taken away by the collector before.
@cython.no_gc_clear
cdef class Atomic:
    """An unsigned word in a mapped file. Made by `atomic_u32` and `atomic_u64`.

    Every operation is one atomic access, seen whole by every thread of every process that maps the file. Values wrap
    around. It costs some 40 ns, most of it Python's. An `order` is an :class:`Ordering`; reads take RELAXED, ACQUIRE or
    SEQ_CST, writes RELAXED, RELEASE or SEQ_CST, the rest any. The word stays valid while the file grows, and after it
    was closed for :meth:`load`.

    Operations raise OverflowError for a value that the word cannot hold, InvalidMode when they would change a read-only
    mapping, Closed, MappingFault; ``offset`` is where the word lies in the file.
    """

    def __init__(self):
        raise TypeError("atomics are made by atomic_u32() and atomic_u64(), not directly")

    def __dealloc__(self):
        detach(&self.link)

    def load(self, order=SEQ_CST):
        """The value."""
        cdef uint64_t seen = 0
        if order is not SEQ_CST and order is not ACQUIRE and order is not RELAXED:
            raise ValueError(f"a load cannot be {order!r}: use RELAXED, ACQUIRE or SEQ_CST")
        operate(self, LOAD, 0, &seen, order)
        return seen

    def store(self, value, order=SEQ_CST):
        """Set the value."""
        cdef uint64_t seen = 0
        if order is not SEQ_CST and order is not RELEASE and order is not RELAXED:
            raise ValueError(f"a store cannot be {order!r}: use RELAXED, RELEASE or SEQ_CST")
        operate(self, STORE, as_word(self, value), &seen, order)

    def swap(self, value, order=SEQ_CST):
        """Set the value and return what it was."""
        return fetch(self, SWAP, value, order)

    def compare_exchange(self, expected, new, order=SEQ_CST):
        """Set the value to `new` if it is `expected`. Returns whether it was, and what it was: ``(ok, seen)``."""
        cdef uint64_t seen = as_word(self, expected)
        cdef int ok = operate(self, COMPARE, as_word(self, new), &seen, order)
        return ok == 1, seen

    def fetch_add(self, value, order=SEQ_CST):
        """Add, wrapping around, and return the old value."""
        return fetch(self, ADD, value, order)

    def fetch_sub(self, value, order=SEQ_CST):
        """Subtract, wrapping around, and return the old value."""
        return fetch(self, SUB, value, order)

    def fetch_and(self, value, order=SEQ_CST):
        """Keep the bits of `value` and return the old value."""
        return fetch(self, AND, value, order)

    def fetch_or(self, value, order=SEQ_CST):
        """Set the bits of `value` and return the old value."""
        return fetch(self, OR, value, order)

    def fetch_xor(self, value, order=SEQ_CST):
        """Flip the bits of `value` and return the old value."""
        return fetch(self, XOR, value, order)

    def fetch_min(self, value, order=SEQ_CST):
        """Make it no greater than `value` and return the old value."""
        return fetch(self, MIN, value, order)

    def fetch_max(self, value, order=SEQ_CST):
        """Make it no less than `value` and return the old value."""
        return fetch(self, MAX, value, order)

    def wait(self, expected, timeout=None):
        """Sleep while the value is `expected`; True once it is not, False after `timeout` seconds.

        Woken by :meth:`notify` of any process. Whoever changes the value must notify after it, or the waiter may sleep on. Runs
        without the GIL; signal handlers run. Without futexes (macOS) it looks again instead, every 5 ms at the least.
        """
        cdef uint64_t wanted = as_word(self, expected), seen = 0
        cdef int64_t span
        cdef uint32_t *half = <uint32_t *>self.word
        cdef uint32_t low = wanted & 0xFFFFFFFF
        cdef int result
        deadline = None if timeout is None else deadline_of(timeout)
        while True:
            operate(self, LOAD, 0, &seen, SEQ_CST)
            if seen != wanted:
                return True
            span = SLICE_NS
            if deadline is not None:
                # Compared before it is multiplied: infinity is a deadline too.
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if left * 1e9 < SLICE_NS:
                    span = <int64_t>(left * 1e9) + 1
            with nogil:
                result = _wait.wait_word(half, low, span)
            if result == -EFAULT:
                self.region.fail()
            # Whatever ended it: a signal may have reached another thread, while its handler runs in this one.
            PyErr_CheckSignals()
            if result < 0 and result != -EAGAIN and result != -ETIMEDOUT and result != -EINTR:
                raise OSError(-result, strerror(-result).decode(), self.region.path)

    def notify(self, count=None):
        """Wake up to `count` waiters of this word, in every process; all of them when None. Returns how many were woken.

        Costs a system call. It may be called on a read-only mapping. Without futexes nobody sleeps, and it returns 0.
        """
        cdef int most = 0x7FFFFFFF if count is None else max(min(operator.index(count), 0x7FFFFFFF), 0)
        cdef int result
        if self.region is None:
            raise TypeError("atomics are made by atomic_u32() and atomic_u64(), not directly")
        self.region.check()
        if most == 0:
            return 0
        with nogil:
            result = _wait.wake_word(<uint32_t *>self.word, most)
        if result == -EFAULT:
            self.region.fail()
        if result < 0:
            raise OSError(-result, strerror(-result).decode(), self.region.path)
        return result

    def __reduce__(self):
        raise TypeError("an atomic cannot be pickled or copied; make one in the other process")

    def __repr__(self):
        return f"<{type(self).__name__} at offset {self.offset}>"


@cython.no_gc_clear
@cython.final
cdef class AtomicU32(Atomic):
    """A 32-bit unsigned word in a mapped file, 4-byte aligned."""


@cython.no_gc_clear
@cython.final
cdef class AtomicU64(Atomic):
    """A 64-bit unsigned word in a mapped file, 8-byte aligned."""


@cython.no_gc_clear
cdef class AtomicSlice:
    """Consecutive words of a mapped file; indexing gives an atomic. ``offset`` is where the first lies in the file."""

    def __init__(self):
        raise TypeError("atomic slices are made by atomic_u32_slice() and atomic_u64_slice(), not directly")

    def __dealloc__(self):
        detach(&self.link)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        cdef Py_ssize_t at = clamped(index)
        if at < 0:
            at += self.count
        if at < 0 or at >= self.count:
            raise IndexError(f"index {told(index)} is outside a slice of {self.count} atomics")
        cdef uint64_t step = 8 if self.wide else 4
        return word_of(self.file, self.region, self.start + at * step, self.offset + at * step, self.wide)

    def __iter__(self):
        for index in range(self.count):
            yield self[index]

    def __reduce__(self):
        raise TypeError("atomics cannot be pickled or copied; make them in the other process")

    def __repr__(self):
        return f"<{type(self).__name__} of {self.count} at offset {self.offset}>"


@cython.no_gc_clear
@cython.final
cdef class AtomicSliceU32(AtomicSlice):
    """Consecutive 32-bit words of a mapped file; indexing gives an :class:`AtomicU32`."""


@cython.no_gc_clear
@cython.final
cdef class AtomicSliceU64(AtomicSlice):
    """Consecutive 64-bit words of a mapped file; indexing gives an :class:`AtomicU64`."""


def atomic(MappedFile file not None, offset, bint wide, count=None):
    """The atomic at `offset`, or with `count` the slice of so many. Misaligned, OutOfBounds."""
    cdef uint64_t start = checked_offset(offset, file.length, file._path), size = 8 if wide else 4
    cdef uint64_t words = 1 if count is None else checked_offset(count, file.length, file._path)
    cdef AtomicSlice made
    file.check()
    if start % size:
        raise Misaligned(
            _errno.EINVAL, f"an atomic of {size} bytes needs an offset that is a multiple of {size}, not {start}", file._path)
    if words > file.length // size:
        raise OutOfBounds(
            _errno.EINVAL, f"{words} atomics of {size} bytes at offset {start} reach outside the {file.length} bytes mapped",
            file._path)
    file.check_range(start, words * size)
    if count is None:
        return word_of(file, file.region, file.base + start, start, wide)
    made = (AtomicSliceU64 if wide else AtomicSliceU32).__new__(AtomicSliceU64 if wide else AtomicSliceU32)
    made.file = file
    made.region = file.region
    made.start = file.base + start
    made.offset = start
    made.count = words
    made.wide = wide
    attach(made.region, &made.link, made.start, words * size)
    return made


cdef inline object fetch(Atomic word, int operation, value, order):
    cdef uint64_t seen = 0
    operate(word, operation, as_word(word, value), &seen, order)
    return seen


cdef inline int operate(Atomic word, int operation, uint64_t value, uint64_t *seen, order) except -1:
    cdef int result, number = 4
    if order is not SEQ_CST:
        number = Ordering(order)
    if word.region is None:
        raise TypeError("atomics are made by atomic_u32() and atomic_u64(), not directly")
    if word.region.slot.faulted:
        fault_in(word.region.path)
    if operation != LOAD and word.file.stopped:
        word.file.refuse_write()
    if word.wide:
        result = _fault.word64(operation, word.word, value, seen, number)
    else:
        result = _fault.word32(operation, word.word, value, seen, number)
    if result < 0:
        fault_in(word.region.path)
    if word.region.slot.faulted:
        fault_in(word.region.path)
    # An exchange that failed has changed nothing.
    if operation != LOAD and (operation != COMPARE or result == 1):
        note(word.file, 8 if word.wide else 4)
    return result


cdef Atomic word_of(MappedFile file, region, char *word, uint64_t offset, bint wide):
    cdef Atomic made = AtomicU64.__new__(AtomicU64) if wide else AtomicU32.__new__(AtomicU32)
    made.file = file
    made.region = region
    made.word = word
    made.offset = offset
    made.wide = wide
    attach(made.region, &made.link, word, 8 if wide else 4)
    return made


cdef inline uint64_t as_word(Atomic word, value) except? 0xFFFFFFFFFFFFFFFF:
    cdef uint64_t number
    if not is_plain_int(value):
        value = operator.index(value)
    number = <uint64_t>value
    if not word.wide and number > 0xFFFFFFFF:
        raise OverflowError(f"{value} does not fit into 32 bits")
    return number
