# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Reading a log from a number to a number."""

cimport cython
from libc.stdint cimport uint64_t

from mmapio.view cimport slice_of
from mmaplog.format cimport Footer, Found, Record, read_record
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet

from mmaplog.errors import CorruptionError, FormatError, TooOld

# How many records are read at once on the way back.
cdef uint64_t BLOCK = 256
# So many records are a scan, of which the kernel is told.
cdef uint64_t SCAN_LEAST = 10_000


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Entry:
    """One record: its `seq`, its `timestamp` in nanoseconds since 1970 (None when the log keeps none), its `payload`.

    The payload is a zero-copy view that stays valid and unchanged for as long as it is referenced.
    """

    def __repr__(self):
        return f"<Entry {self.seq}: {len(self.payload)} bytes>"


@cython.final
@cython.no_gc_clear
cdef class Scan:
    """That a segment is read from one end to the other, as long as this lives."""

    def __cinit__(self, Segment segment not None):
        self.segment = segment
        segment.begin_scan()

    def __dealloc__(self):
        if self.segment is not None:
            self.segment.end_scan()


cdef class Replay:
    """Iterates over the records [start, stop) of a log, past numbers that compaction removed. Made by ``Log.replay``."""

    def __cinit__(self, SegmentSet segments not None, uint64_t start, uint64_t stop, bint verify, uint64_t tail_id):
        self.segments = segments
        self.seq = start
        self.stop = stop
        self.verify = verify
        if start >= stop:
            return
        self.tail_id = tail_id
        self.go_to(start)

    def __iter__(self):
        return self

    def __next__(self):
        entry = self.take()
        if entry is None:
            raise StopIteration
        return entry

    cdef Entry take(self):
        # The next entry, or None when there is none below `stop`.
        cdef Record record
        if not self.read(&record, self.verify):
            return None
        return entry_of(self.segment, &record)

    cdef int go_to(self, uint64_t seq) except -1:
        # To the first record of at least this number, in the segment that has it or its gap.
        cdef Record record
        cdef uint64_t base, offset, turn = self.segments.spans.turn
        self.sought = seq
        self.segment = self.segments.holding(seq, self.tail_id)
        self.look_ahead()
        # Where another listing was made meanwhile, the next one finds out.
        if self.segments.spans.turn == turn and (self.followed or self.segment.id == self.tail_id):
            self.segments.spans.note(self.segment, self.boundary if self.followed else 0)
        base = self.segment.base_seq
        self.seq = base + self.segment.positions.nearest(seq - base, &self.offset)
        while self.seq < seq:
            offset = self.offset
            # Where numbers may be missing, one that is damaged would look as if it had been removed.
            if not self.step(&record, self.segment.sparse):
                self.seq = seq
            elif record.seq >= seq:
                # A number in a gap was asked for.
                self.offset = offset
                self.seq = seq
            else:
                self.segment.positions.note(record.seq - base, offset)
        return 0

    cdef int look_ahead(self) except -1:
        cdef Footer footer
        self.scan = None
        self.boundary = self.segments.boundary_of(self.segment, self.tail_id)
        self.followed = self.boundary != 0
        if not self.followed:
            self.boundary = self.stop
        # The writer may have grown the file since it was mapped here.
        self.segment.refresh()
        if self.followed and self.stop - self.seq >= SCAN_LEAST:
            self.scan = Scan(self.segment)
        if self.segment.sparse:
            if not self.segment.load_footer(&footer):
                raise CorruptionError(
                    "a compacted segment has no footer that verifies; restore it from a backup", self.segment.path)
            self.records_end = footer.end
        return 0

    cdef int extend(self, uint64_t stop, uint64_t tail_id) except -1:
        # Goes on where it stopped: there are more records now, the last of them in the segment `tail_id`.
        cdef uint64_t seq = self.seq, before = self.stop
        self.stop = stop
        self.tail_id = tail_id
        try:
            if self.segment is None:
                self.go_to(seq)
            elif not self.followed:
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
            raise
        return 0

    cdef bint read(self, Record *record, bint verify) except -1:
        # The next record below `stop`; False when there is none.
        cdef Segment before
        while self.seq < self.stop:
            if self.seq >= self.boundary:
                # By its number: an empty segment may have been replaced by a larger one since, or several by one.
                before = self.segment
                self.go_to(self.seq)
                if before is not None and self.segment.epoch > before.epoch:
                    self.deny_reuse(before)
            elif self.step(record, verify):
                if record.seq < self.stop:
                    return True
                self.offset -= record.size
                self.seq = self.stop
            elif self.seq < self.boundary:
                self.deny_missing()
                self.seq = self.boundary
        self.scan = None
        return False

    cdef int deny_reuse(self, Segment before) except -1:
        # Into a newer epoch one may go on only where that begins: else what was read until here is not in the log any more, and its
        # numbers are used again.
        cdef uint64_t seq = self.seq
        if self.segment.base_seq == seq:
            if seq <= self.segments.first() or self.segments.holding(seq - 1, self.tail_id).epoch <= before.epoch:
                return 0
        raise TooOld(f"records before {seq} were truncated after they had been read, and their numbers are used again", self.segments.path)

    cdef bint lacks_successor(self, Footer *footer) noexcept:
        # A segment that is finished says where the next one begins.
        return (self.followed and self.segment.load_footer(footer) and footer.seq < self.boundary
                and (footer.seq <= self.seq or self.segment.sparse and self.offset >= self.records_end))

    cdef int deny_missing(self) except -1:
        cdef Footer footer
        if self.lacks_successor(&footer) and not self.has_moved(max(footer.seq, self.seq)):
            self.segments.deny_replaced()
            raise CorruptionError(
                f"the segment that begins with record {footer.seq} is missing; restore it from a backup", self.segments.path)
        return 0

    cdef bint has_moved(self, uint64_t expected) except -1:
        # What is not where it was expected is no damage when the log has changed since this segment was looked up, though that shows by the
        # names alone: all may have been undone, and the numbers given out again. True when its place is to be looked up anew, for which
        # it is left as at an end. TooOld when it was truncated, or what would be at `expected`.
        cdef SegmentSet segments = self.segments
        cdef uint64_t seq = max(self.seq, self.sought), generation, tail_id, boundary
        cdef Segment found
        if segments.control is None:
            segments.deny_truncated(seq)
            return False
        while True:
            generation = segments.generation_now()
            # Before it is asked which is the last segment: what is committed is in there, or before it.
            segments.deny_truncated(max(seq, expected))
            tail_id = segments.tail_id()
            segments.relist()
            # Again: MANIFEST may say so, whose writer was killed before CONTROL did.
            segments.deny_truncated(seq)
            found = segments.holding(seq, tail_id)
            boundary = segments.boundary_of(found, tail_id)
            if segments.generation_now() == generation:
                break
        if found.id == self.segment.id and (boundary or self.stop) == self.boundary:
            return False
        self.tail_id = tail_id
        self.boundary = self.seq
        return True

    cdef bint step(self, Record *record, bint verify) except -1:
        # The record at `offset`; False at the end of a segment with gaps, and where it is to be looked up anew. In any other each number
        # below the boundary has its record: they were committed, so what is missing is damage.
        cdef Found found
        cdef uint64_t generation = 0
        cdef bint is_judged = False
        if self.segment.sparse and self.offset >= self.records_end:
            return False
        while True:
            found = read_record(
                self.segment.base, self.offset, self.segment.limit, self.segment.id, self.segment.base_seq, verify, record)
            self.segment.region.check()
            if found == Found.RECORD and (record.seq == self.seq or self.segment.sparse and record.seq > self.seq):
                if record.seq >= self.boundary:
                    # Of a segment with gaps that was cut.
                    return False
                self.start = self.offset
                self.offset += record.size
                self.seq = record.seq + 1
                return True
            if found == Found.UNKNOWN:
                raise FormatError(
                    f"record {self.seq} at offset {self.offset} is of a kind this code does not know; upgrade mmapkv",
                    self.segment.path)
            if is_judged and self.segments.generation_now() == generation:
                break
            # First whether it is to be here, then once more whether it is: where the log was cut, it may have been given out again just now.
            generation = self.segments.generation_now()
            # Perhaps it is the next segment that is not what its name says.
            self.segments.following(self.segment, self.tail_id)
            if self.has_moved(self.seq):
                return False
            self.segment.refresh()
            is_judged = True
        self.deny_missing()
        self.segments.deny_replaced()
        raise CorruptionError(
            f"record {self.seq} at offset {self.offset} is damaged, though records up to {self.stop - 1} were committed; "
            "restore the segment from a backup", self.segment.path)


cdef Entry entry_of(Segment segment, Record *record):
    cdef Entry entry = Entry.__new__(Entry)
    entry.seq = record.seq
    entry.timestamp = record.time if record.time else None
    entry.payload = slice_of(segment.region, record.payload, record.payload_size)
    return entry


def backwards(SegmentSet segments, uint64_t start, uint64_t stop, bint verify, uint64_t tail_id):
    """The records [start, stop) from the last to the first. Read in blocks, forwards, for they have no way back."""
    cdef uint64_t first
    cdef Replay replay
    cdef Segment lowest = None
    while stop > start:
        first = stop - min(stop - start, BLOCK)
        replay = Replay(segments, first, stop, verify, tail_id)
        begun = replay.segment
        entries = list(replay)
        if lowest is not None and replay.segment.epoch > lowest.epoch:
            raise TooOld(
                f"records before {stop} were truncated after those behind them had been read, and their numbers are used again", segments.path)
        lowest = begun
        entries.reverse()
        yield from entries
        stop = first
