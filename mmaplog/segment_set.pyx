# cython: language_level=3, auto_pickle=False
"""The segment files of a log, found by number and mapped on first use."""

import bisect

from libc.stdint cimport uint64_t

from mmapio._os cimport Descriptor
from mmaplog.format cimport SEGMENT_HEADER_SIZE, Found, Record, read_record
from mmaplog.segment cimport Segment

from mmapio import _os as system
from mmaplog.errors import CorruptionError
from mmaplog.segment import list_segments, open_segment

# A listing can be out of date as soon as it is made: the writer, maybe another thread, replaces an empty segment.
cdef int ATTEMPTS = 4


cdef class SegmentSet:
    """What is in the directory of a log. Looked at again whenever a segment is not found where it should be."""

    def __cinit__(self, Descriptor directory, path, log_uuid, bint writable):
        self.directory = directory
        self.path = path
        self.log_uuid = log_uuid
        self.writable = writable
        self.opened = {}
        self.relist()

    def relist(self):
        """Read the directory again."""
        cdef uint64_t changes
        while True:
            # Another thread may add or discard a segment while this one reads; a listing from before must not undo that.
            changes = self.changes
            names = list_segments(self.directory)
            if self.changes == changes:
                break
        self.names = names
        present = {segment_id for _, segment_id, _ in self.names}
        self.opened = {key: value for key, value in self.opened.items() if key in present}

    def listing(self):
        """(base_seq, id, name) of every segment, in order of their records."""
        return list(self.names)

    def get(self, segment_id):
        """The segment with this id. CorruptionError when its file is gone."""
        return self.by_id(segment_id)

    def add(self, Segment segment):
        """Make a segment known that was just created."""
        self.changes += 1
        bisect.insort(self.names, (segment.base_seq, segment.id, segment.name))
        self.opened[segment.id] = segment

    cdef Segment by_id(self, uint64_t segment_id):
        cdef Segment found
        for attempt in range(ATTEMPTS):
            for entry in self.names:
                if entry[1] == segment_id:
                    found = self.open(entry)
                    if found is not None:
                        return found
            self.relist()
        raise CorruptionError(
            f"the segment with id {segment_id:016x} is missing; restore it from a backup", self.path)

    cdef Segment holding(self, uint64_t seq, uint64_t tail_id):
        # The segment with the record `seq`, which must be committed.
        cdef Segment found
        for attempt in range(ATTEMPTS):
            at = bisect.bisect_right(self.names, seq, key=base_of) - 1
            # The last one known may have been followed by others since.
            if at >= 0 and (attempt or at + 1 < len(self.names) or self.names[at][1] == tail_id):
                found = self.at_base(self.names[at][0])
                if found is not None:
                    return found
            self.relist()
        raise CorruptionError(f"no segment holds record {seq}; restore the missing file from a backup", self.path)

    cdef Segment following(self, Segment segment, uint64_t tail_id):
        # The segment that starts where this one ends, or None when this is the last.
        cdef Segment found
        if segment.id == tail_id:
            return None
        for attempt in range(ATTEMPTS):
            at = bisect.bisect_right(self.names, segment.base_seq, key=base_of)
            # The last name known may be that of an empty segment which is gone, and has a namesake in its place.
            if at < len(self.names) and (attempt or at + 1 < len(self.names) or self.names[at][1] == tail_id):
                found = self.at_base(self.names[at][0])
                if found is not None:
                    return found
            self.relist()
        return None

    cdef Segment at_base(self, uint64_t base_seq):
        # Of segments with the same base number only one counts: of the newest epoch, and not empty if there is a choice.
        # A roll cut short, or replacing an empty segment by a larger one, leaves an empty twin for a while.
        cdef Segment found, best = None
        best_rank = None
        for entry in self.names[bisect.bisect_left(self.names, base_seq, key=base_of):]:
            if entry[0] != base_seq:
                break
            found = self.open(entry)
            if found is None:
                continue
            rank = found.epoch, holds_records(found)
            if best_rank is None or rank > best_rank:
                best, best_rank = found, rank
        return best

    cdef Segment open(self, entry):
        # None when the file is gone: the name was that of a segment which never held a record.
        found = self.opened.get(entry[1])
        if found is None:
            try:
                found = open_segment(self.directory, entry[2], self.log_uuid, self.writable)
            except FileNotFoundError:
                return None
            self.opened[entry[1]] = found
            # Only the last segment may still grow; what is learnt of it needs its descriptor again and again.
            if self.names and entry[1] == self.names[len(self.names) - 1][1]:
                if self.last is not None:
                    self.last.release()
                self.last = <Segment>found
            else:
                (<Segment>found).release()
        return <Segment>found

    cdef int check(self) except -1:
        # After reads and stores: MappingFault when one of them met a page that is gone.
        for segment in self.opened.values():
            (<Segment>segment).region.check()
        return 0

    def bases(self):
        """The base numbers of the segments, each once, in order."""
        return sorted({entry[0] for entry in self.names})

    def discard(self, Segment segment):
        """Remove a segment without records, file and all."""
        self.changes += 1
        system.remove_file(self.directory, segment.name)
        self.changes += 1
        self.opened.pop(segment.id, None)
        self.names = [entry for entry in self.names if entry[1] != segment.id]


cdef bint holds_records(Segment segment) noexcept:
    # Whether the first record of a segment is there.
    cdef Record record
    return read_record(
        segment.base, SEGMENT_HEADER_SIZE, segment.limit, segment.id, segment.base_seq, True, &record) == Found.RECORD


def base_of(entry):
    """The base sequence number of a listing's entry."""
    return entry[0]
