# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""What of a segment's bytes still verifies, in whatever buffer they are: the records before damage and those behind it."""

from dataclasses import dataclass

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from mmaplog.format cimport (
    FLAG_BATCH,
    FLAG_BATCH_END,
    FLAG_KNOWN,
    LAG_UNKNOWN,
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    TYPE_DATA,
    UNIT,
    Found,
    Record,
    RecordHeader,
    checksum_of,
    read_record,
)

HASHED_MAX = 1 << 30
"""Bytes hashed in one segment in the search behind damage: a payload can be made to look like many records."""


@dataclass(frozen=True, slots=True)
class Run:
    """Records that lie one after the other at [offset, end), every one of them right, every batch whole.

    The first has the number `start`, the last `stop - 1`; there are `records` of them, fewer than numbers only in a segment with gaps.
    """

    start: int
    stop: int
    offset: int
    end: int
    records: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look at a segment found.

    `seen` is the number after the highest one that any record had, `claimed` the highest number that any vouches for. `leftover` is where the
    first byte stands that is not zero and is behind the last run, or None. `unknown` is the number of a record that verifies and is of a
    kind that this code does not know, or None. `complete` is false when the search gave up.
    """

    runs: tuple
    seen: int
    claimed: int
    leftover: object
    unknown: object
    complete: bool


cdef struct Walk:
    # Where one look at a segment stands, and the run that it is in.
    const char *base
    uint64_t limit
    uint64_t id
    uint64_t base_seq
    uint64_t first              # records below are none of the log's
    uint64_t boundary           # nor are those from here on
    uint64_t offset
    uint64_t expected
    uint64_t budget
    uint64_t start              # the run: its first number ...
    uint64_t start_offset
    uint64_t safe               # ... the number after its last batch or record that is whole ...
    uint64_t safe_end
    uint64_t count              # of records in the run, and of those in it that are safe
    uint64_t safe_count
    uint64_t seen
    uint64_t claimed
    uint64_t unknown
    bint is_unknown
    bint in_batch
    bint in_remains             # of a batch whose beginning is lost
    bint in_run
    bint sparse                 # numbers may be missing


def scan(data not None, uint64_t segment_id, uint64_t base_seq, uint64_t first, uint64_t boundary, bint sparse=False):
    """Find the records [first, boundary) of the segment in the buffer `data`, wherever they are.

    A batch of which a record is missing is left out: it counts whole or not at all. In a `sparse` segment numbers may be missing. Costs one pass over the bytes, and behind damage
    a look at every multiple of 8; changes nothing, and runs without the GIL.
    """
    cdef Py_buffer view
    cdef Walk walk
    cdef bint going = True
    memset(&walk, 0, sizeof(walk))
    runs = []
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        walk.base = <const char *>view.buf
        walk.limit = view.len
        walk.id = segment_id
        walk.base_seq = base_seq
        walk.first = first
        walk.boundary = boundary
        walk.sparse = sparse
        walk.offset = SEGMENT_HEADER_SIZE
        walk.expected = base_seq
        walk.budget = HASHED_MAX
        while going:
            with nogil:
                going = read_on(&walk)
            close_run(&walk, runs)
            if going:
                with nogil:
                    going = search(&walk)
            PyErr_CheckSignals()
        leftover = first_nonzero(walk.base, runs[len(runs) - 1].end if runs else SEGMENT_HEADER_SIZE, walk.limit)
        return Scan(
            tuple(runs), walk.seen, walk.claimed, leftover if leftover < walk.limit else None,
            walk.unknown if walk.is_unknown else None, walk.budget > 0)
    finally:
        PyBuffer_Release(&view)


cdef close_run(Walk *walk, runs):
    if walk.in_run and walk.safe > walk.start:
        runs.append(Run(walk.start, walk.safe, walk.start_offset, walk.safe_end, walk.safe_count))
    walk.in_run = False
    walk.in_batch = False


cdef bint read_on(Walk *walk) noexcept nogil:
    # Takes records until one is not the next; whether there is more to look at behind that.
    cdef Record record
    cdef Found found
    cdef RecordHeader header
    while True:
        found = read_record(walk.base, walk.offset, walk.limit, walk.id, walk.base_seq, True, &record)
        if found == Found.UNKNOWN:
            memcpy(&header, walk.base + walk.offset, sizeof(header))
            if walk.base_seq + header.seq < walk.boundary:
                walk.unknown = walk.base_seq + header.seq
                walk.is_unknown = True
            return False
        if found != Found.RECORD or record.seq != walk.expected and not (walk.sparse and record.seq > walk.expected):
            return walk.offset < walk.limit
        if record.seq >= walk.boundary:
            return False
        take(walk, &record)


cdef void take(Walk *walk, Record *record) noexcept nogil:
    walk.seen = max(walk.seen, record.seq + 1)
    walk.claimed = max(walk.claimed, record.durable)
    if walk.in_remains and not record.flags & FLAG_BATCH:
        walk.in_remains = False
    if record.seq >= walk.first and not walk.in_remains:
        if not walk.in_run:
            walk.in_run = True
            walk.start = walk.safe = record.seq
            walk.start_offset = walk.safe_end = walk.offset
            walk.count = walk.safe_count = 0
        walk.count += 1
        walk.in_batch = record.flags & FLAG_BATCH and not record.flags & FLAG_BATCH_END
        if not walk.in_batch:
            walk.safe = record.seq + 1
            walk.safe_end = walk.offset + record.size
            walk.safe_count = walk.count
    if record.flags & FLAG_BATCH_END:
        walk.in_remains = False
    walk.offset += record.size
    walk.expected = record.seq + 1


cdef bint search(Walk *walk) noexcept nogil:
    # On to the next record that verifies, at any multiple of 8 behind one that does not; a cheap look at the header
    # skips nearly all the places where none begins. False when there is none.
    cdef uint64_t word, size
    cdef RecordHeader header
    cdef Record record
    cdef uint64_t offset = walk.offset
    # What was read last may be where it should be, with a number that is not: then that number was skipped.
    while walk.limit >= RECORD_HEADER_SIZE and offset <= walk.limit - RECORD_HEADER_SIZE:
        memcpy(&word, walk.base + offset, sizeof(word))
        if word != 0:
            memcpy(&header, walk.base + offset, sizeof(header))
            size = <uint64_t>header.length * UNIT
            if (size >= RECORD_HEADER_SIZE and size <= walk.limit - offset and header.type == TYPE_DATA
                    and header.flags & ~<uint32_t>FLAG_KNOWN == 0 and walk.base_seq + header.seq >= walk.expected
                    and walk.base_seq + header.seq < walk.boundary):
                if size > walk.budget:
                    walk.budget = 0
                    return False
                walk.budget -= size
                if read_record(walk.base, offset, walk.limit, walk.id, walk.base_seq, True, &record) == Found.RECORD:
                    walk.offset = offset
                    walk.expected = record.seq
                    # A batch ends with a flag and begins without one: this may be the middle of one.
                    walk.in_remains = record.flags & FLAG_BATCH
                    return True
        offset += UNIT
    return False


def place(data not None, run, uint64_t base_before, uint64_t segment_id, uint64_t base_seq):
    """Move the records of a run to where a segment with another id and base number has its first, and seal them for there.

    They keep their numbers. What was a batch stands by itself then, for all of it is there and is going to be durable. `data` is a writable buffer; what is behind them is zeroed. Returns where they end. The page at the front is for the caller.
    """
    cdef Py_buffer view
    cdef uint64_t offset = SEGMENT_HEADER_SIZE, end, source
    cdef RecordHeader *header
    cdef char *start
    PyObject_GetBuffer(data, &view, PyBUF_WRITABLE)
    try:
        start = <char *>view.buf
        end = offset + <uint64_t>(run.end - run.offset)
        assert end <= <uint64_t>view.len
        source = run.offset
        with nogil:
            memmove(start + offset, start + source, end - offset)
            memset(start + end, 0, view.len - end)
            while offset < end:
                header = <RecordHeader *>(start + offset)
                header.seq = <uint32_t>(base_before + header.seq - base_seq)
                header.flags &= <uint8_t>~(FLAG_BATCH | FLAG_BATCH_END)
                header.lag = <uint16_t>LAG_UNKNOWN
                header.checksum = checksum_of(start + offset, segment_id, offset, header.length)
                offset += <uint64_t>header.length * UNIT
        return end
    finally:
        PyBuffer_Release(&view)


cdef uint64_t first_nonzero(const char *base, uint64_t offset, uint64_t limit) noexcept nogil:
    # Where the first byte that is not zero stands, or `limit`.
    cdef uint64_t word
    while offset + sizeof(word) <= limit:
        memcpy(&word, base + offset, sizeof(word))
        if word != 0:
            return offset
        offset += sizeof(word)
    while offset < limit and base[offset] == 0:
        offset += 1
    return offset
