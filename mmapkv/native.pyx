# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""The operations of a store that happen millions of times: look up, put, delete, walk."""

import errno as _errno

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from mmapio cimport _fault
from mmapio cimport _memory as memory
from mmapkv.format cimport (
    ADDRESS_BITS,
    FLAG_CREATES,
    FLAG_PREVIOUS,
    KEY_SIZE_MAX,
    KIND_DELETE,
    KIND_PUT,
    PAYLOAD_HEADER_SIZE,
    PREVIOUS_SIZE,
    VALUE_SIZE_MAX,
    PayloadHeader,
    Previous,
    make_address,
)
from mmapkv.index cimport ABSENT, PRESENT, REPLACED, UNSOUND, Hit, Index, Outcome
from mmapkv.slots cimport SlotMap
from mmaplog.appender cimport RECORD_START_END, record_size
from mmaplog.checksum cimport xxh3
from mmaplog.log cimport Log
from mmaplog.segment cimport Segment

from mmapio.errors import Closed
from mmapkv.errors import InvalidKey, ValueTooLarge
from mmapkv.index import Reseed


# The default of `pop`, which may be given as None.
cdef object MISSING = object()


cdef inline bytes as_bytes(object thing, str what):
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


cdef inline uint64_t value_offset(uint64_t key_size, bint has_previous) noexcept nogil:
    # Where the value starts in a payload; on a multiple of 8, like the payload.
    return (PAYLOAD_HEADER_SIZE + (PREVIOUS_SIZE if has_previous else 0) + key_size + 7) & ~<uint64_t>7


cdef class NativeStore:
    """The per-operation half of ``KVStore``, which adds what is rare and is the class to use.

    The subclass gives the methods that replace the index: `_reload_index`, `_mend_index`, `_rebuild_index`, `_begin_writing`.
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

    def __reduce__(self):
        raise TypeError("a store cannot be pickled or copied; open its path again")

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

    def __setitem__(self, key, value):
        self.put_pair(key, value, False)

    def put(self, key, value, /, *, bint durable=False):
        """Set the value of `key`; committed when the call returns, and on the device too with `durable`.

        Keys have 1 to 65,535 bytes, values up to 4 GiB - 1 MiB; each is any contiguous buffer, or str, encoded as UTF-8. Costs a
        look-up, one copy and one checksum. Raises InvalidKey, ValueTooLarge, TypeError; OSError(ENOSPC) with nothing
        written when the disk is full; InvalidMode, Closed, Poisoned, FlushFailed.
        """
        self.put_pair(key, value, durable)

    cdef int put_pair(self, key, value, bint durable) except -1:
        cdef Py_buffer view
        key = as_bytes(key, "key")
        if isinstance(value, str):
            value = value.encode()
        if PyBytes_CheckExact(value):
            self.write(key, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), KIND_PUT, durable, None)
            return 0
        try:
            PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
        except (TypeError, BufferError):
            raise TypeError(
                f"a value is bytes, another contiguous buffer or str, not {type(value).__name__}") from None
        try:
            self.write(key, <const char *>view.buf, view.len, KIND_PUT, durable, None)
        finally:
            PyBuffer_Release(&view)
        return 0

    def __delitem__(self, key):
        key = as_bytes(key, "key")
        if not self.write(key, NULL, 0, KIND_DELETE, False, None):
            raise KeyError(key)

    def pop(self, key, default=MISSING, /):
        """Remove `key` and return its value, in one step for every thread; `default`, or KeyError, when it is absent."""
        cdef list removed = []
        key = as_bytes(key, "key")
        if 0 < PyBytes_GET_SIZE(key) <= KEY_SIZE_MAX and self.write(key, NULL, 0, KIND_DELETE, False, removed):
            return removed[0]
        if default is MISSING:
            raise KeyError(key)
        return default

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

    cdef int write(self, key, const char *value, uint64_t value_size, int kind, bint durable,
                   list removed) except -1:
        # 1 when a record was written; 0 for a deletion of what is not there. All that can fail, and all that may let
        # go of the GIL, comes before `begin`; whatever let go of it starts the loop again.
        cdef Log log = self.log
        cdef const char *key_start = PyBytes_AS_STRING(key)
        cdef uint64_t key_size = PyBytes_GET_SIZE(key), worst, head, payload_size, hash, tag, count, seq
        cdef uint64_t *cell
        cdef Index index
        cdef Hit hit
        cdef Outcome outcome
        cdef PayloadHeader header
        cdef Previous previous
        cdef char *payload
        if key_size == 0 or key_size > KEY_SIZE_MAX:
            raise InvalidKey(f"a key has 1 to {KEY_SIZE_MAX} bytes, this one has {key_size}", self._path)
        if value_size > VALUE_SIZE_MAX:
            raise ValueTooLarge(f"a value has at most {VALUE_SIZE_MAX} bytes, this one has {value_size}", self._path)
        if self.index is None:
            self.raise_closed()
        worst = value_offset(key_size, True) + value_size
        while True:
            if log.end + record_size(worst, False) > log.room or log.end >= RECORD_START_END:
                log.make_room(worst)
                continue
            index = self.index
            if index is None:
                self.raise_closed()
            if self.tail_id != log.segment_id:
                self.prepare(index)
                continue
            if not index.has_room():
                index.make_room()
                continue
            hash = xxh3(key_start, key_size, index.seed)
            outcome = index.find(hash, key_start, key_size, removed is not None and self.verify, &hit)
            if _fault.faults() != self.faults:
                self.check_faults()
            if outcome == PRESENT:
                cell = hit.cell
                tag = cell[0] >> ADDRESS_BITS << ADDRESS_BITS
                break
            if outcome == ABSENT:
                if kind == KIND_DELETE:
                    return 0
                cell = index.place(hash, &tag)
                if cell != NULL:
                    break
                self.split(index, hash)
                continue
            self.settle(index, outcome, &hit)
        if kind == KIND_DELETE and hit.deleted:
            return 0
        if removed is not None:
            # Copied before anything is written; making bytes lets no other thread run.
            removed.append(PyBytes_FromStringAndSize(hit.value, hit.value_size))
        header.key_length = <unsigned short>key_size
        header.kind = kind
        header.flags = FLAG_PREVIOUS if outcome == PRESENT else 0
        if kind == KIND_PUT and (outcome == ABSENT or hit.deleted):
            header.flags |= FLAG_CREATES
        header.value_length = <unsigned int>value_size
        head = value_offset(key_size, outcome == PRESENT)
        payload_size = head + value_size

        payload = log.begin(payload_size)
        # The gap between key and value is zeroed first, the key written over its beginning.
        (<uint64_t *>(payload + head - 8))[0] = 0
        memcpy(payload, &header, sizeof(header))
        if outcome == PRESENT:
            previous.seq = hit.seq
            previous.address = hit.address
            memcpy(payload + PAYLOAD_HEADER_SIZE, &previous, sizeof(previous))
            memcpy(payload + PAYLOAD_HEADER_SIZE + PREVIOUS_SIZE, key_start, key_size)
        else:
            memcpy(payload + PAYLOAD_HEADER_SIZE, key_start, key_size)
        if value_size:  # a deletion has no value, and a copy from nowhere is undefined even of nothing
            memcpy(payload + head, value, value_size)
        log.commit(payload_size)

        # Committed. A reader that sees the entry now sees a record that no crash takes away.
        memory.store_release(cell, tag | make_address(self.tail_slot, log.last))
        index.applied(&seq, &count)
        if header.flags & FLAG_CREATES:
            count += 1
        elif kind == KIND_DELETE:
            count -= 1
        index.publish(log.seq, count)
        if _fault.faults() != self.faults:
            self.check_faults()
        log.after_commit(payload_size, log.seq, durable)
        return 1

    cdef int prepare(self, Index index) except -1:
        # Before the first write of this handle, and after each roll.
        cdef uint64_t segment_id
        if self.tail_id == 0:
            self._begin_writing(index)
            if self.index is not index:
                return 0
        segment_id = self.log.segment_id
        self.tail_slot = index.slot_of(segment_id)
        self.tail_id = segment_id
        return 0

    cdef int split(self, Index index, uint64_t hash) except -1:
        try:
            index.split(hash)
        except Reseed:
            self._rebuild_index(index)
        return 0

    def _open(self, Log log, bint verify):
        self.log = log
        self.verify = verify
        self._path = log.path

    def _use(self, Index index, SlotMap slots):
        # The index of a store just opened, or rebuilt later. The next write looks for its slot anew.
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
