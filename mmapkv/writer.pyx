# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Changing a store: one record to the log, one word to the index."""

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
from mmapkv.index cimport ABSENT, PRESENT, Hit, Index, Outcome
from mmapkv.reader cimport StoreReader, as_bytes
from mmaplog.appender cimport RECORD_START_END, record_size
from mmaplog.checksum cimport xxh3
from mmaplog.log cimport Log

from mmapkv.errors import InvalidKey, ValueTooLarge
from mmapkv.index import Reseed


# The default of `pop`, which may be given as None.
cdef object MISSING = object()


cdef inline uint64_t value_offset(uint64_t key_size, bint has_previous) noexcept nogil:
    # Where the value starts in a payload; on a multiple of 8, like the payload.
    return (PAYLOAD_HEADER_SIZE + (PREVIOUS_SIZE if has_previous else 0) + key_size + 7) & ~<uint64_t>7


cdef class StoreWriter(StoreReader):
    """The writing half of ``KVStore``, per operation.

    The subclass gives the methods that replace the index or ready it for writing: `_rebuild_index`, `_begin_writing`.
    """

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

        if outcome == PRESENT and not hit.deleted:
            index.add_dead(hit.slot, hit.size)
        if kind == KIND_DELETE:
            index.add_dead(self.tail_slot, record_size(payload_size, False))
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
