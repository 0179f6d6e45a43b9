# cython: language_level=3
"""The segment files of a log, found by number and mapped on first use."""

import bisect

from libc.stdint cimport uint64_t

from mmapio._os cimport Descriptor
from mmaplog.segment cimport Segment

from mmaplog.errors import CorruptionError
from mmaplog.segment import list_segments, open_segment


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
        self.names = list_segments(self.directory.fd)
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
        bisect.insort(self.names, (segment.base_seq, segment.id, segment.name))
        self.opened[segment.id] = segment

    cdef Segment by_id(self, uint64_t segment_id):
        cdef Segment found
        for attempt in range(2):
            for entry in self.names:
                if entry[1] == segment_id:
                    found = self.open(entry)
                    if found is not None:
                        return found
            self.relist()
        raise CorruptionError(
            f"the segment with id {segment_id:016x} is missing; restore it from a backup", self.path)

    cdef Segment holding(self, uint64_t seq):
        # The segment with the record `seq`, which must be committed.
        cdef Segment found
        for attempt in range(2):
            at = bisect.bisect_right(self.names, seq, key=base_of) - 1
            # The last one known may have been followed by others since.
            if at >= 0 and (attempt or at + 1 < len(self.names)):
                found = self.open(self.names[at])
                if found is not None:
                    return found
            self.relist()
        raise CorruptionError(f"no segment holds record {seq}; restore the missing file from a backup", self.path)

    cdef Segment following(self, Segment segment):
        # The segment that starts where this one ends, or None when this is the last.
        cdef Segment found
        for attempt in range(2):
            at = bisect.bisect_right(self.names, segment.base_seq, key=base_of)
            if at < len(self.names):
                found = self.open(self.names[at])
                if found is not None:
                    return found
            self.relist()
        return None

    cdef Segment open(self, entry):
        # None when the file is gone: the name was that of a segment which never held a record.
        found = self.opened.get(entry[1])
        if found is None:
            try:
                found = open_segment(self.directory.fd, entry[2], self.log_uuid, self.writable)
            except FileNotFoundError:
                return None
            self.opened[entry[1]] = found
        return <Segment>found


def base_of(entry):
    """The base sequence number of a listing's entry."""
    return entry[0]
