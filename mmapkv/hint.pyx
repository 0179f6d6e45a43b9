# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False, cdivision=True
"""A hint: what building an index needs to know of one sealed segment, in some four bytes a record.

Of each record a part of its key's hash, its size and kind, and how many numbers before it the version stands that it replaces. Where it
stands itself follows from the sizes. Made by reading the segment once; nothing in it is true of any other bytes.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from mmapkv.format cimport (
    FLAG_CREATES,
    FLAG_PREVIOUS,
    HINT_CREATES,
    HINT_DELETE,
    HINT_GAP,
    HINT_HASH_BITS,
    HINT_MAGIC,
    HINT_PREVIOUS,
    HINT_REPEATS,
    HINT_SHIFT,
    HINT_VERSION,
    KIND_CLEAR,
    KIND_DELETE,
    PAYLOAD_HEADER_SIZE,
    HintHeader,
    PayloadHeader,
    Previous,
)
from mmapkv.relocation cimport split_payload
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport SEGMENT_HEADER_SIZE, UNIT, Footer, Found, Record, read_record
from mmaplog.segment cimport Segment

from mmaplog.errors import CorruptionError, FormatError
from mmaplog.header import check as check_header

HEADER_SIZE = sizeof(HintHeader)
# Of one number: seven bits to a byte.
cdef uint64_t NUMBER_SIZE_MAX = 10


cdef struct Numbers:
    # Growing memory for numbers of variable size.
    uint8_t *bytes
    uint64_t size
    uint64_t capacity


cdef enum Outcome:
    GATHERED
    UNTOLD                      # there is a clear, of which hints do not tell
    STRANGE                     # the record at `offset` does not verify, or is not of a kind that hints tell of
    NO_MEMORY


cdef struct Draft:
    uint32_t *hashes
    uint8_t *bits
    Numbers runs
    Numbers steps
    uint64_t offset


def compose(Segment segment, log_uuid, uint64_t seed):
    """The hint file of a sealed segment, as bytes; None for one with a clear, of which hints do not tell. Costs reading it once, some 20 ns a record, without the GIL.

    Raises CorruptionError when the segment has no footer or does not verify.
    """
    cdef Footer footer
    cdef HintHeader header
    cdef Draft draft
    cdef Outcome outcome
    cdef bytes uuid_bytes = log_uuid.bytes
    if segment.load_footer(&footer) and footer.end > segment.limit:
        # Another process made it longer since it was looked at.
        segment.refresh()
    if not segment.load_footer(&footer) or footer.end > segment.limit:
        raise CorruptionError("the segment is not sealed", segment.path)
    memset(&draft, 0, sizeof(draft))
    try:
        draft.hashes = <uint32_t *>malloc(max(footer.records, <uint64_t>1) * 4)
        draft.bits = <uint8_t *>calloc(bits_size(footer.records) + 1, 1)
        if draft.hashes == NULL or draft.bits == NULL:
            raise MemoryError
        with nogil:
            outcome = gather(segment.base, &footer, segment.id, segment.base_seq, seed, &draft)
        segment.region.check()
        if outcome == NO_MEMORY:
            raise MemoryError
        if outcome == STRANGE:
            raise CorruptionError(f"the record at offset {draft.offset} does not verify, or is none of a store", segment.path)
        if outcome == UNTOLD:
            return None
        memset(&header, 0, sizeof(header))
        header.magic = HINT_MAGIC
        header.version = HINT_VERSION
        memcpy(header.log_uuid, <const char *>uuid_bytes, 16)
        header.segment_id = segment.id
        header.hash_seed = seed
        header.seq = footer.seq
        header.end = footer.end
        header.records = footer.records
        header.runs_size = draft.runs.size
        header.steps_size = draft.steps.size
        return assemble(&header, &draft)
    finally:
        free(draft.hashes)
        free(draft.bits)
        free(draft.runs.bytes)
        free(draft.steps.bytes)


cdef bytes assemble(HintHeader *header, const Draft *draft):
    cdef bytes made = PyBytes_FromStringAndSize(NULL, file_size(header))
    cdef char *start = PyBytes_AS_STRING(made)
    cdef char *to = start + sizeof(header[0])
    cdef uint64_t size = PyBytes_GET_SIZE(made)
    with nogil:
        memcpy(to, draft.hashes, 4 * header.records)
        to += 4 * header.records
        # What there is none of has no memory, and a copy from nowhere is undefined even of nothing.
        if header.runs_size:
            memcpy(to, draft.runs.bytes, header.runs_size)
        to += header.runs_size
        if header.steps_size:
            memcpy(to, draft.steps.bytes, header.steps_size)
        to += header.steps_size
        memcpy(to, draft.bits, bits_size(header.records))
        header.content = xxh3(start + sizeof(header[0]), size - sizeof(header[0]), header.segment_id)
        header.checksum = xxh3(header, sizeof(header[0]) - 8, header.segment_id)
        memcpy(start, header, sizeof(header[0]))
    return made


cdef Outcome gather(
        const char *base, const Footer *footer, uint64_t segment_id, uint64_t base_seq, uint64_t seed, Draft *draft) noexcept nogil:
    cdef Record record
    cdef PayloadHeader payload
    cdef Previous previous
    cdef Run run
    cdef const char *key
    cdef uint64_t hash, kind, at = 0, expected = base_seq
    memset(&run, 0, sizeof(run))
    draft.offset = SEGMENT_HEADER_SIZE
    while draft.offset < footer.end:
        # Verified: what stands in a hint is believed later without a look at the record.
        if (read_record(base, draft.offset, footer.end, segment_id, base_seq, True, &record) != Found.RECORD
                or not split_payload(&record, &payload, &key) or at == footer.records or record.seq < expected):
            return STRANGE
        if payload.kind == KIND_CLEAR:
            return UNTOLD
        kind = HINT_DELETE if payload.kind == KIND_DELETE else 0
        if payload.flags & FLAG_CREATES:
            kind |= HINT_CREATES
        if payload.flags & FLAG_PREVIOUS:
            kind |= HINT_PREVIOUS
            memcpy(&previous, record.payload + PAYLOAD_HEADER_SIZE, sizeof(previous))
            if previous.seq >= record.seq:
                return STRANGE
            if not write_number(&draft.steps, record.seq - previous.seq):
                return NO_MEMORY
        if run.count and run.kind == kind and run.size == record.size and record.seq == expected:
            run.count += 1
        else:
            if run.count and not write_run(&draft.runs, &run):
                return NO_MEMORY
            run.kind = kind
            run.size = record.size
            run.count = 1
            run.gap = record.seq - expected
        hash = xxh3(key, payload.key_length, seed)
        draft.hashes[at] = <uint32_t>(hash >> (64 - HINT_HASH_BITS) << 8 | (hash & 0xFF))
        draft.bits[at >> 3] |= <uint8_t>((hash >> 8 & 1) << (at & 7))
        at += 1
        expected = record.seq + 1
        draft.offset += record.size
    if run.count and not write_run(&draft.runs, &run):
        return NO_MEMORY
    return GATHERED if at == footer.records and expected <= footer.seq else STRANGE


cdef class Hint:
    """A hint that goes with its segment. Made by `read`, or by `peek`, and is then good for what its header says alone."""

    @property
    def segment_id(self):
        """Of the segment that it tells of."""
        return self.header.segment_id

    @property
    def seed(self):
        """By which the hashes were made."""
        return self.header.hash_seed

    @property
    def seq(self):
        """The number after the segment."""
        return self.header.seq

    @property
    def records(self):
        """How many it tells of."""
        return self.header.records

    @property
    def has_steps(self):
        """Whether any of these replaces another version."""
        return self.header.steps_size != 0


def is_named(bytes head, uint64_t segment_id, uint64_t seed):
    """Whether a header says that the hint is of this segment and by this seed."""
    cdef HintHeader header
    if <uint64_t>PyBytes_GET_SIZE(head) < sizeof(header):
        return False
    memcpy(&header, PyBytes_AS_STRING(head), sizeof(header))
    return (header.magic == HINT_MAGIC and header.version == HINT_VERSION and header.segment_id == segment_id
            and header.hash_seed == seed and header.checksum == xxh3(&header, sizeof(header) - 8, segment_id))


def peek(bytes head, Segment segment, log_uuid, path):
    """What the header of a hint file says. Raises CorruptionError when it is not a hint of this segment as it is now, FormatError when newer."""
    cdef Hint made = Hint.__new__(Hint)
    cdef HintHeader *header = &made.header
    cdef Footer footer
    cdef bytes uuid_bytes = log_uuid.bytes
    if <uint64_t>PyBytes_GET_SIZE(head) < sizeof(HintHeader):
        raise CorruptionError(f"{PyBytes_GET_SIZE(head)} bytes are too few for a hint", path)
    memcpy(header, PyBytes_AS_STRING(head), sizeof(HintHeader))
    if header.magic != HINT_MAGIC:
        raise CorruptionError("not a hint", path)
    check_header(head[:sizeof(HintHeader)], HINT_MAGIC, HINT_VERSION, "a hint", path, seed=header.segment_id)
    if header.incompatible:
        raise FormatError(f"the hint uses features {header.incompatible:#x} that this code lacks", path)
    if memcmp(header.log_uuid, <const char *>uuid_bytes, 16) != 0 or header.segment_id != segment.id:
        raise CorruptionError("the hint is of another segment", path)
    # A footer is written once all before it is on the device, and nothing follows it: these bytes are what the hint was made from.
    if (not segment.load_footer(&footer) or header.seq != footer.seq or header.end != footer.end or header.records != footer.records
            or footer.end > segment.limit):
        raise CorruptionError("the hint does not go with the segment as it is now", path)
    return made


def read(bytes data, Segment segment, log_uuid, path):
    """A whole hint. Raises what `peek` does, and CorruptionError when its content does not match its checksum or does not add up."""
    cdef Hint made = peek(data, segment, log_uuid, path)
    cdef HintHeader *header = &made.header
    cdef const char *start = PyBytes_AS_STRING(data)
    cdef uint64_t size = PyBytes_GET_SIZE(data), body = sizeof(HintHeader)
    # In this order none of the sums can overflow.
    if (header.records > size or header.runs_size > size or header.steps_size > size or file_size(header) != size
            or header.content != xxh3(start + body, size - body, header.segment_id)):
        raise CorruptionError("the content of the hint does not match its checksum", path)
    made.data = data
    made.hashes = <const uint32_t *>(start + body)
    made.runs = <const uint8_t *>(start + body + 4 * header.records)
    made.steps = made.runs + header.runs_size
    made.bits = made.steps + header.steps_size
    if not adds_up(made, segment.base_seq):
        raise CorruptionError("the hint verifies but does not add up", path)
    return made


cdef bint adds_up(Hint hint, uint64_t base_seq) noexcept:
    # Everything that is followed later without a further look.
    cdef const uint8_t *at = hint.runs
    cdef uint64_t records = 0, stepping = 0, end = SEGMENT_HEADER_SIZE, seq = base_seq, number = 0
    cdef Run run
    while at < hint.steps:
        at = read_run(at, hint.steps, &run)
        if at == NULL or run.count > hint.header.records - records or run.gap > hint.header.seq - seq:
            return False
        if run.size == 0 or run.count > (hint.header.end - end) // run.size:
            return False
        records += run.count
        end += run.count * run.size
        seq += run.gap + run.count
        if seq > hint.header.seq:
            return False
        if run.kind & HINT_PREVIOUS:
            stepping += run.count
    at = hint.steps
    while at < hint.bits:
        at = read_number(at, hint.bits, &number)
        if at == NULL or stepping == 0:
            return False
        stepping -= 1
    return records == hint.header.records and end == hint.header.end and stepping == 0


cdef uint64_t bits_size(uint64_t records) noexcept nogil:
    return (records + 7) // 8


cdef uint64_t file_size(const HintHeader *header) noexcept nogil:
    return sizeof(HintHeader) + 4 * header.records + header.runs_size + header.steps_size + bits_size(header.records)


cdef bint write_run(Numbers *to, const Run *run) noexcept nogil:
    cdef uint64_t kind = run.kind | (HINT_GAP if run.gap else 0) | (HINT_REPEATS if run.count > 1 else 0)
    if not write_number(to, run.size // UNIT << HINT_SHIFT | kind):
        return False
    if run.count > 1 and not write_number(to, run.count - 2):
        return False
    return run.gap == 0 or write_number(to, run.gap)


cdef const uint8_t *read_run(const uint8_t *at, const uint8_t *stop, Run *run) noexcept nogil:
    # What follows it; NULL when it is cut off.
    cdef uint64_t head = 0, count = 0
    run.gap = 0
    at = read_number(at, stop, &head)
    if at != NULL and head & HINT_REPEATS:
        at = read_number(at, stop, &count)
        count += 1
    if at != NULL and head & HINT_GAP:
        at = read_number(at, stop, &run.gap)
    run.kind = head & (HINT_DELETE | HINT_PREVIOUS | HINT_CREATES)
    run.size = (head >> HINT_SHIFT) * UNIT
    run.count = count + 1
    return at


cdef bint write_number(Numbers *to, uint64_t number) noexcept nogil:
    # Seven bits to a byte, the lowest first; the highest bit says that more follow. False without memory.
    cdef uint64_t capacity
    cdef void *grown
    if to.capacity - to.size < NUMBER_SIZE_MAX:
        capacity = max(2 * to.capacity, <uint64_t>4096)
        grown = realloc(to.bytes, capacity)
        if grown == NULL:
            return False
        to.bytes = <uint8_t *>grown
        to.capacity = capacity
    while number >= 0x80:
        to.bytes[to.size] = <uint8_t>(number | 0x80)
        to.size += 1
        number >>= 7
    to.bytes[to.size] = <uint8_t>number
    to.size += 1
    return True


cdef const uint8_t *read_number(const uint8_t *at, const uint8_t *stop, uint64_t *number) noexcept nogil:
    # What follows it; NULL when it is cut off, or has more than 63 bits.
    cdef uint64_t shift = 0, found = 0
    cdef uint8_t byte
    while at < stop and shift < 63:
        byte = at[0]
        found |= <uint64_t>(byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            number[0] = found
            return at
        shift += 7
    return NULL
