# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""A segment that compaction fills: written from memory, a piece at a time, and mapped by who reads it later.

Stores through a mapping would cost a fault for each page, and the kernel would keep, write and drop its pages one by one.
"""

import os

from libc.errno cimport ENOMEM
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc

from mmapio._os cimport Descriptor, write_all
from mmaplog.format cimport (
    FLAG_BATCH,
    FLAG_BATCH_END,
    LAG_UNKNOWN,
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    UNIT,
    RecordHeader,
    checksum_of,
)
from mmaplog.segment cimport Segment

from mmapio import _os as system
from mmapio.errors import FlushFailed
from mmaplog import page
from mmaplog.control import random_word
from mmaplog.errors import CorruptionError
from mmaplog.manifest import TEMPORARY_SUFFIX
from mmaplog.segment import name_of

# So many bytes are written at a time; more only of a record that is larger.
cdef uint64_t PIECE = 256 << 10


cdef class Draft:
    """A segment in the place of others, `first` the first of them, with room for `size` bytes of records."""

    def __cinit__(self, Descriptor directory not None, log_uuid, Segment first not None, uint64_t size):
        self.directory = directory
        self.id = random_word()
        self.base_seq = first.base_seq
        self.capacity = SEGMENT_HEADER_SIZE + size
        self.start = self.end = SEGMENT_HEADER_SIZE
        self.room = PIECE
        self.buffer = <char *>malloc(PIECE)
        if self.buffer == NULL:
            raise MemoryError
        # Its records are as old as those of that one.
        self.head = page.make(log_uuid.bytes, self.id, first.base_seq, first.base_time, self.capacity, first.epoch, first.id)
        self.name = name_of(first.base_seq, self.id, True) + TEMPORARY_SUFFIX
        self.file = system.open_file(self.name, True, create=True, exclusive=True, follow=False, directory=directory)

    def __dealloc__(self):
        free(self.buffer)

    cdef char *place(self, uint64_t size) noexcept nogil:
        # Where the next record goes, for who calls `settle` then; NULL when there is none: `refuse` says why.
        cdef char *larger
        if size < RECORD_HEADER_SIZE or size > self.capacity - self.end:
            return NULL
        if self.end - self.start + size > self.room:
            if self.write_out() < 0:
                return NULL
            if size > self.room:
                larger = <char *>realloc(self.buffer, size)
                if larger == NULL:
                    self.failure = -ENOMEM
                    return NULL
                self.buffer = larger
                self.room = size
        return self.buffer + (self.end - self.start)

    cdef void settle(self, Segment source, uint64_t size) noexcept nogil:
        # What a record of `source`, now of so many bytes, says of its place and its company is made true of its copy at `place`.
        cdef char *record = self.buffer + (self.end - self.start)
        cdef RecordHeader *header = <RecordHeader *>record
        header.seq = <uint32_t>(source.base_seq + header.seq - self.base_seq)
        # What was one batch stands by itself now: all of it is durable.
        header.flags &= <uint8_t>~(FLAG_BATCH | FLAG_BATCH_END)
        header.lag = <uint16_t>LAG_UNKNOWN
        header.length = <uint32_t>(size // UNIT)
        header.checksum = checksum_of(record, self.id, self.end, header.length)
        self.end += size

    cdef int write_out(self) noexcept nogil:
        if self.failure == 0 and self.end > self.start:
            self.failure = write_all(self.file.fd, self.buffer, self.end - self.start, self.start)
            self.start = self.end
        return self.failure

    cdef int refuse(self, Segment source) except -1:
        # Says why there was no place for a record of `source`.
        if self.failure == 0:
            raise CorruptionError("the segment was written to by others while its records were copied", source.path)
        if self.failure == -ENOMEM:
            raise MemoryError
        raise OSError(-self.failure, os.strerror(-self.failure), self.directory.locate(self.name))

    def finish(self, uint64_t stop, uint64_t records):
        """Make it whole and durable, with so many records, the segment after it beginning at `stop`; all but its name.

        OSError; FlushFailed when the sync fails.
        """
        cdef Descriptor file = self.file
        cdef int result
        with nogil:
            result = self.write_out()
        if result < 0:
            raise OSError(-result, os.strerror(-result), file.path)
        system.write_at(file, page.seal(self.head, self.id, stop, self.end, records), 0)
        try:
            system.sync(file)
        except OSError as error:
            raise FlushFailed(error.errno, f"sync failed: {error.strerror}", file.path) from error
        if <uint64_t>system.file_size(file) < self.end:
            raise CorruptionError("the new segment was cut by others while it was written", file.path)
        self.file = None

    def publish(self):
        """Give it its final name, which is durable after a sync of the directory."""
        # Nothing that a signal could interrupt comes after the renaming.
        temporary = self.name
        name = temporary.removesuffix(TEMPORARY_SUFFIX)
        system.replace_file(self.directory, temporary, name)
        self.name = name
