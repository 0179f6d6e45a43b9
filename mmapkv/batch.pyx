# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Changes of a store that come together, or not at all."""

import errno as _errno

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc

from mmapkv.format cimport KEY_SIZE_MAX, KIND_DELETE, KIND_PUT
from mmapkv.reader cimport as_bytes
from mmapkv.writer cimport StoreWriter, expiry_of

from mmapkv.errors import StoreError

cdef uint64_t CAPACITY_FIRST = 64


def end_of(ttl):
    """When a time to live that begins now is over, in nanoseconds since 1970; 0 for None, which has no end. ValueError, TypeError."""
    return expiry_of(ttl)


cdef class Batch:
    """Collects changes in memory, and commits them when its ``with`` block ends; none, when that raises.

    Made by ``KVStore.batch``. A commit is atomic: every reader in every process sees all of it or nothing, and so does who opens the store
    after a crash. Of several changes of one key the last counts. Adding a change looks nothing up, so deleting what is absent is no error.
    Each takes some 120 bytes, besides key and value, until the end.

    >>> import tempfile; from mmapkv import KVStore
    >>> with KVStore.open(tempfile.mkdtemp()) as kv:
    ...     with kv.batch() as batch:
    ...         batch.put("from", "90")
    ...         batch["to"] = "110"
    ...         batch.delete("request")
    ...     kv["from"], kv["to"], len(kv)
    (b'90', b'110', 2)
    """

    def __cinit__(self, StoreWriter store=None, bint durable=False):
        if store is None:
            raise TypeError("use KVStore.batch")
        self.store = store
        self.durable = durable
        self.objects = []

    def __dealloc__(self):
        free(self.changes)

    def put(self, key, value, /, *, ttl=None):
        """Set the value of `key`, and how long it lives from now. Raises what ``KVStore.put`` says of its arguments, StoreError after the end."""
        self.add(KIND_PUT, key, value, expiry_of(ttl))

    def _put_until(self, key, value, uint64_t expires, /):
        # For a transaction, with what `end_of` gives.
        self.add(KIND_PUT, key, value, expires)

    def _checked(self, key, value, /):
        # Both as bytes, which may be put.
        key, value = as_bytes(key, "key"), as_bytes(value, "value")
        self.store.require(PyBytes_GET_SIZE(key), PyBytes_GET_SIZE(value))
        return key, value

    def delete(self, key, /):
        """Remove `key`, if it is there; one that no store can hold is not."""
        self.add(KIND_DELETE, key, None, 0)

    def __setitem__(self, key, value):
        self.add(KIND_PUT, key, value, 0)

    def __delitem__(self, key):
        self.add(KIND_DELETE, key, None, 0)

    def __len__(self):
        return self.count

    def __enter__(self):
        self.refuse_late()
        return self

    def __exit__(self, kind, error, trace):
        self.refuse_late()
        self.over = True
        if kind is None:
            self.store._commit(self)

    cdef int refuse_late(self) except -1:
        if self.over:
            raise StoreError(_errno.EINVAL, "the batch has ended; begin another one", self.store._path)
        return 0

    cdef int add(self, int kind, key, value, uint64_t expires) except -1:
        # All that runs Python code comes first: it may add to this very batch.
        cdef Change *change
        cdef Change *moved
        cdef uint64_t capacity
        key = as_bytes(key, "key")
        if kind == KIND_PUT:
            value = as_bytes(value, "value")
        self.refuse_late()
        if kind == KIND_DELETE and not 0 < PyBytes_GET_SIZE(key) <= KEY_SIZE_MAX:
            return 0
        self.store.require(PyBytes_GET_SIZE(key), PyBytes_GET_SIZE(value) if kind == KIND_PUT else 0)
        self.objects.append(key)
        if kind == KIND_PUT:
            self.objects.append(value)
        if self.count == self.capacity:
            capacity = max(2 * self.capacity, CAPACITY_FIRST)
            moved = <Change *>realloc(self.changes, capacity * sizeof(Change))
            if moved == NULL:
                raise MemoryError
            self.changes = moved
            self.capacity = capacity
        change = &self.changes[self.count]
        change.kind = kind
        change.key = PyBytes_AS_STRING(key)
        change.key_size = PyBytes_GET_SIZE(key)
        change.value = NULL
        change.value_size = 0
        if kind == KIND_PUT:
            change.value = PyBytes_AS_STRING(value)
            change.value_size = PyBytes_GET_SIZE(value)
        change.expires = expires
        self.count += 1
        return 0
