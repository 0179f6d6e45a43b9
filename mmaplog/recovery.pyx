# cython: language_level=3, boundscheck=False, wraparound=False
"""Where a log ends, found from its segments alone.

Used when CONTROL cannot be believed: after a power cut, a remount, a copy, or its loss. Reading starts at the
last position that is known to have been durable and goes on to the first record that does not verify. That record is either a
torn tail, which was never durable and is left behind, or damage to something that was, which is an error. What
decides is a witness: a later valid record saying that the broken one had been durable when it was written.
"""

import logging
from dataclasses import dataclass

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mmapio cimport _memory as memory
from mmaplog.control cimport Control
from mmaplog.format cimport (
    FLAG_KNOWN,
    RECORD_HEADER_SIZE,
    SEGMENT_HEADER_SIZE,
    TYPE_DATA,
    UNIT,
    CommitSlot,
    DurableMark,
    Footer,
    Found,
    Record,
    RecordHeader,
    read_record,
)
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet

from mmapio import _os as system
from mmaplog.errors import CorruptionError, FormatError
from mmaplog.segment import TEMPORARY_SUFFIX, create_segment

logger = logging.getLogger("mmaplog")

# A payload can be made to look like many records; beyond this much hashing the search gives up, undecided.
cdef uint64_t WITNESS_HASHED_MAX = <uint64_t>1 << 30
BAD_SUFFIX = ".bad"


@dataclass
class Tail:
    """Where a log ends: after the record before `seq`, at `end` in `segment`."""

    segment: object
    seq: int
    end: int
    last: int
    known_durable: int
    leftover: bool
    dropped: list


def find_tail(SegmentSet segments, first_seq):
    """Find the end of the log, changing nothing. Reads what may not have been durable, and looks for witnesses.

    Raises CorruptionError with the sequence range when durable records are damaged, FormatError for records of a newer kind.
    """
    names = one_per_base(segments)
    if not names or names[0][0] != first_seq:
        found = f"the first segment starts at {names[0][0]}" if names else "there is no segment"
        raise CorruptionError(
            f"records from {first_seq} on are missing: {found}; restore the files from a backup", segments.path)
    cdef uint64_t seq, offset, last = 0, size
    cdef uint64_t boundary
    cdef Segment segment
    cdef Record record
    cdef Found found_kind
    at, start_seq, start_offset = last_known_durable(segments, names)
    seq = start_seq
    offset = start_offset
    while True:
        segment = segments.by_id(names[at][1])
        boundary = names[at + 1][0] if at + 1 < len(names) else <uint64_t>-1
        while seq != boundary:
            found_kind = read_record(segment.base, offset, segment.limit, segment.id, segment.base_seq, True, &record)
            if found_kind != Found.RECORD or record.seq != seq:
                break
            last = offset
            offset += record.size
            seq += 1
        if seq != boundary:
            break
        at += 1
        offset = SEGMENT_HEADER_SIZE
        last = 0
    if found_kind == Found.UNKNOWN:
        raise FormatError(
            f"record {seq} at offset {offset} is of a kind this code does not know; upgrade mmapkv", segment.name)
    later = [segments.get(entry[1]) for entry in names[at + 1:]]
    deny_witness(segments, segment, offset, later, seq)
    leftover = any_nonzero(segment, offset)
    return Tail(segment, seq, offset, last, start_seq, leftover, later)


def confirm(SegmentSet segments, Control control):
    """Whether a valid record ends where CONTROL says that the log does. Costs one record."""
    cdef CommitSlot slot = control.committed()
    cdef uint64_t end = <uint64_t>slot.end * UNIT, last = <uint64_t>slot.last * UNIT
    cdef Segment segment
    cdef Record record
    try:
        segment = segments.by_id(slot.segment_id)
    except (OSError, ValueError):
        return False
    segment.refresh()
    if end < SEGMENT_HEADER_SIZE or end > segment.limit or slot.seq < segment.base_seq:
        return False
    if last == 0:
        return end == SEGMENT_HEADER_SIZE or control.durable == slot.seq
    return (read_record(segment.base, last, end, segment.id, segment.base_seq, True, &record) == Found.RECORD
            and record.seq + 1 == slot.seq and last + record.size == end)


def cleanse(SegmentSet segments, Control control):
    """Remove what a killed writer left: bytes of an append that was not committed, segments without records.

    The bytes are zeroed and synced before anything is appended: a power cut must not be able to mix a page of
    the dead append with one of its successor.
    """
    cdef CommitSlot slot = control.committed()
    cdef uint64_t end = <uint64_t>slot.end * UNIT
    cdef Segment segment = segments.by_id(slot.segment_id)
    cdef uint64_t stop = min(memory.load_acquire(&control.hot.in_flight), segment.limit)
    cdef bint touched = False
    cdef uint64_t at
    for at in range(end, stop, UNIT):
        if (<uint64_t *>(segment.base + at))[0] != 0:
            touched = True
            break
    if touched:
        memset(segment.base + end, 0, stop - end)
        system.sync(segment.file.fileno(), segment.name)
    memory.store_release(&control.hot.in_flight, end)
    for base_seq, segment_id, name in segments.listing():
        if base_seq >= slot.seq and segment_id != slot.segment_id:
            system.remove_file(segments.directory.fd, name)
    for name in system.list_directory(segments.directory.fd):
        if name.endswith(TEMPORARY_SUFFIX):
            system.remove_file(segments.directory.fd, name)
    segments.relist()


def settle(SegmentSet segments, tail, segment_bytes, step):
    """Make the end that `find_tail` found the end on disk too, and durable. Returns the segment to append to and its end.

    What is dropped stays beside the log under a name ending in ``.bad``, or behind the sealed end of its segment; it can never be read as
    part of the log again. A second crash in here leaves a log that recovers to the same records.
    """
    cdef Segment segment = tail.segment
    cdef Segment dropped
    cdef Footer footer
    if tail.leftover or tail.dropped:
        logger.warning(
            "%s: a torn tail after record %d was never durable and is left out (%s, offset %d, %d later segments)",
            segments.path, tail.seq - 1, segment.name, tail.end, len(tail.dropped))
    epoch = segment.epoch
    for dropped in reversed(tail.dropped):
        epoch = max(epoch, dropped.epoch)
        system.replace_file(segments.directory.fd, dropped.name, dropped.name + BAD_SUFFIX)
    system.sync(segments.directory.fd, segments.path)
    system.sync(segment.file.fileno(), segment.name)
    if not tail.leftover and not tail.dropped:
        return segment, tail.end
    # The successor is durable before the end is sealed, so the boundary it sets is never missing.
    successor = create_segment(
        segments.directory.fd, segments.log_uuid, tail.seq, epoch + 1, segment_bytes, min(step, segment_bytes))
    system.sync(segments.directory.fd, segments.path)
    footer.seq = tail.seq
    footer.end = tail.end
    footer.records = tail.seq - segment.base_seq
    footer.time_min = 0
    footer.time_max = <uint64_t>-1
    segment.store_footer(&footer)
    segments.relist()
    return segments.get(successor.id), SEGMENT_HEADER_SIZE


cdef last_known_durable(SegmentSet segments, names):
    # (index of the segment, sequence number, offset) from where records must be read.
    cdef DurableMark mark
    cdef Footer footer
    cdef Segment segment
    for at in range(len(names) - 1, -1, -1):
        segment = segments.by_id(names[at][1])
        # A footer is written once all before it was durable.
        if segment.load_footer(&footer):
            if at == len(names) - 1:
                raise CorruptionError(
                    f"the segment that begins with record {footer.seq} is missing; restore it from a backup", segments.path)
            return at, footer.seq, footer.end
        if segment.load_mark(&mark):
            return at, mark.seq, mark.end
    return 0, names[0][0], SEGMENT_HEADER_SIZE


def one_per_base(SegmentSet segments):
    """The listing with one segment for each base number: a roll cut short leaves an empty twin, a recovery a newer epoch."""
    cdef Segment segment
    cdef Record record
    best = {}
    for entry in segments.listing():
        if entry[0] in best:
            ranked = []
            for candidate in (best[entry[0]], entry):
                segment = segments.by_id(candidate[1])
                holds = read_record(
                    segment.base, SEGMENT_HEADER_SIZE, segment.limit, segment.id, segment.base_seq, True, &record) == Found.RECORD
                ranked.append((segment.epoch, holds, candidate))
            best[entry[0]] = max(ranked)[2]
        else:
            best[entry[0]] = entry
    return sorted(best.values())


cdef deny_witness(SegmentSet segments, Segment segment, uint64_t offset, later, uint64_t seq):
    # Raises when some record after the end says that record `seq` had been durable.
    cdef uint64_t budget = WITNESS_HASHED_MAX
    cdef uint64_t durable = find_witness(segment, offset, seq, &budget)
    cdef Segment other
    for other in later:
        durable = max(durable, find_witness(other, SEGMENT_HEADER_SIZE, seq, &budget))
    if durable > seq:
        raise CorruptionError(
            f"records {seq} to {durable - 1} were durable and are damaged from offset {offset} on; "
            "nothing was changed, restore the segment from a backup", segment.name)
    if budget == 0:
        raise CorruptionError(
            f"record {seq} at offset {offset} does not verify, and what follows imitates records so often that a torn "
            "tail cannot be told from damage; nothing was changed", segment.name)


cdef uint64_t find_witness(Segment segment, uint64_t offset, uint64_t seq, uint64_t *budget) noexcept nogil:
    # The highest durable mark that a valid record at or after `offset` claims. Records may start at any
    # multiple of 8; a cheap look at the header skips nearly all the places where none does.
    cdef uint64_t best = 0, word, size
    cdef RecordHeader header
    cdef Record record
    while segment.limit >= RECORD_HEADER_SIZE and offset <= segment.limit - RECORD_HEADER_SIZE:
        memcpy(&word, segment.base + offset, sizeof(word))
        if word != 0:
            memcpy(&header, segment.base + offset, sizeof(header))
            size = <uint64_t>header.length * UNIT
            if (size >= RECORD_HEADER_SIZE and size <= segment.limit - offset and header.type == TYPE_DATA
                    and header.flags & ~<uint32_t>FLAG_KNOWN == 0 and segment.base_seq + header.seq >= seq):
                if size > budget[0]:
                    budget[0] = 0
                    return best
                budget[0] -= size
                if read_record(
                        segment.base, offset, segment.limit, segment.id, segment.base_seq, True, &record) == Found.RECORD:
                    best = max(best, record.durable)
        offset += UNIT
    return best


cdef bint any_nonzero(Segment segment, uint64_t offset) noexcept nogil:
    cdef uint64_t word
    while offset + sizeof(word) <= segment.limit:
        memcpy(&word, segment.base + offset, sizeof(word))
        if word != 0:
            return True
        offset += sizeof(word)
    return False
