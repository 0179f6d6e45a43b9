# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""A mapped file in pieces of equal length, the last one shorter."""

import errno as _errno
import operator

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t

from mmapio.bounds cimport told
from mmapio.mapping cimport MappedFile
from mmapio.region cimport attach, detach
from mmapio.view cimport read_out, slice_of

from mmapio.errors import InvalidSize


@cython.no_gc
@cython.final
cdef class Chunks:
    """An iterator over the file as it was long when this was made: views, or copies. About 40 ns a view.

    It counts as a live view of what is still to come, so the file cannot be cut under it; it stays valid after close.
    """

    def __cinit__(self, MappedFile file not None, size, bint owned):
        self.step = checked_step(size)
        file.check()
        self.end = file.length
        self.region = file.view_region(self.end)
        # Again: mapping it may have let another thread close the handle, or cut the file.
        file.check()
        self.end = min(self.end, file.length)
        self.owned = owned
        attach(self.region, &self.link, self.region.base, self.end)

    def __dealloc__(self):
        detach(&self.link)

    def __iter__(self):
        return self

    def __next__(self):
        cdef uint64_t count = min(self.step, self.end - self.at)
        cdef const char *start = self.region.base + self.at
        cdef object made
        if count == 0:
            detach(&self.link)
            raise StopIteration
        self.region.check()
        self.at += count
        if not self.owned:
            return slice_of(self.region, start, count)
        made = PyBytes_FromStringAndSize(NULL, count)
        read_out(self.region, PyBytes_AS_STRING(made), start, count)
        return made

    def __length_hint__(self):
        return (self.end - self.at + self.step - 1) // self.step

    def __reduce__(self):
        raise TypeError("an iterator over a mapped file cannot be pickled or copied")


def checked_chunk(size):
    """The number of bytes of a chunk. InvalidSize for one that no chunk can have."""
    return checked_step(size)


cdef uint64_t checked_step(size) except 0:
    size = operator.index(size)
    if not 0 < size <= 0x7FFFFFFFFFFFFFFF:
        raise InvalidSize(_errno.EINVAL, f"a chunk must have between 1 and {0x7FFFFFFFFFFFFFFF} bytes, not {told(size)}")
    return size
