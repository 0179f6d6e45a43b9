# cython: language_level=3, auto_pickle=False
"""A segment: one file of records, mapped for as long as anything refers to it."""

import errno as _errno
import time

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from mmapio cimport _memory as memory
from mmapio cimport _vm
from mmapio._os cimport Descriptor
from mmapio.mapping cimport MappedFile
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport (
    COPIES,
    FOOTER_OFFSET,
    INCOMPATIBLE_GAPS,
    INCOMPATIBLE_KNOWN,
    MARK_OFFSET,
    MARK_OPENED,
    SECTOR,
    SEGMENT_HEADER_SIZE,
    SEGMENT_MAGIC,
    VERSION,
    DurableMark,
    Footer,
    Found,
    Record,
    SegmentHeader,
    read_record,
)
from mmaplog.positions cimport Positions

from mmapio import _os as system
from mmaplog import page
from mmaplog.control import random_word
from mmaplog.errors import CorruptionError, FormatError
from mmaplog.header import check as check_header
from mmaplog.manifest import COMPACTED_SUFFIX, TEMPORARY_SUFFIX
from mmaplog.reserve import is_full

RECORDS_START = SEGMENT_HEADER_SIZE
"""Where in a segment its records start, for Python."""

cdef extern from "Python.h":
    bint is_ascii "PyUnicode_IS_ASCII"(str text) noexcept
    const char *ascii_of "PyUnicode_DATA"(str text) noexcept

# How a segment is called: the number it begins with, a dash, its id, and one of two endings.
cdef Py_ssize_t BASE_DIGITS = 20
cdef Py_ssize_t ID_DIGITS = 16
cdef Py_ssize_t STEM = BASE_DIGITS + 1 + ID_DIGITS
cdef bytes PLAIN_ENDING = b".seg"
cdef bytes SPARSE_ENDING = COMPACTED_SUFFIX.encode()


cdef struct Name:
    uint64_t base_seq
    uint64_t segment_id
    bint sparse


cdef class Segment:
    """One mapped segment file. Made by `create_segment` or `open_segment`."""

    def __cinit__(self, MappedFile file not None):
        file.check_open()
        self.file = file
        self.region = file.region
        self.base = file.base

    def __repr__(self):
        return f"<Segment {self.name} of {self.limit} bytes>"

    cdef MappedFile handle(self):
        if self.file is None:
            self.file = (<Segment>open_segment(self.directory, self.name, self.log_uuid, self.writable)).file
        return self.file

    cdef release(self):
        # A log may have thousands of segments; the descriptor of one that is only read is not kept.
        self.file = None

    def footer(self):
        """(the number after it, how many records it has) of a segment that is finished; None of any other."""
        cdef Footer found
        return (found.seq, found.records) if self.load_footer(&found) else None

    def count_below(self, uint64_t seq):
        """How many records have lower numbers than `seq`. Costs a walk."""
        cdef uint64_t offset = SEGMENT_HEADER_SIZE, count = 0
        cdef Record record
        with nogil:
            while read_record(self.base, offset, self.limit, self.id, self.base_seq, False, &record) == Found.RECORD:
                if record.seq >= seq:
                    break
                count += 1
                offset += record.size
        self.region.check()
        return count

    cdef void begin_scan(self) noexcept:
        # The kernel reads further ahead then, and keeps for less long what was passed. Where it cannot, nothing is lost.
        self.scans += 1
        if self.scans == 1:
            _vm.advise(self.base, self.limit, _vm.ADVICE_SEQUENTIAL)

    cdef void end_scan(self) noexcept:
        # Look-ups come next, perhaps: what they read is read again.
        self.scans -= 1
        if self.scans == 0:
            _vm.advise(self.base, self.limit, _vm.ADVICE_NORMAL)

    cdef int expect(self, uint64_t start, uint64_t count) except -1:
        # That these bytes are read soon.
        start &= ~<uint64_t>(_vm.PAGE - 1)
        if start < self.limit:
            _vm.advise(self.base + start, min(count, self.limit - start), _vm.ADVICE_WILL_NEED)
        return 0

    cdef bint refresh(self) except -1:
        # Another process may have grown the file. A full one has nowhere to grow, and one with a footer does not grow any more; of any other
        # CONTROL alone says whether it does, not what follows it: that may be what somebody left who was killed, or is about to go.
        # False when the file is gone and nothing says how long it was: truncated, or an empty one that was replaced.
        cdef Footer footer
        cdef uint64_t size
        cdef bint is_finished
        if self.limit < self.capacity and not self.settled:
            is_finished = self.load_footer(&footer)
            try:
                size = self.handle().refresh()
            except FileNotFoundError:
                # Compaction, which touches nothing without a footer, has replaced it a moment ago; what is mapped is all there.
                if not self.load_footer(&footer):
                    return False
                size = footer.end
            if self.settled:
                # Made shorter meanwhile, by its writer who has gone on.
                return True
            # Never down: of a file that was cut, reads and syncs find out.
            self.limit = max(self.limit, min(size, self.capacity))
            if is_finished:
                self.settled = True
                self.release()
        return True

    cdef int sync(self) except -1:
        return self.sync_through(self.handle())

    cdef int sync_through(self, MappedFile file) except -1:
        # What was cut off behind everybody's back is not there to be synced.
        file.sync_all()
        if file.learn_length() < self.limit:
            self.region.fail()
        return 0

    cdef int store_again(self, uint64_t start, uint64_t stop) except -1:
        # Not a byte changes, also of what others store there meanwhile; the kernel takes the pages for changed and the next sync writes them.
        cdef uint64_t at = start & ~<uint64_t>(_vm.PAGE - 1)
        stop = min(stop, self.limit)
        with nogil:
            while at < stop:
                memory.store_again(self.base + at)
                at += _vm.PAGE
        return self.region.check()

    cdef int grow(self, uint64_t size) except -1:
        # Blocks are allocated here, so that no later store can meet a full disk.
        if self.handle().learn_length() < self.limit:
            self.region.fail()  # cut by others: growing would fill with zeros what is gone
        self.handle().grow_to(min(size, self.capacity))
        self.limit = min(self.file.length, self.capacity)
        return 0

    cdef int grow_or_just_enough(self, uint64_t size, uint64_t least) except -1:
        # A nearly full disk may still have room for what is needed now.
        try:
            self.grow(max(size, least))
        except OSError as error:
            # The failed attempt may have been seen half way.
            self.refresh()
            if not is_full(error):
                raise
            try:
                self.grow(least)
            except OSError:
                self.refresh()
                raise
        return 0

    cdef int shrink(self, uint64_t end) except -1:
        # By its only writer: the room that was made for more records. A page is left behind the last one, for who looks whether another
        # follows.
        cdef MappedFile file = self.handle()
        cdef uint64_t size = ((end + _vm.PAGE - 1) & ~<uint64_t>(_vm.PAGE - 1)) + _vm.PAGE
        if size < self.limit and file.learn_length() >= self.limit:
            # First, for a sync in another thread takes a file that is shorter than that for one that was cut; nor is its length to be
            # learnt just before.
            self.settled = True
            self.limit = size
            try:
                file.resize(size)
            finally:
                self.limit = min(file.length, self.capacity)
        return 0

    cdef int give_back_behind(self, uint64_t end) except -1:
        # The blocks behind the last record of one that is rolled past. The length stays, for whoever has it mapped: an index may hold
        # hints that lead there.
        cdef uint64_t start = (end + _vm.PAGE - 1) & ~<uint64_t>(_vm.PAGE - 1)
        if start < self.limit:
            try:
                system.punch_hole(self.handle().descriptor, start, self.limit - start)
            except OSError:
                pass  # They go with the file.
        return 0

    cdef bint load_mark(self, DurableMark *out) noexcept:
        # The better of the copies that verify.
        cdef DurableMark found
        cdef bint any = False
        cdef int copy
        for copy in range(COPIES):
            memcpy(&found, self.base + MARK_OFFSET + copy * SECTOR, sizeof(found))
            if found.checksum == xxh3(&found, sizeof(found) - 8, self.id) and found.seq >= self.base_seq:
                # Of two for one number, the one that claims less.
                if not any or found.seq > out.seq or (found.seq == out.seq and found.end & MARK_OPENED):
                    out[0] = found
                    any = True
        return any

    cdef bint lost_a_mark(self) noexcept:
        # Whether there was a copy that does not verify: it may have said that there was a writer since.
        cdef DurableMark found, never
        cdef int copy
        memset(&never, 0, sizeof(never))
        for copy in range(COPIES):
            memcpy(&found, self.base + MARK_OFFSET + copy * SECTOR, sizeof(found))
            if found.checksum != xxh3(&found, sizeof(found) - 8, self.id) and memcmp(&found, &never, sizeof(found)) != 0:
                return True
        return False

    cdef bint load_footer(self, Footer *out) noexcept:
        cdef int copy
        for copy in range(COPIES):
            memcpy(out, self.base + FOOTER_OFFSET + copy * SECTOR, sizeof(out[0]))
            if out.checksum == xxh3(out, sizeof(out[0]) - 8, self.id) and out.seq >= self.base_seq:
                return True
        return False

    cdef void store_mark(self, uint64_t seq, uint64_t end) noexcept:
        # Only the worse copy is rewritten: a torn sector cannot take the other one along.
        cdef DurableMark mark, best
        cdef int copy = 0
        if self.load_mark(&best) and memcmp(self.base + MARK_OFFSET, &best, sizeof(best)) == 0:
            copy = 1
        mark.seq = seq
        mark.end = end
        mark.checksum = xxh3(&mark, sizeof(mark) - 8, self.id)
        memcpy(self.base + MARK_OFFSET + copy * SECTOR, &mark, sizeof(mark))

    cdef void store_footer(self, Footer *footer) noexcept:
        cdef int copy
        footer.checksum = xxh3(footer, sizeof(footer[0]) - 8, self.id)
        for copy in range(COPIES):
            memcpy(self.base + FOOTER_OFFSET + copy * SECTOR, footer, sizeof(footer[0]))


def list_files(Descriptor directory):
    """What is in an open directory: the segments as (base_seq, id, name), in order of their records, and the names of all else."""
    cdef Name parsed
    cdef list segments = [], others = []
    for name in system.list_directory(directory):
        (segments if parse_name(name, &parsed) else others).append(name)
    # The order of their names is that of their records.
    segments.sort()
    for at, name in enumerate(segments):
        parse_name(name, &parsed)
        segments[at] = parsed.base_seq, parsed.segment_id, name
    return segments, others


def list_segments(Descriptor directory):
    """The segments of an open directory as (base_seq, id, name), in order of their records."""
    return list_files(directory)[0]


def is_segment(name):
    """Whether a file name is that of a segment, finished or not."""
    cdef Name parsed
    return parse_name(name.removesuffix(TEMPORARY_SUFFIX), &parsed)


cdef bint parse_name(str name, Name *parsed) noexcept:
    # Whether this is the name of a segment, and what it says. A base number has 63 bits, so that no sum of two numbers of the format
    # overflows; none begins with another digit than 0.
    cdef Py_ssize_t length = len(name), i
    cdef const char *text
    cdef unsigned char each
    if not is_ascii(name) or length <= STEM:
        return False
    text = ascii_of(name)
    if length == STEM + len(PLAIN_ENDING) and memcmp(text + STEM, <const char *>PLAIN_ENDING, len(PLAIN_ENDING)) == 0:
        parsed.sparse = False
    elif length == STEM + len(SPARSE_ENDING) and memcmp(text + STEM, <const char *>SPARSE_ENDING, len(SPARSE_ENDING)) == 0:
        parsed.sparse = True
    else:
        return False
    if text[0] != c"0" or text[BASE_DIGITS] != c"-":
        return False
    parsed.base_seq = parsed.segment_id = 0
    for i in range(BASE_DIGITS):
        each = text[i]
        if not c"0" <= each <= c"9":
            return False
        parsed.base_seq = parsed.base_seq * 10 + each - c"0"
    for i in range(BASE_DIGITS + 1, STEM):
        each = text[i]
        if c"0" <= each <= c"9":
            each -= c"0"
        elif c"a" <= each <= c"f":
            each -= c"a" - 10
        else:
            return False
        parsed.segment_id = parsed.segment_id << 4 | each
    return True


def name_of(base_seq, segment_id, sparse):
    """What the file of a segment is called; `sparse` is one that compaction wrote."""
    return f"{base_seq:020}-{segment_id:016x}{COMPACTED_SUFFIX if sparse else '.seg'}"


def create_segment(
        Descriptor directory, log_uuid, uint64_t base_seq, epoch, uint64_t capacity, uint64_t size, least=None, *,
        bint publish=True, Descriptor spare=None):
    """Make an empty segment of `size` bytes, its header synced; without `publish` it waits under a temporary name.

    On a disk that has not so much room left `least` will do. `spare` is a file without a name that it can be made of.

    The name is durable only after a sync of the directory. OSError(ENOSPC) leaves nothing behind.
    """
    segment_id = random_word()
    name = name_of(base_seq, segment_id, False)
    head = page.make(log_uuid.bytes, segment_id, base_seq, time.time_ns(), capacity, epoch)
    temporary = name + TEMPORARY_SUFFIX
    opened = _named(spare, directory, temporary)
    if opened is None:
        opened = system.open_file(temporary, True, create=True, exclusive=True, follow=False, directory=directory)
    try:
        _grow_or_just_enough(opened, size, least)
        system.write_at(opened, head, 0)
        system.sync(opened)
        # Anew, so that the mapping has a name, too, where the kernel lists it.
        made = open_segment(directory, temporary, log_uuid, True)
    except BaseException:
        system.remove_file(directory, temporary)
        raise
    if publish:
        publish_segment(directory, made)
    return made


def _grow_or_just_enough(opened, size, least):
    try:
        system.grow(opened, size)
    except OSError as error:
        if least is None or not is_full(error):
            raise
        system.grow(opened, least)


def _named(spare, directory, temporary):
    # Where it cannot have a name, as without /proc, the file is made anew.
    try:
        if spare is not None:
            system.name_file(spare, directory, temporary)
    except OSError:
        return None
    return spare


def publish_segment(Descriptor directory, Segment segment):
    """Give a segment its final name, which makes it part of the log."""
    # Nothing that a signal could interrupt comes after the renaming.
    temporary = segment.name
    name = temporary.removesuffix(TEMPORARY_SUFFIX)
    path = directory.locate(name)
    system.replace_file(directory, temporary, name)
    segment.name = name
    segment.path = path


def open_segment(Descriptor directory, name, log_uuid, bint writable):
    """Map a segment of an open directory. FormatError, CorruptionError, or the OSError that fits."""
    cdef SegmentHeader header
    cdef Segment made
    cdef Descriptor opened = system.open_file(name, writable, follow=False, directory=directory)
    cdef bytes uuid_bytes = log_uuid.bytes
    cdef uint64_t size = system.file_size(opened)
    cdef Name parsed
    cdef bint named = parse_name(name.removesuffix(TEMPORARY_SUFFIX), &parsed)
    if size < SEGMENT_HEADER_SIZE:
        raise CorruptionError(f"{size} bytes are too few for a segment's header of {SEGMENT_HEADER_SIZE}", opened.path)
    raw = system.read_at(opened, sizeof(header), 0)
    memcpy(&header, <const char *>raw, sizeof(header))
    check_header(raw, SEGMENT_MAGIC, VERSION, "a segment", opened.path)
    if header.incompatible & ~<uint32_t>INCOMPATIBLE_KNOWN or header.header_size != SEGMENT_HEADER_SIZE:
        raise FormatError(f"the segment uses features {header.incompatible:#x} that this code lacks; upgrade mmapkv", opened.path)
    if memcmp(header.log_uuid, <const char *>uuid_bytes, 16) != 0:
        raise FormatError("the segment belongs to another log", opened.path)
    if (not named or header.base_seq != parsed.base_seq or header.segment_id != parsed.segment_id
            or parsed.sparse != bool(header.incompatible & INCOMPATIBLE_GAPS)):
        raise FormatError("the segment was renamed: its name and its header disagree", opened.path)
    if header.epoch == 0xFFFFFFFF:
        raise FormatError("the segment has the last epoch there is; copy its records to a new log", opened.path)
    if header.capacity < SEGMENT_HEADER_SIZE or header.capacity > <uint64_t>8 << 30:
        raise FormatError(f"the segment claims a capacity of {header.capacity} bytes, outside what the format allows", opened.path)
    made = Segment(MappedFile.from_descriptor(opened, writable=writable, reserve=header.capacity))
    made.positions = Positions()
    made.directory = directory
    made.log_uuid = log_uuid
    made.writable = writable
    made.capacity = header.capacity
    made.base_time = header.base_time
    # Growth must not move a segment: pointers into it are kept everywhere.
    if made.region.reserved < made.capacity:
        raise OSError(
            _errno.ENOMEM, f"cannot reserve {made.capacity} bytes of address space for a segment, only {made.region.reserved}; "
            "is the process limited (ulimit -v)?", opened.path)
    made.name = name
    made.path = opened.path
    made.id = header.segment_id
    made.base_seq = header.base_seq
    made.sparse = header.incompatible & INCOMPATIBLE_GAPS
    made.replaces = header.replaces
    made.epoch = header.epoch
    made.limit = min(made.file.length, made.capacity)
    return made
