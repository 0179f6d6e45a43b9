# cython: language_level=3, auto_pickle=False
"""The first page of a segment as bytes, taken apart and put together: for copies and repairs, which never map it to write."""

from dataclasses import dataclass

from libc.stdint cimport uint64_t
from libc.string cimport memcmp, memcpy, memset

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
    SegmentHeader,
)

SIZE = SEGMENT_HEADER_SIZE
MAGIC = SEGMENT_MAGIC
GAPS = INCOMPATIBLE_GAPS
KNOWN = INCOMPATIBLE_KNOWN


@dataclass(frozen=True, slots=True)
class Page:
    """What a segment says of itself. `sealed` when the header's checksum is right; `marks` are (seq, end), whoever has written since, and `footers`
    (seq, end, records), of those copies that verify; `closed_at` is the (seq, end) of a clean close after which nobody opened the log to write."""

    is_segment: bool
    version: int
    sealed: bool
    incompatible: int
    log_uuid: bytes
    segment_id: int
    base_seq: int
    base_time: int
    capacity: int
    epoch: int
    replaces: int
    marks: tuple
    footers: tuple
    closed_at: tuple | None


def read(bytes raw not None, segment_id=None):
    """Take a page apart, however damaged; what is missing of it reads as zeros.

    Marks and footers are sealed with the segment's id: the header's, or `segment_id` when that is known better.
    """
    cdef SegmentHeader header
    cdef DurableMark mark, never
    cdef Footer footer
    cdef int copy
    cdef bytes page = raw[:SIZE].ljust(SIZE, b"\0")
    cdef const char *start = page
    memcpy(&header, start, sizeof(header))
    if segment_id is None:
        segment_id = header.segment_id
    cdef bint lost = False
    marks, footers = [], []
    memset(&never, 0, sizeof(never))
    for copy in range(COPIES):
        memcpy(&mark, start + MARK_OFFSET + copy * SECTOR, sizeof(mark))
        if mark.checksum == xxh3(&mark, sizeof(mark) - sizeof(mark.checksum), segment_id):
            marks.append((mark.seq, mark.end & MARK_OPENED, mark.end & ~<uint64_t>MARK_OPENED))
        elif memcmp(&mark, &never, sizeof(mark)) != 0:
            lost = True
        memcpy(&footer, start + FOOTER_OFFSET + copy * SECTOR, sizeof(footer))
        if footer.checksum == xxh3(&footer, sizeof(footer) - sizeof(footer.checksum), segment_id):
            footers.append((footer.seq, footer.end, footer.records))
    # Of two for one number, the one that claims less; and one that does not verify may have claimed less.
    seq, opened, end = max(marks, default=(0, MARK_OPENED, 0))
    return Page(
        header.magic == SEGMENT_MAGIC, header.version, header.checksum == sum_of(&header), header.incompatible,
        header.log_uuid[:16], header.segment_id, header.base_seq, header.base_time, header.capacity, header.epoch, header.replaces,
        tuple((seq, end) for seq, _, end in marks), tuple(footers), None if opened or lost else (seq, end))


def as_version(bytes raw not None):
    """The same page, its version set to the one this code knows: to find out whether that is all that is wrong."""
    cdef SegmentHeader header
    cdef bytes page = raw[:SIZE].ljust(SIZE, b"\0")
    memcpy(&header, <const char *>page, sizeof(header))
    header.version = VERSION
    return (<char *>&header)[:sizeof(header)] + page[sizeof(header):]


def make(bytes log_uuid not None, uint64_t segment_id, uint64_t base_seq, uint64_t base_time, uint64_t capacity, epoch, uint64_t replaces=0):
    """A page for a new segment, without mark or footer. With `replaces`, the id of another, it is one with gaps."""
    cdef SegmentHeader header
    if len(log_uuid) != sizeof(header.log_uuid):
        raise ValueError(f"a log's uuid has {sizeof(header.log_uuid)} bytes, not {len(log_uuid)}")
    memset(&header, 0, sizeof(header))
    header.magic = SEGMENT_MAGIC
    header.version = VERSION
    header.header_size = SEGMENT_HEADER_SIZE
    memcpy(header.log_uuid, <const char *>log_uuid, sizeof(header.log_uuid))
    header.segment_id = segment_id
    header.base_seq = base_seq
    header.base_time = base_time
    header.capacity = capacity
    header.epoch = epoch
    header.replaces = replaces
    header.incompatible = INCOMPATIBLE_GAPS if replaces else 0
    header.checksum = sum_of(&header)
    return (<char *>&header)[:sizeof(header)].ljust(SIZE, b"\0")


def rehome(bytes raw not None, bytes log_uuid not None):
    """The same page for a segment of another log: all else stays, the seals of the records included, which do not name the log."""
    cdef SegmentHeader header
    cdef bytes page = raw[:SIZE].ljust(SIZE, b"\0")
    memcpy(&header, <const char *>page, sizeof(header))
    if len(log_uuid) != sizeof(header.log_uuid):
        raise ValueError(f"a log's uuid has {sizeof(header.log_uuid)} bytes, not {len(log_uuid)}")
    memcpy(header.log_uuid, <const char *>log_uuid, sizeof(header.log_uuid))
    header.checksum = sum_of(&header)
    return (<char *>&header)[:sizeof(header)] + page[sizeof(header):]


def mark(bytes raw not None, uint64_t segment_id, uint64_t seq, uint64_t end):
    """The same page as a clean close would leave it: it vouches for the records below `seq`, which end at `end`, and is not sealed."""
    cdef DurableMark made
    made.seq = seq
    made.end = end
    made.checksum = xxh3(&made, sizeof(made) - sizeof(made.checksum), segment_id)
    return raw[:MARK_OFFSET] + ((<char *>&made)[:sizeof(made)]).ljust(SIZE - MARK_OFFSET, b"\0")


def seal(bytes raw not None, uint64_t segment_id, uint64_t seq, uint64_t end, uint64_t records):
    """The same page with a footer: so many records end at `end`, and another segment begins with `seq`."""
    cdef Footer made
    made.seq = seq
    made.end = end
    made.records = records
    made.time_min = 0
    made.time_max = <uint64_t>-1
    made.checksum = xxh3(&made, sizeof(made) - sizeof(made.checksum), segment_id)
    cdef bytes footer = ((<char *>&made)[:sizeof(made)]).ljust(SECTOR, b"\0")
    return (raw[:MARK_OFFSET].ljust(FOOTER_OFFSET, b"\0") + footer * COPIES).ljust(SIZE, b"\0")


cdef uint64_t sum_of(SegmentHeader *header) noexcept:
    return xxh3(header, sizeof(header[0]) - sizeof(header.checksum), 0)
