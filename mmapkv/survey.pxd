from libc.stdint cimport uint32_t, uint64_t

from mmapkv.format cimport PayloadHeader
from mmapkv.relocation cimport Ground
from mmaplog.draft cimport Draft
from mmaplog.format cimport Record
from mmaplog.segment cimport Segment


cdef enum Pause:
    DONE
    MORE
    ASKING                      # the record at `offset` is for the caller to decide
    DAMAGED_HERE
    OUTGROWN_HERE


cdef enum:
    # So many keys' versions are told to a scan at a time, by a part of their hashes.
    TOLD = 64


cdef struct Told:
    # Of a key that is often asked for: of its versions below a number, this one alone is needed.
    const char *key             # in the same segment
    uint64_t key_size
    uint64_t below
    uint64_t seq


cdef struct Scan:
    # Going through one segment.
    const char *base
    uint64_t end
    uint64_t id
    uint64_t base_seq
    uint64_t slot
    uint64_t offset
    uint64_t needed             # what was current at this number or later is needed
    uint64_t sweepable          # nothing in earlier segments could bring a key back whose last record is below this number
    uint64_t cleared            # what is below is dead, ...
    uint64_t clear_seq          # ... as this record says; ...
    uint64_t floor              # ... and nobody looks for what is below this any more
    uint64_t expired            # what had expired at this time may leave, in nanoseconds since 1970; 0: nothing
    uint32_t *places            # of what stays
    uint64_t count
    uint64_t size               # of the copies
    uint64_t removed
    uint64_t removed_bytes      # of these, and of ways back from what stays
    uint64_t dead               # bytes of what stays though nothing leads to it, or only to say that a key is absent, or to lead back
    uint64_t swept              # below this is what leaves though it is the newest of its key, and was not the first
    uint64_t held               # of these, what stays for a snapshot's sake
    Told told[TOLD]


cdef Pause scan_some(Scan *scan, const Ground *ground, uint64_t records, uint64_t count) noexcept nogil
cdef void settle(Scan *scan, const Record *record, const PayloadHeader *payload, bint reached) noexcept nogil
cdef bint copy_one(Segment source, const char *record, Draft target, uint64_t needed) noexcept nogil
