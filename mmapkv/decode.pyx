# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""What the records of a store's log say, in order."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from mmapkv.catch_up cimport parse
from mmapkv.clearance cimport bound_of
from mmapkv.format cimport (
    EXPIRY_SIZE,
    FLAG_EXPIRY,
    FLAG_PREVIOUS,
    KEY_SIZE_MAX,
    KIND_CLEAR,
    KIND_PUT,
    PAYLOAD_HEADER_SIZE,
    VALUE_SIZE_MAX,
    PayloadHeader,
    Previous,
)
from mmaplog.follow cimport Follower
from mmaplog.format cimport Record
from mmaplog.replay cimport Replay

KEY_BYTES_MAX = KEY_SIZE_MAX
"""How long a key can be, for Python."""
VALUE_BYTES_MAX = VALUE_SIZE_MAX
"""How long a value can be, for Python."""


def note_presence(Replay replay, dict present, uint64_t count, uint64_t known):
    """For up to `count` records note of each key whether it is present after them.

    Returns how many there were, and whether a key may be absent all the same: for a time to live, or a
    clear of records from number `known` on. Costs reading a record and an entry in the dict, for each.
    """
    cdef Record record
    cdef PayloadHeader payload
    cdef const char *key
    cdef uint64_t done = 0
    cdef bint expiring = False
    while done < count and replay.read(&record, True):
        parse(&record, replay, &payload, &key)
        done += 1
        if payload.kind == KIND_CLEAR:
            expiring = expiring or bound_of(&record) > known
            continue
        name = PyBytes_FromStringAndSize(key, payload.key_length)
        replay.segment.region.check()
        present[name] = payload.kind == KIND_PUT
        expiring = expiring or payload.flags & FLAG_EXPIRY
    return done, expiring


def take_change(Follower follower, uint64_t stop):
    """The next record below `stop`: (number, key, its value, number of the key's version before, when it expires), None for what is not.

    A clear has an empty key, and for its value the number below which everything is gone. None when there is none there. Raises TooOld, CorruptionError, MappingFault, Closed.
    """
    cdef Replay replay = follower.replay
    cdef Record record
    cdef PayloadHeader payload
    cdef Previous before
    cdef uint64_t end
    cdef const char *key
    while follower.fetch() and replay.seq < stop:
        if not replay.read(&record, replay.verify):
            continue
        if record.seq >= stop:
            # Behind a gap.
            replay.offset -= record.size
            replay.seq = stop
            break
        parse(&record, replay, &payload, &key)
        name = PyBytes_FromStringAndSize(key, payload.key_length)
        value = previous = expires = None
        if payload.kind == KIND_CLEAR:
            value = bound_of(&record)
        if payload.kind == KIND_PUT:
            value = PyBytes_FromStringAndSize(record.payload + record.payload_size - payload.value_length, payload.value_length)
        if payload.flags & FLAG_PREVIOUS:
            memcpy(&before, record.payload + PAYLOAD_HEADER_SIZE, sizeof(before))
            previous = before.seq
        if payload.flags & FLAG_EXPIRY:
            memcpy(&end, key - EXPIRY_SIZE, sizeof(end))
            expires = end
        replay.segment.region.check()
        return record.seq, name, value, previous, expires
    return None
