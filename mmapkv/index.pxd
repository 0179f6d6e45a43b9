cimport cython
from libc.stdint cimport uint32_t, uint64_t

from mmapio cimport _memory as memory
from mmapio.mapping cimport MappedFile
from mmapio.region cimport Region
from mmapkv.format cimport State
from mmapkv.slots cimport SlotMap


# What a look-up found. All but the first two are settled by the caller, who then looks again.
cdef enum Outcome:
    ABSENT
    PRESENT
    FOREIGN                     # the record at `hit.slot` and `hit.offset` is of a kind this code does not know
    DAMAGED                     # the record at `hit.slot` and `hit.offset` does not verify
    UNMAPPED                    # the segment at `hit.slot` is not mapped this far yet
    OUTGROWN                    # the index file has grown beyond what this process knows of it
    STRAY                       # the position kept of `hit.previous_seq` does not hold it; it must be searched for
    REPLACED                    # the index was rebuilt into a new file
    UNSOUND                     # a part of the index does not match its checksum
    TOO_OLD                     # compaction has removed what is asked for


cdef struct Hit:
    uint64_t *cell              # the index entry
    uint64_t address
    uint64_t slot
    uint64_t offset
    uint64_t seq
    uint64_t size               # of the whole record
    const char *key             # the one that was asked for
    uint64_t key_size
    const char *value
    uint64_t value_size
    bint deleted                # it is a deletion; or, for who writes, was cleared
    bint trimmed                # compaction took the way to the version before away
    bint creates                # the version before, if there is one, is a deletion
    uint64_t deletion_gone      # the number after that of a deletion, or of what had expired, before it which is not there any more, or 0
    uint64_t expires            # nanoseconds since 1970, or 0
    uint64_t previous           # address of the version before, or 0
    uint64_t previous_seq


@cython.final
cdef class Index:
    cdef MappedFile file
    cdef Region region
    cdef tuple moved            # (the region before, and so on): what had pointers into one may be at work without the GIL
    cdef char *base
    cdef uint64_t limit         # bytes of the file that may be touched
    cdef State *state
    cdef uint64_t *slot_table
    cdef uint32_t *dead         # beside it: units of 8 bytes of records that nobody needs
    cdef readonly uint64_t seed
    cdef SlotMap slots
    cdef public bint private    # in the memory of a process that may write nothing; who finds it out of date builds another
    cdef public object basis    # for a reader who may write nothing: the MANIFEST by which it is right; else None
    cdef readonly uint64_t number       # even; tells the file from every other, also from one that gets its inode
    cdef object control         # of the log, where others may put another index in the place of this one; else None
    cdef const uint64_t *named  # in it: the number of the one that is kept up, 0 or with INDEX_CLOSED; else `heard`
    cdef uint64_t heard         # what that was when it was last looked at
    cdef bint whole             # of a cache: what leads to the version before is as live as the record it is in
    cdef bint check_pages       # the file was closed cleanly: index segments are verified when first touched
    cdef unsigned char *checked
    cdef uint64_t checked_pages

    cdef Outcome find(self, uint64_t hash, const char *key, uint64_t key_size, bint verify, Hit *hit) noexcept nogil
    cdef Outcome match(self, uint64_t address, const char *key, uint64_t key_size, bint verify, Hit *hit) noexcept nogil
    cdef bint sound_page(self, uint64_t page) noexcept nogil
    cdef int settle(self, Outcome outcome, Hit *hit, bint held=*) except -1
    cdef bint is_replaced(self) noexcept nogil
    cdef bint has_room(self) noexcept nogil
    cdef int make_room(self) except -1
    cdef uint64_t *place(self, uint64_t hash, uint64_t *tag) noexcept nogil
    cdef Outcome version_before(self, uint64_t stop, uint64_t cleared, bint verify, Hit *hit) noexcept nogil
    cdef int split(self, uint64_t hash) except -1
    cdef int double_directory(self) noexcept nogil
    cdef void finish_split(self) noexcept nogil
    cdef int map_records(self, uint64_t page) except -1
    cdef bint distribute(self, uint64_t word, uint64_t fresh_base, uint64_t left, uint64_t right) noexcept nogil
    cdef uint64_t hash_of(self, uint64_t address) noexcept nogil
    cdef void publish(self, uint64_t seq, uint64_t count) noexcept nogil
    cdef void applied(self, uint64_t *seq, uint64_t *count) noexcept nogil
    cdef int follow(self) except -1
    cdef int check(self) except -1
    cdef uint64_t locate(self, uint64_t seq) except 0
    cdef uint64_t slot_of(self, uint64_t segment_id) except? 0xFFFFFFFF
    cdef void free_slot(self, uint64_t slot) noexcept
    cdef void add_dead(self, uint64_t slot, uint64_t size) noexcept nogil


cdef inline bint is_doubtful(Index index) noexcept nogil:
    # Whether it is to be asked anew if this is still the index: `is_replaced`.
    return memory.load_acquire(index.named) != index.heard


cdef uint64_t directory_size(uint64_t depth) noexcept nogil
cdef uint64_t page_checksum(const char *segment, uint64_t seed) noexcept nogil
