# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Looking keys up in a store: what happens millions of times in readers and the writer alike."""

import errno as _errno

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t

from mmapio cimport _fault
from mmapkv.format cimport KEY_SIZE_MAX
from mmapkv.index cimport ABSENT, PRESENT, REPLACED, UNSOUND, Hit, Index, Outcome
from mmapkv.slots cimport SlotMap
from mmaplog.checksum cimport xxh3
from mmaplog.log cimport Log
from mmaplog.segment cimport Segment

from mmapio.errors import Closed


cdef bytes as_bytes(object thing, str what):
    # bytes as they are, str as UTF-8, every other buffer copied.
    cdef Py_buffer view
    if PyBytes_CheckExact(thing):
        return <bytes>thing
    if isinstance(thing, str):
        return (<str>thing).encode()
    try:
        PyObject_GetBuffer(thing, &view, PyBUF_SIMPLE)
    except (TypeError, BufferError):
        raise TypeError(
            f"a {what} is bytes, another contiguous buffer or str, not {type(thing).__name__}") from None
    try:
        return PyBytes_FromStringAndSize(<const char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef class StoreReader:
    """The reading half of ``KVStore``, per operation.

    The subclass gives the methods that replace the index: `_reload_index`, `_mend_index`.
    """

    def __getitem__(self, key):
        cdef Hit hit
        key = as_bytes(key, "key")
        if not self.look(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), &hit):
            raise KeyError(key)
        return self.value_of(&hit)

    def get(self, key, default=None, /):
        """The value of `key`, or `default`. Costs a cache miss for the index, one for the record and a copy.

        Raises CorruptionError when the record does not verify, TypeError for a key that is neither buffer nor str, Closed.
        """
        cdef Hit hit
        key = as_bytes(key, "key")
        if not self.look(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), &hit):
            return default
        return self.value_of(&hit)

    def __contains__(self, key):
        cdef Hit hit
        key = as_bytes(key, "key")
        return self.look(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), &hit) != 0

    def __len__(self):
        cdef uint64_t seq, count
        cdef Index index
        while True:
            index = self.index
            if index is None:
                self.raise_closed()
            if not index.retired:
                index.applied(&seq, &count)
                index.region.check()
                return count
            self._reload_index(index)

    cdef int look(self, const char *key, uint64_t key_size, Hit *hit) except -1:
        # 1 when the key is present. A key that cannot be stored is absent.
        cdef Outcome outcome
        cdef Index index
        while True:
            # Held by this thread for the turn: another may close the store whenever the GIL is let go.
            index = self.index
            if index is None:
                self.raise_closed()
            if key_size == 0 or key_size > KEY_SIZE_MAX:
                return 0
            outcome = index.find(xxh3(key, key_size, index.seed), key, key_size, self.verify, hit)
            if _fault.faults() != self.faults:
                self.check_faults()
            if outcome == PRESENT:
                return not hit.deleted
            if outcome == ABSENT:
                return 0
            self.settle(index, outcome, hit)

    cdef object value_of(self, Hit *hit):
        cdef object value = PyBytes_FromStringAndSize(hit.value, hit.value_size)
        if _fault.faults() != self.faults:
            self.check_faults()
        return value

    cdef int check_faults(self) except -1:
        # Something in this process read a page that was not there. If it was a page of this store, what was just
        # found, or not found, may be made of zeros.
        cdef uint64_t faults = _fault.faults()
        cdef Segment segment
        if self.index is None:
            self.raise_closed()
        self.log.check_faults()
        self.index.region.check()
        for each in self.slots.segments:
            if each is not None:
                segment = each
                segment.region.check()
        self.faults = faults
        return 0

    cdef int settle(self, Index index, Outcome outcome, Hit *hit) except -1:
        # What stands in the way of a look-up is removed, or raised.
        if outcome == REPLACED:
            self._reload_index(index)
        elif outcome == UNSOUND:
            self._mend_index(index)
        else:
            index.settle(outcome, hit)
        return 0

    def _open(self, Log log, bint verify):
        self.log = log
        self.verify = verify
        self._path = log.path

    def _use(self, Index index, SlotMap slots):
        # The index of a store just opened, or rebuilt later. A writer looks for its slot anew.
        self.index = index
        self.slots = slots
        self.tail_id = 0

    def _parts(self):
        return self.log, self.index

    def _forget(self):
        self.index = None
        self.slots = None

    cdef raise_closed(self):
        raise Closed(_errno.EBADF, "the store is closed; open it again", self._path)
