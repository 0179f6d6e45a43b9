# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""One record by its number, where the way to it is known."""

from itertools import islice

from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from libc.stdint cimport uint64_t

from mmapio cimport _memory as memory
from mmaplog.format cimport RECORD_HEADER_SIZE, UNIT, CommitSlot, Found, Record, RecordHeader, read_record
from mmaplog.positions cimport SPACING
from mmaplog.replay cimport Entry, entry_of
from mmaplog.segment cimport Segment
from mmaplog.syncer cimport Syncer

# So many records are on their way from memory at the same time.
cdef int AT_ONCE = 8
cdef uint64_t LINE = 64


cdef Entry find(Syncer log, object number):
    # The entry with this number, or None whenever it takes more to tell: what is new to this handle, and whatever is not as it was
    # expected, is the business of `Replay`. So nothing is judged here, and nothing learnt.
    cdef Record record
    cdef uint64_t index, offset
    cdef Segment segment = way_to(log, number, &index, &offset)
    if segment is None:
        return None
    fetch(segment.base + offset)
    if not read_at(segment, index, offset, &record) or segment.region.faulted():
        return None
    return entry_of(segment, &record)


cdef list find_many(Syncer log, numbers):
    # What the log has at each of these, which are taken a few at a time.
    cdef uint64_t index, offset
    cdef Segment segment
    cdef list found = [], group
    log.check()
    source = iter(numbers)
    while True:
        group = list(islice(source, AT_ONCE))
        if not group:
            return found
        for number in group:
            # Anything else is free to run code.
            if PyLong_CheckExact(number):
                segment = way_to(log, number, &index, &offset)
                if segment is not None:
                    fetch(segment.base + offset)
        for number in group:
            found.append(log[number])


cdef Segment way_to(Syncer log, object number, uint64_t *index, uint64_t *offset):
    # The segment that has this number, as which of its records, and where the nearest record before it starts; None when it is not known.
    cdef CommitSlot slot
    cdef Segment segment
    cdef int overflow = 0
    cdef long long wanted = PyLong_AsLongLongAndOverflow(number, &overflow)
    if overflow or log.control is None:
        return None
    slot = log.control.committed()
    if wanted < 0:
        wanted += slot.seq
    if wanted < 0 or <uint64_t>wanted >= slot.seq or <uint64_t>wanted < log.segments.first() or log.control.file.region.faulted():
        return None
    segment = log.segments.known(wanted, slot.segment_id)
    if segment is not None:
        index[0] = wanted - segment.base_seq
        segment.positions.nearest(index[0], offset)
    return segment


cdef inline void fetch(const char *start) noexcept:
    # From memory, all of what may be walked over: one line after the other would be waited for.
    cdef uint64_t line = 0
    while line < SPACING:
        memory.prefetch(start + line)
        line += LINE


cdef bint read_at(Segment segment, uint64_t index, uint64_t offset, Record *record) noexcept:
    # Whether the record of this number in the segment is at most SPACING bytes from the one that starts here. Those on the way are not
    # verified: the one that is found is, and its seal is of its number and its place.
    cdef uint64_t stop = min(offset + SPACING, segment.limit - RECORD_HEADER_SIZE)
    cdef const RecordHeader *header
    while True:
        if offset > stop:
            return False
        header = <const RecordHeader *>(segment.base + offset)
        if header.seq >= index:
            break
        if header.length < RECORD_HEADER_SIZE // UNIT:
            return False
        offset += <uint64_t>header.length * UNIT
    return (read_record(segment.base, offset, segment.limit, segment.id, segment.base_seq, True, record) == Found.RECORD
            and record.seq == segment.base_seq + index)
