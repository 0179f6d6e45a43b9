# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""A store as it was at one moment."""

import errno as _errno

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t

from mmapio cimport _fault
from mmapio._os cimport now_ns
from mmapkv.format cimport KEY_SIZE_MAX
from mmapkv.index cimport ABSENT, PRESENT, REPLACED, Hit, Index, Outcome, is_doubtful
from mmapkv.reader cimport StoreReader, as_bytes
from mmaplog.checksum cimport xxh3

from mmapio.errors import Closed
from mmapkv.errors import SnapshotTooOld
from mmaplog.errors import CorruptionError


def encoded(thing, what):
    """A key or value as bytes: a str in UTF-8, the content of any other buffer. TypeError, saying `what` it is, for what is neither."""
    return as_bytes(thing, what)


cdef class Frozen:
    """Looks up the records of a store below the number `stop`; what has a time to live, lives as it did when this was made.

    With a `pin` compaction leaves what was current then. What follows is for the subclass.
    """

    cdef StoreReader store
    cdef readonly uint64_t stop
    cdef readonly uint64_t now  # nanoseconds since 1970
    cdef uint64_t count
    cdef readonly uint64_t cleared  # records below this number counted as deleted then
    cdef bint held
    cdef bint over
    cdef object __weakref__

    def __cinit__(self, StoreReader store not None, uint64_t stop, uint64_t count, uint64_t cleared, pin, *_):
        self.store = store
        self.stop = stop
        self.count = count
        self.cleared = cleared
        self.held = pin is not None
        self.now = now_ns()

    def __getitem__(self, key):
        cdef Hit hit
        key = as_bytes(key, "key")
        if not self.look(<bytes>key, &hit):
            raise KeyError(key)
        return self.store.value_of(&hit)

    def get(self, key, /, default=None):
        """The value that `key` had, or `default`. Costs what ``KVStore.get`` does, and a cache miss for each newer version.

        Raises what that does; Closed after the end of the snapshot, SnapshotTooOld where compaction could not be told of it.
        """
        cdef Hit hit
        if not self.look(as_bytes(key, "key"), &hit):
            return default
        return self.store.value_of(&hit)

    def __contains__(self, key):
        cdef Hit hit
        return self.look(as_bytes(key, "key"), &hit)

    def __len__(self):
        self._check()
        return self.count

    def _check(self):
        if self.over:
            raise Closed(_errno.EBADF, "the snapshot is closed; take another one", self.store._path)
        if self.store.index is None:
            self.store.raise_closed()

    def _finish(self):
        # Whether it was open until now.
        cdef bint was_open = not self.over
        self.over = True
        return was_open

    def _counts(self, key):
        # Whether `len` counts this key: present then, its time to live over or not.
        cdef Hit hit
        return self.find(as_bytes(key, "key"), &hit)

    def _expiry(self, key):
        # When what was there ends, in nanoseconds since 1970; 0 when it has no end, or was not there.
        cdef Hit hit
        return hit.expires if self.look(as_bytes(key, "key"), &hit) else 0

    cdef bint look(self, bytes key, Hit *hit) except -1:
        return self.find(key, hit) and (hit.expires == 0 or hit.expires > self.now)

    cdef bint find(self, bytes key, Hit *hit) except -1:
        cdef const char *start = PyBytes_AS_STRING(key)
        cdef uint64_t size = PyBytes_GET_SIZE(key)
        cdef StoreReader store = self.store
        cdef Outcome outcome
        cdef Index index
        while True:
            index = store.index
            if self.over or index is None:
                self._check()
            if size == 0 or size > KEY_SIZE_MAX:
                return False
            outcome = REPLACED if is_doubtful(index) else index.find(xxh3(start, size, index.seed), start, size, store.verify, hit)
            if _fault.faults() != store.faults and outcome != REPLACED:
                store.check_faults()
            if outcome == PRESENT:
                try:
                    return store.step_down(index, self.stop, self.cleared, self.held, hit) and not hit.deleted
                except (CorruptionError, SnapshotTooOld):
                    if index.private or not index.retired:
                        raise
                # It was replaced while the version was looked for, as by who opens the store after a kill. The new one leads there, too.
                store._reload_index(index)
                continue
            if outcome == ABSENT:
                return False
            store.settle(index, outcome, hit)
