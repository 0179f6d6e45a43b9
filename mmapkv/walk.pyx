# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Walking over a store in the order of its log."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t

from mmapio cimport _fault
from mmapkv.catch_up cimport parse
from mmapkv.format cimport KIND_PUT, PayloadHeader
from mmapkv.index cimport ABSENT, PRESENT, STRAY, TOO_OLD, UNMAPPED, Hit, Index, Outcome
from mmapkv.reader cimport StoreReader
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport Record
from mmaplog.replay cimport Replay

from mmapkv.errors import SnapshotTooOld

KEYS = 0
VALUES = 1
ITEMS = 2


cdef class Walk:
    """Iterates over keys, values or items as they were when it was made.

    The log up to that moment is read once; a record counts when it is the newest of its key below that moment. So the
    store may be changed meanwhile without anything being skipped, repeated or mixed. Costs a look-up for each record.
    """

    cdef StoreReader store
    cdef Replay replay
    cdef uint64_t stop
    cdef int what
    cdef object pin             # keeps compaction from removing what is still to come, or None

    def __init__(self, StoreReader store, Replay replay, int what, pin=None):
        self.store = store
        self.replay = replay
        self.stop = replay.stop
        self.what = what
        self.pin = pin

    def __iter__(self):
        return self

    def __next__(self):
        cdef Record record
        cdef PayloadHeader payload
        cdef const char *key
        cdef const char *value
        while self.replay.seq < self.stop:
            if self.store.index is None:
                self.store.raise_closed()
            if not self.replay.read(&record, True):
                break
            parse(&record, self.replay, &payload, &key)
            if payload.kind != KIND_PUT or not self.newest(record.seq, key, payload.key_length):
                continue
            if self.what == 0:
                return PyBytes_FromStringAndSize(key, payload.key_length)
            value = record.payload + record.payload_size - payload.value_length
            found = PyBytes_FromStringAndSize(value, payload.value_length)
            if self.what == 1:
                return found
            return PyBytes_FromStringAndSize(key, payload.key_length), found
        if self.pin is not None:
            self.pin.release()
        elif self.store.index is not None and self.store.index.horizon > self.stop:
            raise SnapshotTooOld(
                f"compaction has removed what was current before record {self.stop}; begin anew", self.store._path)
        raise StopIteration

    cdef bint newest(self, uint64_t seq, const char *key, uint64_t key_size) except -1:
        # Whether record `seq` is what its key had last when the walk began.
        cdef Hit hit
        cdef Outcome outcome
        cdef Index index
        while True:
            index = self.store.index
            if index is None:
                self.store.raise_closed()
            outcome = index.find(xxh3(key, key_size, index.seed), key, key_size, False, &hit)
            if _fault.faults() != self.store.faults:
                self.store.check_faults()
            while outcome == PRESENT:
                outcome = index.version_before(self.stop, &hit)
                if outcome == PRESENT:
                    return hit.seq == seq
                if outcome == STRAY or outcome == UNMAPPED or outcome == TOO_OLD:
                    self.store.settle(index, outcome, &hit)
                    outcome = PRESENT
            if outcome == ABSENT:
                return False
            self.store.settle(index, outcome, &hit)
