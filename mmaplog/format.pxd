# The on-disk format of a log, version 1. docs/format-log.md is the same in prose and tables.
# Everything is little-endian. Sizes are pinned when format.pyx is imported.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    VERSION = 1
    UNIT = 8                    # records start and end on multiples of this
    SECTOR = 512                # what a disk writes as one: the parts of a header that change have their own
    SEGMENT_HEADER_SIZE = 4096  # records start here
    MARK_OFFSET = 512           # two copies of the durable mark, a sector each
    MARK_OPENED = 1             # bit of a mark's end: there was a writer since
    FOOTER_OFFSET = 1536        # two copies of the footer, a sector each
    COPIES = 2
    RECORD_HEADER_SIZE = 16
    TIME_SIZE = 8
    CONTROL_SIZE = 8192
    CONTROL_HOT_OFFSET = 4096
    APPEND_MUTEX_OFFSET = 4352  # of those who append, where several processes do ...
    SYNC_MUTEX_OFFSET = 4480    # ... and of those who sync

    SYNCING = 1                 # bits of `sync_inflight`: a sync of what is committed, or of the tail's header ...
    SYNCING_AHEAD = 2           # ... one of the thread that makes room ahead of the writer ...
    RECOVERING = 4              # ... and those of a recovery, which CONTROL was made for and says nothing else

    INCOMPATIBLE_GAPS = 1       # of a segment: numbers may be missing, compaction wrote it
    INCOMPATIBLE_KNOWN = 1

    TYPE_DATA = 1               # the only record type of version 1
    FLAG_PAD = 0x07             # how many zero bytes end the record, 0 to 7
    FLAG_TIME = 0x08            # a timestamp precedes the payload
    FLAG_BATCH = 0x10           # part of a batch: counts only when its end is there
    FLAG_BATCH_END = 0x20       # the last record of a batch
    FLAG_KNOWN = 0x3F           # what is left is reserved for compression and encryption
    LAG_UNKNOWN = 0xFFFF        # the record makes no claim about what was durable

cdef uint64_t SEGMENT_MAGIC
cdef uint64_t CONTROL_MAGIC
cdef uint64_t RECORD_SIZE_MAX


cdef packed struct SegmentHeader:
    uint64_t magic
    uint32_t version
    uint32_t header_size
    uint32_t compatible         # unknown bits may be ignored
    uint32_t incompatible       # unknown bits forbid opening
    uint8_t log_uuid[16]
    uint64_t segment_id         # random; salts every checksum in the segment
    uint64_t base_seq           # number of the first record
    uint64_t base_time          # nanoseconds since 1970 when the segment was made
    uint64_t capacity           # bytes the file may grow to
    uint32_t epoch              # raised whenever sequence numbers are used again
    uint32_t reserved
    uint64_t replaces           # id of the segment that compaction wrote this one for, or 0
    uint64_t checksum           # XXH3-64 of all before it


cdef packed struct DurableMark:
    uint64_t seq                # every record below this number was durable ...
    uint64_t end                # ... and ended here, but for the bit MARK_OPENED
    uint64_t checksum           # XXH3-64 of the above, seeded by the segment id


cdef packed struct Footer:
    uint64_t seq                # number after the last record of the sealed segment
    uint64_t end                # offset after it
    uint64_t records
    uint64_t time_min
    uint64_t time_max
    uint64_t checksum           # XXH3-64 of the above, seeded by the segment id


cdef packed struct RecordHeader:
    uint32_t length             # of the whole record in units of 8 bytes; 0: never written
    uint32_t checksum           # low half of XXH3-64 over what follows
    uint32_t seq                # minus the segment's base_seq
    uint8_t type
    uint8_t flags
    uint16_t lag                # how many records before this one were not yet durable


cdef packed struct ControlIdentity:
    uint64_t magic
    uint32_t version
    uint32_t reserved
    uint8_t log_uuid[16]
    uint64_t incarnation        # random, new whenever the file is made anew
    uint8_t boot_id[16]
    uint64_t device
    uint64_t inode
    uint64_t birth_seconds
    uint64_t birth_nanoseconds
    uint64_t mount_id
    uint64_t checksum           # XXH3-64 of all before it


cdef packed struct CommitSlot:
    uint64_t seq                # the next sequence number
    uint64_t segment_id         # where the next record goes ...
    uint32_t end                # ... in units of 8 bytes ...
    uint32_t last               # ... and where the record before it starts; 0: it is in an earlier segment


cdef packed struct ControlHot:
    # Line 0, written by every append. Slot `turn & 1` is current; the other one is being written.
    uint64_t turn
    CommitSlot slots[2]
    uint64_t in_flight          # offset up to which an unfinished append may have written
    # Line 1, written by every sync.
    uint64_t durable            # the number after the last durable record
    uint64_t sync_inflight      # which syncs are not known to have succeeded, or to have failed
    uint64_t poison             # errno of the first failed sync, or 0
    uint64_t line1[5]
    # Line 2.
    uint64_t clean_sum          # XXH3-64 of lines 0 and 1 since a clean close; 0 while a writer is at work
    uint64_t waiting            # not 0: somebody sleeps
    uint64_t bell               # what they sleep on: raised, after `waiting` was cleared, before they are woken
    uint64_t first_seq          # the first record that the log still has
    uint64_t generation         # raised whenever segments were replaced or removed, other than by a roll
    uint64_t index              # which file is the INDEX of a store, as that tells itself; 0: nobody has said
    uint64_t line2[2]


# What reading one record found.
cdef enum Found:
    RECORD = 0
    NOTHING = 1                 # a zero length: never written
    BROKEN = 2                  # a length, number or checksum that does not fit
    UNKNOWN = 3                 # verifies, but its type or flags are not of this version


cdef struct Record:
    uint64_t seq
    uint64_t time
    const char *payload
    uint64_t payload_size
    uint64_t size
    uint64_t durable            # all below were durable when it was written; 0 when it makes no claim
    uint8_t flags


cdef uint64_t seed_of(uint64_t segment_id, uint64_t offset, uint32_t length) noexcept nogil
cdef uint32_t checksum_of(const char *record, uint64_t segment_id, uint64_t offset, uint32_t length) noexcept nogil
cdef Found read_record(
    const char *base, uint64_t offset, uint64_t limit, uint64_t segment_id, uint64_t base_seq, bint verify,
    Record *out) noexcept nogil
