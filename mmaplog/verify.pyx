# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Looking at every byte of a log that counts, without changing any."""

from dataclasses import dataclass, replace

from libc.stdint cimport uint64_t

from mmaplog.format cimport SEGMENT_HEADER_SIZE, Footer, Found, Record, read_record
from mmaplog.segment cimport Segment
from mmaplog.segment_set cimport SegmentSet

from mmaplog.errors import CorruptionError, TooOld

# The kernel is asked for so many bytes while those before them are looked at; then signals are looked for.
cdef uint64_t PIECE = 8 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """Where a segment stops making sense: `seq` is the first record that is lost, at `offset`; `reason` says what is wrong."""

    path: str
    seq: int
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at, and what is wrong: nothing, when `damages` is empty."""

    segments: int
    records: int
    record_bytes: int
    damages: tuple


def verify_log(log, progress=None):
    """What :meth:`mmaplog.Log.verify` does. When records are removed meanwhile, what is missing for that is looked for anew."""
    cdef SegmentSet segments = log.segments
    while True:
        # In this order: who drops the end once it was looked at raises `generation`.
        first = log.first_seq
        generation = log.control.generation
        committed = log.committed
        cut = segments.manifest_now().cut
        try:
            found = verify(segments, first, committed, progress)
        except TooOld:
            if log.control.generation == generation and log.first_seq == first:
                raise
            continue
        if not found.damages:
            return found
        # Asks whether the log was closed, too: the GIL was let go of.
        if log.committed >= committed and segments.manifest_now().cut == cut and log.control.generation == generation:
            if cut is None:
                return found
            # What is being cut off does not count any more, also where who was at it was killed.
            return replace(found, damages=tuple(damage for damage in found.damages if damage.seq < cut.seq))


def verify(SegmentSet segments, uint64_t first, uint64_t committed, progress=None):
    """Check every record in [first, committed): its checksum, its number, its place. Costs one pass over the bytes, without the GIL.

    After damage it goes on with the next segment, whose records stand by themselves. `progress` is called with (records looked at,
    records in all).
    """
    cdef uint64_t seq = first, boundary, records = 0, size = 0
    cdef Segment segment, following
    cdef Footer footer
    cdef bint sealed
    damages = []
    count = 0
    while seq < committed or count == 0:
        try:
            segment = segments.holding(seq, 0)
        except CorruptionError as error:
            damages.append(Damage(segments.path, seq, 0, error.strerror))
            break
        count += 1
        # Before the rest: another one may be rolled to meanwhile, and this one be made longer and sealed.
        sealed = segment.load_footer(&footer)
        following = segments.following(segment, 0)
        boundary = following.base_seq if following is not None else committed
        segment.refresh()
        if sealed:
            check_footer(segment, &footer, following, boundary, damages)
        elif segment.sparse:
            damages.append(Damage(segment.path, segment.base_seq, 0, "compaction wrote it, and it has no footer that verifies"))
        records += walk(segment, first, boundary, committed, &size, damages, progress)
        segment.region.check()
        seq = boundary
        if progress is not None:
            progress(max(seq, first) - first, committed - first)
    return Verified(count, records, size, tuple(damages))


cdef uint64_t walk(
        Segment segment, uint64_t first, uint64_t boundary, uint64_t committed, uint64_t *bytes, damages, progress) except? 0:
    # How many records from `first` on are right, up to the first that is not; their size is added to `bytes`.
    cdef uint64_t seq = segment.base_seq, offset = SEGMENT_HEADER_SIZE, stop, count = 0
    cdef Found found = Found.RECORD
    cdef Record record
    cdef Footer footer
    # A file that ends before its boundary is found out by the record that is not there.
    cdef uint64_t last = <uint64_t>-1
    if segment.sparse and segment.load_footer(&footer):
        # What is missing behind the last record was removed, and is not damage.
        last = footer.end
    while seq < boundary and offset < last and found == Found.RECORD:
        stop = offset + PIECE
        segment.expect(stop, PIECE)
        with nogil:
            while seq < boundary and offset < stop and offset < last:
                found = read_record(segment.base, offset, segment.limit, segment.id, segment.base_seq, True, &record)
                if found == Found.RECORD and record.seq != seq and not (segment.sparse and record.seq > seq):
                    found = Found.BROKEN
                if found != Found.RECORD:
                    break
                if record.seq >= boundary:
                    # A segment with gaps that was cut.
                    seq = boundary
                    break
                seq = record.seq + 1
                offset += record.size
                if record.seq >= first:
                    count += 1
                    bytes[0] += record.size
        if progress is not None and first < seq:
            progress(seq - first, committed - first)
    if seq < boundary and not (segment.sparse and found == Found.RECORD):
        segment.region.check()
        damages.append(Damage(segment.path, seq, offset, REASONS[found]))
    return count


cdef dict REASONS = {
    Found.NOTHING: "there is no record, though it was committed",
    Found.BROKEN: "the record does not verify",
    Found.UNKNOWN: "the record is of a kind that this version does not know",
}


cdef int check_footer(Segment segment, Footer *footer, Segment following, uint64_t boundary, damages) except -1:
    # What a sealed segment says of itself. A truncation since then ended it earlier: there a newer epoch begins.
    cut = following is not None and boundary < footer.seq and following.epoch > segment.epoch
    if following is None or not (footer.seq == boundary or cut) or footer.end > segment.limit:
        damages.append(Damage(
            segment.path, segment.base_seq, 0,
            f"its footer says that record {footer.seq} follows at offset {footer.end}, but the next segment begins with {boundary} "
            f"and the file has {segment.limit} bytes"))
    return 0
