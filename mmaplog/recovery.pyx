# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
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
    FLAG_BATCH,
    FLAG_BATCH_END,
    FLAG_KNOWN,
    MARK_OPENED,
    LAG_UNKNOWN,
    RECOVERING,
    SYNCING,
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
    checksum_of,
    read_record,
)
from mmaplog.segment cimport Segment
from mmaplog.replay cimport Replay
from mmaplog.segment_set cimport SegmentSet, holds_records

from mmapio import _os as system
from mmapio.errors import FlushFailed
from mmaplog import control as control_file
from mmaplog.errors import CorruptionError, FormatError
from mmaplog.reserve import spend_if_full
from mmaplog.segment import create_segment, publish_segment

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


def find_tail(SegmentSet segments, floor):
    """Find the end of the log, changing nothing. Reads what may not have been durable, and looks for witnesses.

    Raises CorruptionError with the sequence range when durable records are damaged, or committed ones below `floor` are
    gone though no power was lost; FormatError for records of a newer kind.
    """
    bases = segments.bases()
    cdef uint64_t seq, offset, last = 0
    cdef uint64_t boundary
    cdef bint followed, in_batch = False
    cdef Segment segment
    cdef Record record
    cdef Found found_kind
    require_footers(segments, bases)
    at, start_seq, start_offset = last_known_durable(segments, bases)
    seq = start_seq
    offset = start_offset
    while True:
        segment = segments.at_base(bases[at])
        followed = at + 1 < len(bases)
        boundary = bases[at + 1] if followed else 0
        while not followed or seq != boundary:
            found_kind = read_record(segment.base, offset, segment.limit, segment.id, segment.base_seq, True, &record)
            if found_kind != Found.RECORD or record.seq != seq:
                break
            if record.flags & FLAG_BATCH and not in_batch:
                before_batch = at, seq, offset, last
            in_batch = record.flags & FLAG_BATCH and not record.flags & FLAG_BATCH_END
            last = offset
            offset += record.size
            seq += 1
        if not followed or seq != boundary:
            break
        at += 1
        offset = SEGMENT_HEADER_SIZE
        last = 0
    if found_kind == Found.UNKNOWN:
        raise FormatError(
            f"record {seq} at offset {offset} is of a kind this code does not know; upgrade mmapkv", segment.path)
    later = [segments.at_base(base) for base in bases[at + 1:]]
    deny_witness(segment, offset, later, seq)
    if in_batch:
        # Its end is missing, so it never counted.
        at, seq, offset, last = before_batch
        segment = segments.at_base(bases[at])
        later = [segments.at_base(base) for base in bases[at + 1:]]
    if seq < <uint64_t>segments.manifest.first_seq:
        raise CorruptionError(
            f"the log ends before record {seq}, but began with {segments.manifest.first_seq} when it was truncated; "
            "restore it from a backup", segments.path)
    if seq < floor:
        raise CorruptionError(
            f"records {seq} to {floor - 1} were committed and are not in the segments any more; restore them from a "
            "backup, or delete CONTROL to go on without", segments.path)
    leftover = any_nonzero(segment.base, offset, segment.limit)
    # Zeros in place of pages that are gone would pass for the end.
    segments.check()
    return Tail(segment, seq, offset, last, start_seq, leftover, later)


def confirm(SegmentSet segments, Control control):
    """Whether a valid record ends where CONTROL says that the log does. Costs one record."""
    cdef CommitSlot slot = control.committed()
    cdef uint64_t end = <uint64_t>slot.end * UNIT, last = <uint64_t>slot.last * UNIT
    cdef Segment segment
    cdef Segment other
    cdef Record record
    if control.hot.sync_inflight & RECOVERING:
        return False
    try:
        segment = segments.by_id(slot.segment_id)
    except (OSError, ValueError):
        return False
    if not segment.refresh() or end < SEGMENT_HEADER_SIZE or end > segment.limit or control.durable > slot.seq:
        return False
    if control.first_seq > segments.manifest.first_seq:
        # MANIFEST says it first, and no checksum covers this word.
        return False
    for base_seq, segment_id, _ in segments.listing():
        # Records beyond the tail: whatever they are, recovery loses none of them.
        if base_seq >= slot.seq and segment_id != segment.id:
            other = segments.by_id(segment_id)
            # An older namesake does not count, whatever is in it: a reader that recovered the log has left it there.
            if holds_records(other) and (base_seq != segment.base_seq or other.epoch >= segment.epoch):
                return False
    if last == 0:
        return slot.seq == segment.base_seq if end == SEGMENT_HEADER_SIZE else control.durable == slot.seq
    return (read_record(segment.base, last, end, segment.id, segment.base_seq, True, &record) == Found.RECORD
            and record.seq + 1 == slot.seq and last + record.size == end)


def repeat_sync(SegmentSet segments, Control control, which):
    """Make good for syncs (`which` bits of ``sync_inflight``) whose outcome nobody knows. By who excludes every other sync.

    They may have failed: the kernel says so once, perhaps to a process that is killed that moment, and takes the pages that it could not
    write for clean. So all that is not known to be durable is stored again, as it is, and synced. Costs a pass over it.

    Raises CorruptionError where the kernel has not even kept what was committed, FlushFailed when this sync fails.
    """
    cdef Segment segment
    found = store_again(segments, control)
    # Before anything is at stake: a file that is missing is no failed sync, nor is a descriptor that cannot be had.
    opened = [(segment, (<Segment>segment).handle()) for segment in found]
    for segment, file in opened:
        segment.sync_through(file)
    # Its entries cannot be stored again. A file system that could not write its journal refuses this, too.
    try:
        system.sync(segments.directory)
    except OSError as error:
        raise FlushFailed(error.errno, f"sync failed: {error.strerror}", segments.path) from error
    control.end_sync(which)


cdef list store_again(SegmentSet segments, Control control):
    # Everything from the durable mark on, with the first page of each segment, and what an unfinished append left. Others may append.
    cdef CommitSlot slot
    cdef Segment tail, segment = None
    cdef Record record
    cdef Replay replay
    cdef uint64_t in_flight, start = 0, end = 0
    while True:
        slot = control.committed()
        try:
            tail = segments.by_id(slot.segment_id)
        except CorruptionError:
            # An empty one may have been replaced by a larger one.
            if control.committed().segment_id == slot.segment_id:
                raise
            continue
        tail.refresh()
        in_flight = memory.load_acquire(&control.hot.in_flight)
        memory.fence_acquire()
        if control.committed().segment_id == slot.segment_id:
            break
    found = []
    replay = Replay(segments, control.durable, slot.seq, True, slot.segment_id)
    while replay.read(&record, True):
        if replay.segment is not segment:
            if segment is not None:
                segment.store_again(start, end)
            segment = replay.segment
            found.append(segment)
            start = replay.start
        end = replay.offset
    if segment is not None:
        segment.store_again(start, end)
    if segment is not tail:
        found.append(tail)
    for segment in found:
        segment.store_again(0, SEGMENT_HEADER_SIZE)
    # Also where a part of an append was stored, and perhaps written, that is published later or zeroed.
    tail.store_again(<uint64_t>slot.end * UNIT, in_flight)
    return found


def cleanse(SegmentSet segments, Control control, temporaries):
    """Settle what a killed writer left: an append that was not committed, segments without records, temporary files.

    A whole record at the end is committed after all; of anything less the bytes are zeroed and synced before anything is
    appended: a power cut must not be able to mix a page of the dead append with one of its successor.

    The caller has listed the segments since: the dead one may have been another process, whose last one nobody here had heard of.
    """
    cdef CommitSlot slot = control.committed()
    cdef uint64_t end = <uint64_t>slot.end * UNIT
    cdef Segment segment = segments.by_id(slot.segment_id)
    cdef Segment other
    cdef bint set_aside = False
    segment.refresh()
    cdef uint64_t stop = min(memory.load_acquire(&control.hot.in_flight), segment.limit)
    cdef Record record
    if (read_record(segment.base, end, stop, segment.id, segment.base_seq, True, &record) == Found.RECORD
            and record.seq == slot.seq and not record.flags & FLAG_BATCH):
        slot.last = slot.end
        end += record.size
        slot.seq += 1
        slot.end = <uint32_t>(end // UNIT)
        control.publish(&slot)
    if stop > end and any_nonzero(segment.base, end, stop):
        control.begin_sync(SYNCING)
        memset(segment.base + end, 0, stop - end)
        segment.sync()
        control.end_sync(SYNCING)
    memory.store_release(&control.hot.in_flight, end)
    for base_seq, segment_id, name in segments.listing():
        if segment_id != segment.id and (base_seq >= slot.seq or base_seq == segment.base_seq):
            other = segments.by_id(segment_id)
            if holds_records(other):
                logger.warning("%s: %s is beyond the end of the log and is set aside", segments.path, name)
                system.replace_file(segments.directory, name, name + BAD_SUFFIX)
                set_aside = True
            else:
                segments.discard(other)
    for name in temporaries:
        system.remove_file(segments.directory, name)
    if set_aside:
        segments.relist()


def announce(directory, manifest, tail):
    """Say in CONTROL that this end is being settled: whoever comes before that is through begins anew, and takes no page for written."""
    spend_if_full(directory, lambda: control_file.create(
        directory, manifest.log_uuid, manifest.first_seq, tail.seq, tail.segment.id, tail.end, tail.last, tail.known_durable, RECOVERING))


def settle(SegmentSet segments, tail, segment_bytes, step, again):
    """Make the end that `find_tail` found the end on disk too, and durable. Returns the segment to append to and its end.

    What is dropped stays beside the log under a name ending in ``.bad``, or behind the sealed end of its segment; it can never be read as
    part of the log again. A second crash in here leaves a log that recovers to the same records. With `again` a sync of these files may have failed
    that nobody knows of, so all of them are stored again.
    """
    cdef Segment segment = tail.segment
    cdef Segment dropped, stored
    cdef Footer footer
    if tail.leftover or tail.dropped:
        logger.warning(
            "%s: a torn tail after record %d was never durable and is left out (%s, offset %d, %d later segments)",
            segments.path, tail.seq - 1, segment.name, tail.end, len(tail.dropped))
    epoch = segment.epoch
    for dropped in reversed(tail.dropped):
        epoch = max(epoch, dropped.epoch)
        system.replace_file(segments.directory, dropped.name, dropped.name + BAD_SUFFIX)
    segments.relist()
    # The page cache may hold any of it unwritten: the log may be a copy, or CONTROL lost while the machine stayed up.
    for _, segment_id, name in segments.listing():
        if again:
            stored = segments.by_id(segment_id)
            stored.store_again(0, stored.limit)
        system.sync(system.open_file(name, True, follow=False, directory=segments.directory))
    system.sync(segments.directory)
    if not tail.leftover and not tail.dropped and is_clean(segment, tail.seq, tail.end):
        return segment, tail.end
    # Also where nothing is left behind the end: there may have been records of which no page reached the disk, and whose numbers
    # somebody knows.
    # The successor is durable before the end is sealed, so the boundary it sets is never missing.
    epoch = segments.manifest.next_epoch(epoch)
    successor = spend_if_full(segments.directory, lambda: create_segment(
        segments.directory, segments.log_uuid, tail.seq, epoch, segment_bytes, min(step, segment_bytes), SEGMENT_HEADER_SIZE))
    system.sync(segments.directory)
    if segment.base_seq == tail.seq and not tail.leftover:
        # It never held a record, and its successor has its place.
        segments.discard(segment)
    else:
        footer.seq = tail.seq
        footer.end = tail.end
        footer.records = tail.seq - segment.base_seq
        footer.time_min = 0
        footer.time_max = <uint64_t>-1
        segment.store_footer(&footer)
    segments.relist()
    return segments.get(successor.id), SEGMENT_HEADER_SIZE


cdef bint is_clean(Segment segment, uint64_t seq, uint64_t end) noexcept:
    # Whether a clean close vouches for this end, and nobody has opened the log for writing since.
    cdef DurableMark mark
    return segment.load_mark(&mark) and mark.seq == seq and mark.end == end and not segment.lost_a_mark()


def salvage(SegmentSet segments, tail, uint64_t durable, uint64_t segment_bytes):
    """After a failed sync: copy what verifies above the durable mark to new segments, and sync those. Returns the new tail.

    The kernel holds the pages that it could not write for clean, so no later sync of the old file would write them. The copies take
    their place in one step each, under a newer epoch; cut short, all is done again.
    """
    cdef Replay replay
    cdef Record record
    cdef Segment target = None
    cdef RecordHeader *header
    cdef uint64_t end = SEGMENT_HEADER_SIZE, last = 0
    stale = [entry for entry in segments.listing() if entry[0] >= durable]
    epoch = segments.manifest.next_epoch(max(segments.by_id(entry[1]).epoch for entry in segments.listing()))
    made = []
    replay = Replay(segments, min(durable, tail.seq), tail.seq, True, 0)
    while target is None or replay.seq < tail.seq:
        record.size = 0
        replay.read(&record, True)
        if target is None or end + record.size > target.capacity:
            capacity = max(segment_bytes, SEGMENT_HEADER_SIZE + record.size)
            base_seq = record.seq if record.size else tail.seq
            target = create_segment(segments.directory, segments.log_uuid, base_seq, epoch, capacity, capacity, publish=False)
            made.append(target)
            end = SEGMENT_HEADER_SIZE
        if record.size:
            memcpy(target.base + end, replay.segment.base + replay.offset - record.size, record.size)
            header = <RecordHeader *>(target.base + end)
            header.seq = <uint32_t>(record.seq - target.base_seq)
            header.lag = LAG_UNKNOWN
            header.checksum = checksum_of(target.base + end, target.id, end, header.length)
            last = end
            end += record.size
    for segment in made:
        (<Segment>segment).sync()
    for segment in reversed(made):
        publish_segment(segments.directory, segment)
    for base_seq, segment_id, name in reversed(stale):
        system.replace_file(segments.directory, name, name + BAD_SUFFIX)
    system.sync(segments.directory)
    segments.relist()
    logger.warning("%s: a sync had failed; records %d to %d were copied to new segments", segments.path, durable, tail.seq - 1)
    return Tail(segments.get(target.id), tail.seq, end, last, tail.seq, False, [])


cdef require_footers(SegmentSet segments, bases):
    # A footer was written when its successor was durable, so what it says comes next must be there.
    cdef Footer footer
    cdef Segment segment
    for at, base in enumerate(bases):
        segment = segments.at_base(base)
        if segment.load_footer(&footer):
            following = bases[at + 1] if at + 1 < len(bases) else None
            # It may begin earlier than that when the log was cut since: then it is newer.
            if following != footer.seq and not (
                    following is not None and following < footer.seq and is_newer(segments, following, segment.epoch)):
                raise CorruptionError(
                    f"the segment that begins with record {footer.seq} is missing"
                    + (f", the next one there begins with {following}" if following else "")
                    + "; restore it from a backup", segments.path)


cdef bint is_newer(SegmentSet segments, uint64_t base_seq, uint64_t epoch) except -1:
    # Whether the segment there is what its name says, and of a later epoch.
    try:
        return segments.at_base(base_seq).epoch > epoch
    except (CorruptionError, FormatError):
        return False


cdef last_known_durable(SegmentSet segments, bases):
    # (index of the segment, sequence number, offset) from where records must be read.
    cdef DurableMark mark
    cdef Footer footer
    cdef Segment segment
    for at in range(len(bases) - 1, -1, -1):
        segment = segments.at_base(bases[at])
        # A footer is written once all before it was durable.
        if segment.load_footer(&footer):
            require_length(segment, segment.base_seq + footer.records, footer.end)
            boundary = bases[at + 1] if at + 1 < len(bases) else footer.seq
            return at, min(footer.seq, boundary), footer.end
        if segment.load_mark(&mark):
            mark.end &= ~<uint64_t>MARK_OPENED
            require_length(segment, mark.seq, mark.end)
            return at, mark.seq, mark.end
    return 0, bases[0], SEGMENT_HEADER_SIZE


cdef require_length(Segment segment, uint64_t seq, uint64_t end):
    if end % UNIT or seq - segment.base_seq > (end - SEGMENT_HEADER_SIZE) // RECORD_HEADER_SIZE:
        raise CorruptionError(f"a mark says that record {seq - 1} ends at offset {end}, where it cannot", segment.path)
    if end < SEGMENT_HEADER_SIZE or end > segment.limit:
        raise CorruptionError(
            f"records up to {seq - 1} were durable and reached to offset {end}, but the file ends at {segment.limit}; "
            "restore the segment from a backup", segment.path)


cdef deny_witness(Segment segment, uint64_t offset, later, uint64_t seq):
    # Raises when some record after the end says that record `seq` had been durable.
    cdef uint64_t budget = WITNESS_HASHED_MAX
    cdef uint64_t durable = find_witness(segment, offset, seq, &budget)
    cdef Segment other
    for other in later:
        durable = max(durable, find_witness(other, SEGMENT_HEADER_SIZE, seq, &budget))
    if durable > seq:
        raise CorruptionError(
            f"records {seq} to {durable - 1} were durable and are damaged from offset {offset} on; "
            "nothing was changed, restore the segment from a backup", segment.path)
    if budget == 0:
        raise CorruptionError(
            f"record {seq} at offset {offset} does not verify, and what follows imitates records so often that a torn "
            "tail cannot be told from damage; nothing was changed", segment.path)


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


cdef bint any_nonzero(const char *base, uint64_t offset, uint64_t stop) noexcept nogil:
    cdef uint64_t word
    while offset + sizeof(word) <= stop:
        memcpy(&word, base + offset, sizeof(word))
        if word != 0:
            return True
        offset += sizeof(word)
    return False
