cimport cython
from cpython.buffer cimport Py_buffer
from libc.stdint cimport uint64_t

from mmapkv.index cimport Hit, Index, Outcome
from mmapkv.sharer cimport Sharer


cdef enum:
    # Of a record that is made in memory while the one before it, of the same key, is on its way to the processor.
    MADE_MAX = 1024


cdef struct Spot:
    # Where the next version of a key goes.
    Hit hit                     # its newest version, a deletion included; only when it is `known`
    uint64_t *cell
    uint64_t tag                # of the entry, in place
    bint known
    bint live                   # it has a value now


cdef struct Version:
    # What a key is to have: the bytes at `head`, where there are any, and those at `value`.
    int kind
    const char *key
    uint64_t key_size
    const char *head
    uint64_t head_size
    const char *value
    uint64_t value_size
    uint64_t expires            # nanoseconds since 1970, or 0
    bint settled                # nothing of it will be changed before the commit, so its record may be made ahead
    bint made                   # it is, for the flags in `made_flags`, but for what comes before key and expiry
    int made_flags


cdef class StoreWriter(Sharer):
    cdef char record[MADE_MAX]  # that is being made
    cdef int last_known         # FLAG_PREVIOUS when the last one had it, or 0
    # Of a cache: up to which offset of that segment may be written without another look at the bound, and the bound; NEVER_DUE and 0 otherwise.
    cdef uint64_t due
    cdef uint64_t bound
    cdef bint expiring          # something may have a time to live

    cdef int put_pair(self, key, value, uint64_t expires, bint durable) except -1
    cdef int require(self, uint64_t key_size, uint64_t value_size) except -1
    @cython.final
    cdef void make_ahead(self, Version *version) noexcept
    cdef int seek(self, Version *version, bint verify, Spot *spot) except -1
    cdef int seek_shared(self, Version *version, uint64_t worst, bint verify, Spot *spot) except -1
    cdef Outcome seek_held(self, Index index, Version *version, uint64_t worst, bint verify, Spot *spot) except *
    cdef bytes copy_held(self, const char *start, uint64_t size)
    cdef int commit(self, Spot *spot, Version *version, bint durable) except -1
    cdef int get_ready(self) except -1
    cdef Index take_tail(self, what)
    cdef int enter_tail(self, Index index) except -1
    cdef int prepare(self, Index index) except -1
    cdef int split(self, Index index, uint64_t hash) except -1
    cdef int make_room(self, Version *version, uint64_t worst) except -1
    cdef bint draw(self, error) except -1
    cdef int draw_room(self, uint64_t size, uint64_t records, error) except -1
    cdef int make_way(self, uint64_t size) except -1


cdef class Content:
    # The bytes of a value that was given, for as long as this lives.
    cdef object source
    cdef Py_buffer view
    cdef bint held
    cdef const char *start
    cdef uint64_t size


cdef uint64_t NEVER_DUE


cdef Content content_of(value)
cdef uint64_t expiry_of(ttl) except? 0
cdef void begin_version(Version *version, int kind, bytes key) noexcept
cdef void set_value(Version *version, Content content, uint64_t expires) noexcept
cdef void lay_out(char *payload, int flags, Version *version, uint64_t previous_seq, uint64_t previous) noexcept nogil
