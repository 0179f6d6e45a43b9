# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Reading a log from a number to a number."""

cimport cython
from libc.stdint cimport uint64_t

from mmapio.view cimport slice_of
from mmaplog.format cimport SEGMENT_HEADER_SIZE, Found, Record, read_record
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet

from mmaplog.errors import CorruptionError, FormatError

# How many records are read at once on the way back.
cdef uint64_t BLOCK = 256


@cython.final
@cython.freelist(64)
cdef class Entry:
    """One record: its `seq`, its `timestamp` in nanoseconds since 1970 (None when the log keeps none), its `payload`.

    The payload is a zero-copy view that stays valid and unchanged for as long as it is referenced.
    """

    cdef readonly uint64_t seq
    cdef readonly object timestamp
    cdef readonly object payload

    def __repr__(self):
        return f"<Entry {self.seq}: {len(self.payload)} bytes>"


cdef class Replay:
    """Iterates over the records [start, stop) of a log. Made by ``Log.replay``."""

    def __init__(self, SegmentSet segments, uint64_t start, uint64_t stop, bint verify, uint64_t tail_id):
        self.segments = segments
        self.seq = start
        self.stop = stop
        self.verify = verify
        if start >= stop:
            return
        self.tail_id = tail_id
        self.enter(segments.holding(start, tail_id))
        self.walk_to(start)

    def __iter__(self):
        return self

    def __next__(self):
        cdef Record record
        cdef Entry entry
        if self.seq >= self.stop:
            raise StopIteration
        self.read(&record, self.verify)
        entry = Entry.__new__(Entry)
        entry.seq = record.seq
        entry.timestamp = record.time if record.time else None
        entry.payload = slice_of(self.segment.region, record.payload, record.payload_size)
        return entry

    cdef int enter(self, Segment segment) except -1:
        self.segment = segment
        self.offset = SEGMENT_HEADER_SIZE
        self.seq = segment.base_seq
        return self.look_ahead()

    cdef int look_ahead(self) except -1:
        self.following = self.segments.following(self.segment, self.tail_id)
        self.boundary = self.following.base_seq if self.following is not None else self.stop
        # The writer may have grown the file since it was mapped here.
        self.segment.refresh()
        if self.following is not None:
            self.segment.settled = True
        return 0

    cdef int walk_to(self, uint64_t seq) except -1:
        # To a record of the segment just entered.
        cdef Record record
        cdef uint64_t base = self.segment.base_seq
        self.seq = base + self.segment.positions.nearest(seq - base, &self.offset)
        while self.seq < seq:
            self.segment.positions.note(self.seq - base, self.offset)
            self.read(&record, False)
        return 0

    cdef int extend(self, uint64_t stop, uint64_t tail_id) except -1:
        # Goes on where it stopped: there are more records now, the last of them in the segment `tail_id`.
        cdef uint64_t seq = self.seq, before = self.stop
        self.stop = stop
        self.tail_id = tail_id
        try:
            if self.segment is None:
                self.enter(self.segments.holding(seq, tail_id))
                return self.walk_to(seq)
            if self.following is None:
                if self.segment.id == tail_id:
                    self.segment.refresh()
                    self.boundary = stop
                else:
                    self.look_ahead()
        except BaseException:
            # As it was: the next call begins anew.
            self.seq = seq
            self.stop = before
            self.segment = None
            self.following = None
            raise
        return 0

    cdef int read(self, Record *record, bint verify) except -1:
        # Everything below `stop` is committed, so it must be there: what is missing is damage.
        cdef Found found
        if self.seq == self.boundary:
            # Not `following` itself: an empty segment may have been replaced by a larger one since.
            self.enter(self.segments.holding(self.seq, self.tail_id))
        found = read_record(
            self.segment.base, self.offset, self.segment.limit, self.segment.id, self.segment.base_seq, verify, record)
        self.segment.region.check()
        if found == Found.RECORD and record.seq == self.seq:
            self.offset += record.size
            self.seq += 1
            return 0
        if found == Found.UNKNOWN:
            raise FormatError(
                f"record {self.seq} at offset {self.offset} is of a kind this code does not know; upgrade mmapkv",
                self.segment.path)
        raise CorruptionError(
            f"record {self.seq} at offset {self.offset} is damaged, though records up to {self.stop - 1} were committed; "
            "restore the segment from a backup", self.segment.path)


def backwards(SegmentSet segments, uint64_t start, uint64_t stop, bint verify, uint64_t tail_id):
    """The records [start, stop) from the last to the first. Read in blocks, forwards, for they have no way back."""
    cdef uint64_t first
    while stop > start:
        first = stop - min(stop - start, BLOCK)
        entries = list(Replay(segments, first, stop, verify, tail_id))
        entries.reverse()
        yield from entries
        stop = first
