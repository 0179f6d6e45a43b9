# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Writable zero-copy views of mapped files."""

import errno as _errno
import operator

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport ENOMEM

from mmapio cimport _fault
from mmapio.account cimport Account, note
from mmapio.region cimport Region, attach, detach, fault_in
from mmapio.view cimport fill_buffer, index_of, read_out, same_bytes, span_of

from mmapio.errors import Closed


# The link lies in the region's list until the end, so the region must not be taken away by the collector before.
@cython.no_gc_clear
@cython.final
cdef class MappedSliceMut:
    """A writable, zero-copy view of part of a mapped file: whatever is stored in it is in the file at once.

    A writable buffer, so ``memoryview(s)``, ``numpy.frombuffer(s)`` and ``readinto`` take it. Use it as a context
    manager, or :meth:`release` it. While it is out, its whole range counts as pending, for nobody can know which bytes
    are being stored; the write is on the books, and flushed if the policy says so, when it has been released and
    the last buffer taken from it is gone. Slicing copies, indexing gives an ``int``.

    Item assignment raises MappingFault where the file was cut by others. A store through a buffer that was taken from it
    cannot be guarded: see the page on safety.
    """

    def __init__(self):
        raise TypeError("MappedSliceMut objects are made by as_slice_mut() and its like, not directly")

    def __dealloc__(self):
        detach(&self.link)
        cdef Account account = self.account
        if account is not None and not self.released:
            self.released = True
            try:
                self.end()
            except OSError:
                # The handle is poisoned: its next call says so, to somebody who listens.
                account.unheard = account.poison is not None

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        cdef Py_ssize_t start, size
        cdef unsigned char value
        cdef object made
        self.check()
        if isinstance(key, slice):
            span_of(key, self.count, &start, &size)
            made = PyBytes_FromStringAndSize(NULL, size)
            read_out(self.region, PyBytes_AS_STRING(made), self.start + start, size)
            return made
        read_out(self.region, &value, self.start + index_of(key, self.count), 1)
        return value

    def __setitem__(self, key, value):
        cdef Py_ssize_t start = 0, size = 1
        cdef unsigned char byte
        cdef int result
        cdef Py_buffer view
        self.check()
        if not isinstance(key, slice):
            start = index_of(key, self.count)
            value = operator.index(value)
            if not 0 <= value <= 255:
                raise ValueError(f"a byte must be between 0 and 255, not {value}")
            byte = value
            self.check()  # again: the number is free to run code that releases this view
            if _fault.copy(self.start + start, &byte, 1) < 0:
                fault_in(self.region.path)
            return
        span_of(key, self.count, &start, &size)
        PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
        try:
            self.check()  # again: the exporter is free to run code that releases this view
            if view.len != size:
                raise ValueError(f"a slice of {size} bytes cannot be assigned {view.len}: a mapped file does not shift")
            result = _fault.copy_aliased(self.start + start, view.buf, size)
            if result == -ENOMEM:
                raise MemoryError
            if result < 0:
                fault_in(self.region.path)
        finally:
            PyBuffer_Release(&view)

    def __delitem__(self, key):
        raise TypeError("bytes of a mapped file cannot be deleted; resize the file")

    def __bytes__(self):
        return self.tobytes()

    def tobytes(self):
        """The content, copied. Costs one pass over the bytes. Raises MappingFault, Closed."""
        return self[:]

    def release(self):
        """Give the view back; the second time does nothing. Flushes if the policy says so: FlushFailed, MappingFault.

        Buffers that others hold stay valid, and the range stays on the books until they are gone.
        """
        if self.released or self.account is None:
            return
        self.released = True
        if self.exports == 0:
            self.end()

    @property
    def is_released(self):
        """True after :meth:`release`."""
        return self.released

    def __richcmp__(self, other, int operation):
        self.check()
        return same_bytes(self.region, self.start, self.count, other, operation)

    __hash__ = None

    def __getbuffer__(self, Py_buffer *view, int flags):
        self.check()
        self.shape = self.count
        fill_buffer(view, self, self.start, &self.shape, flags, False)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        cdef Account account = self.account
        self.exports -= 1
        if self.exports == 0 and self.released:
            try:
                self.end()
            except OSError:
                account.unheard = account.poison is not None  # as in __dealloc__

    def __enter__(self):
        self.check()
        return self

    def __exit__(self, *exc):
        self.release()
        return False

    def __reduce__(self):
        raise TypeError("a view of a mapped file cannot be pickled or copied; bytes(view) makes a copy")

    def __repr__(self):
        state = ", released" if self.released else ""
        return f"<MappedSliceMut of {self.count} bytes{state}>"

    cdef int check(self) except -1:
        if self.released:
            raise Closed(_errno.EBADF, "the writable view was released; take another", self.region.path)
        if self.account is None:
            raise TypeError("MappedSliceMut objects are made by as_slice_mut() and its like, not directly")
        if self.account.stopped:
            self.account.refuse_write()
        return self.region.check()

    cdef int end(self) except -1:
        # Once: off the list of views, from exported to written.
        cdef Account account = self.account
        detach(&self.link)
        self.account = None
        account.bytes_exported -= self.count
        # The books of a closed handle are closed.
        if self.count and account.descriptor is not None:
            note(account, self.count)
        return self.region.check()


cdef MappedSliceMut mutable_of(Account account, Region region, char *start, Py_ssize_t count):
    cdef MappedSliceMut made = MappedSliceMut.__new__(MappedSliceMut)
    made.account = account
    made.region = region
    made.start = start
    made.count = count
    account.bytes_exported += count
    attach(region, &made.link, start, count)
    return made
