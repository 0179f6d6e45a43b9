# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Looking up what a key had when the log of its store ended at some number."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t

from mmapio cimport _fault
from mmapkv.format cimport make_address
from mmapkv.index cimport ABSENT, PRESENT, STRAY, UNMAPPED, Hit, Index, Outcome
from mmapkv.reader cimport StoreReader, as_bytes
from mmaplog.checksum cimport xxh3


def to_bytes(thing, what):
    """What every method of a store makes of a key or a value; `what` is its name in the TypeError."""
    return as_bytes(thing, what)


def value_at(StoreReader store, bytes key, uint64_t stop, bint copied):
    """The value that `key` had below number `stop`, or None. Unless `copied`, the bytes are empty, whatever it was.

    Costs a look-up, and a step back for each change since. Raises CorruptionError for a value that does not verify, Closed.
    """
    cdef const char *start = PyBytes_AS_STRING(key)
    cdef uint64_t size = PyBytes_GET_SIZE(key), newest
    cdef bint verify = copied and store.verify
    cdef Hit hit
    cdef Outcome outcome
    cdef Index index
    while True:
        index = store.index
        if index is None:
            store.raise_closed()
        outcome = index.find(xxh3(start, size, index.seed), start, size, verify, &hit)
        if outcome == PRESENT:
            newest = hit.seq
        while outcome == PRESENT:
            outcome = index.version_before(stop, &hit)
            if outcome == STRAY or outcome == UNMAPPED:
                store.settle(index, outcome, &hit)
                outcome = PRESENT
                continue
            if outcome == PRESENT and verify and hit.seq != newest:
                # On the way down only numbers and keys were looked at.
                outcome = index.match(make_address(hit.slot, hit.offset), start, size, True, &hit)
            break
        if _fault.faults() != store.faults:
            store.check_faults()
        if outcome == PRESENT:
            if hit.deleted:
                return None
            return store.value_of(&hit) if copied else b""
        if outcome == ABSENT:
            return None
        store.settle(index, outcome, &hit)
