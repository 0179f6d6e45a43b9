# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Changing a store: one record to the log, one word to the index."""

from datetime import timedelta

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from mmapio cimport _fault
from mmapio cimport _memory as memory
from mmapio._os cimport now_ns
from mmapio.bounds cimport told
from mmapkv.approach cimport fetch_bucket, fetch_record
from mmapkv.dead_bytes cimport add_written, superseded_size
from mmapkv.format cimport (
    ADDRESS_BITS,
    EXPIRY_SIZE,
    FLAG_CREATES,
    FLAG_EXPIRY,
    FLAG_PREVIOUS,
    KEY_SIZE_MAX,
    KIND_DELETE,
    KIND_PUT,
    LINE,
    PAYLOAD_HEADER_SIZE,
    VALUE_SIZE_MAX,
    PayloadHeader,
    Previous,
    head_size,
    make_address,
    value_offset,
)
from mmapkv.index cimport ABSENT, PRESENT, Index, Outcome
from mmapkv.reader cimport as_bytes
from mmapkv.sharer cimport Sharer
from mmapkv.slots cimport SlotMap
from mmaplog.appender cimport RECORD_START_END, record_size
from mmaplog.checksum cimport xxh3
from mmaplog.format cimport RECORD_HEADER_SIZE
from mmaplog.log cimport Log

from mmapkv.errors import InvalidKey, StoreError, ValueTooLarge
from mmapkv.index import Reseed


# The default of `pop`, which may be given as None.
cdef object MISSING = object()
# The times that are kept as unsigned numbers of nanoseconds since 1970 end in 2554; this far ahead of today is certainly before.
TTL_SECONDS_MAX = 1e10
cdef uint64_t NEVER_DUE = <uint64_t>-1


cdef class StoreWriter(Sharer):
    """The writing half of ``KVStore``, per operation.

    The subclass gives the methods that replace the index or ready it for writing, `_rebuild_index` and `_begin_writing`; `_segment_filled`,
    which is told when another segment is written to; `_rolled`, which is told later, with nothing in hand, and may wait; and for a cache
    `_make_way`.
    """

    def __cinit__(self):
        self.due = NEVER_DUE
        self.expiring = True

    def _bind(self, uint64_t bound):
        # It is a cache from now on.
        if self.index is None:
            self.raise_closed()
        self.bound = bound
        self.due = 0
        self.index.whole = True

    def _use(self, Index index not None, SlotMap slots not None):
        Sharer._use(self, index, slots)
        index.whole = self.bound != 0

    def __setitem__(self, key, value):
        self.put_pair(key, value, 0, False)

    def put(self, key, value, /, *, ttl=None, bint durable=False):
        """Set the value of `key`; committed when the call returns, and on the device too with `durable`.

        Keys have 1 to 65,535 bytes, values up to 4 GiB - 1 MiB; each is any contiguous buffer, or str, encoded as UTF-8. With `ttl`,
        seconds or a timedelta, the key vanishes that much later by the system's clock; without, it stays, whatever it had before.
        Costs a look-up, one copy and one checksum. Raises InvalidKey, ValueTooLarge, TypeError, ValueError for a `ttl` that
        is not positive; OSError(ENOSPC) with nothing written when the disk is full; InvalidMode, Closed, Poisoned, FlushFailed.
        """
        self.put_pair(key, value, 0 if ttl is None else expiry_of(ttl), durable)

    cdef int put_pair(self, key, value, uint64_t expires, bint durable) except -1:
        cdef Spot spot
        cdef Version version
        cdef Content content = None
        key = as_bytes(key, "key")
        begin_version(&version, KIND_PUT, <bytes>key)
        version.settled = True
        if PyBytes_CheckExact(value):
            version.value = PyBytes_AS_STRING(value)
            version.value_size = PyBytes_GET_SIZE(value)
            version.expires = expires
        else:
            content = content_of(value)
            set_value(&version, content, expires)
        self.seek(&version, False, &spot)
        self.commit(&spot, &version, durable)
        return 0

    def __delitem__(self, key):
        cdef Spot spot
        cdef Version version
        key = as_bytes(key, "key")
        if not 0 < PyBytes_GET_SIZE(key) <= KEY_SIZE_MAX:
            raise KeyError(key)
        begin_version(&version, KIND_DELETE, <bytes>key)
        version.settled = True
        self.seek(&version, False, &spot)
        if not spot.live:
            self.let_go()
            raise KeyError(key)
        self.commit(&spot, &version, False)

    def pop(self, key, default=MISSING, /):
        """Remove `key` and return its value, in one step for every thread; `default`, or KeyError, when it is absent.

        Costs a put, and a copy of the value. Raises CorruptionError when that does not verify, and nothing is removed then; what put raises.
        """
        cdef Spot spot
        cdef Version version
        key = as_bytes(key, "key")
        if 0 < PyBytes_GET_SIZE(key) <= KEY_SIZE_MAX:
            begin_version(&version, KIND_DELETE, <bytes>key)
            self.seek(&version, self.verify, &spot)
            if spot.live:
                # Copied before anything is written; making bytes lets no other thread run.
                value = self.copy_held(spot.hit.value, spot.hit.value_size)
                self.commit(&spot, &version, False)
                return value
            self.let_go()
        if default is MISSING:
            raise KeyError(key)
        return default

    cdef int require(self, uint64_t key_size, uint64_t value_size) except -1:
        if key_size == 0 or key_size > KEY_SIZE_MAX:
            raise InvalidKey(f"a key has 1 to {KEY_SIZE_MAX} bytes, this one has {key_size}", self._path)
        if value_size > VALUE_SIZE_MAX:
            raise ValueTooLarge(f"a value has at most {VALUE_SIZE_MAX} bytes, this one has {value_size}", self._path)
        if self.bound and record_size(value_offset(FLAG_PREVIOUS | FLAG_EXPIRY, key_size) + value_size, False) > self.bound:
            raise ValueTooLarge(
                f"key and value have {key_size + value_size} bytes, more than the cache, which holds {self.bound} with what the format adds",
                self._path)
        return 0

    cdef void make_ahead(self, Version *version) noexcept:
        # All of a record but its head, for a key that is known, or new, as the last one was. Where that is wrong, `commit` does it again.
        version.made_flags = self.last_known | (FLAG_EXPIRY if version.expires else 0)
        lay_out_body(self.record + RECORD_HEADER_SIZE, version.made_flags, version)
        version.made = True

    cdef int seek(self, Version *version, bint verify, Spot *spot) except -1:
        # Finds where the next version of a key goes, with room for it. All that can fail, and all that may let
        # go of the GIL, is in here; whatever let go of it starts the loop again. So between this and `commit` no other
        # thread changes anything, as long as the caller does not let one run: he may make no object that the garbage
        # collector knows, for that may run destructors. Other processes are kept from it by the tail of the log, which is
        # held from here to `commit`: who does not come to that lets go of it.
        cdef Log log = self.log
        cdef uint64_t key_size = version.key_size, value_size = version.head_size + version.value_size, worst, hash
        cdef Index index
        cdef Outcome outcome
        cdef bint ahead
        self.require(key_size, value_size)
        if self.index is None:
            self.raise_closed()
        worst = value_offset(FLAG_PREVIOUS | FLAG_EXPIRY, key_size) + value_size
        ahead = version.settled and record_size(worst, False) <= MADE_MAX
        while True:
            if self.several:
                return self.seek_shared(version, worst, verify, spot)
            index = self.index
            if index is None:
                self.raise_closed()
            # Each wait for memory begins as early as it can, and is filled with what does not need that memory.
            hash = xxh3(version.key, key_size, index.seed)
            fetch_bucket(index, hash)
            if ahead:
                self.make_ahead(version)
            if log.end + record_size(worst, False) > log.room or log.end >= RECORD_START_END:
                self.make_room(version, worst)
                continue
            if self.tail_id != log.segment_id:
                self.prepare(index)
                continue
            if log.end + record_size(worst, False) > self.due:
                self.make_way(record_size(worst, False))
                continue
            if ahead:
                fetch_tail(log.base + log.end + record_size(worst, False))
                fetch_record(index, hash)
            outcome = index.find(hash, version.key, key_size, verify, &spot.hit)
            if _fault.faults() != self.faults:
                self.check_faults()
            if outcome == PRESENT:
                take_found(spot, index.state.cleared)
                return 0
            if outcome == ABSENT:
                spot.cell = index.place(hash, &spot.tag)
                if spot.cell != NULL:
                    spot.known = spot.live = False
                    return 0
                if version.kind == KIND_DELETE:
                    # There is nothing to enter.
                    spot.known = spot.live = False
                    return 0
                if index.has_room():
                    self.split(index, hash)
                else:
                    index.make_room()
            else:
                self.settle(index, outcome, &spot.hit)

    cdef int seek_shared(self, Version *version, uint64_t worst, bint verify, Spot *spot) except -1:
        # The same where other processes write. Whatever stands in the way of a look-up is removed while they do.
        cdef Index index
        cdef Outcome outcome
        while True:
            self.tell_rolled()
            index = self.hold("a write")
            try:
                outcome = self.seek_held(index, version, worst, verify, spot)
            except Reseed:
                self.let_go()
                self._rebuild_index(index)
                continue
            except OSError as error:
                self.let_go()
                if version.kind != KIND_DELETE or not self.draw(error):
                    raise
                continue
            except BaseException:
                self.let_go()
                raise
            if outcome == PRESENT:
                return 0
            self.let_go()
            self.settle(index, outcome, &spot.hit)

    cdef Outcome seek_held(self, Index index, Version *version, uint64_t worst, bint verify, Spot *spot) except *:
        # PRESENT once there is a place for the next version, and room.
        cdef uint64_t hash = xxh3(version.key, version.key_size, index.seed)
        cdef Outcome outcome
        self.log.find_room(record_size(worst, False), 1, False)
        self.enter_tail(index)
        while True:
            outcome = index.find(hash, version.key, version.key_size, verify, &spot.hit)
            if _fault.faults() != self.faults:
                self.check_faults()
            if outcome == PRESENT:
                take_found(spot, index.state.cleared)
                return PRESENT
            if outcome != ABSENT:
                return outcome
            spot.cell = index.place(hash, &spot.tag)
            if spot.cell != NULL:
                spot.known = spot.live = False
                return PRESENT
            if version.kind == KIND_DELETE:
                spot.known = spot.live = False
                return PRESENT
            if index.has_room():
                index.split(hash)
            else:
                index.make_room()

    cdef bytes copy_held(self, const char *start, uint64_t size):
        # Between `seek` and `commit`.
        try:
            return PyBytes_FromStringAndSize(start, size)
        except MemoryError:
            self.let_go()
            raise

    cdef int commit(self, Spot *spot, Version *version, bint durable) except -1:
        # Right after `seek`: a record to the log, and its address into the index.
        cdef Log log = self.log
        cdef Index index = self.index
        cdef uint64_t payload_size, seq, count
        cdef char *payload
        cdef int flags = FLAG_PREVIOUS if spot.known else 0
        self.last_known = flags
        if version.expires:
            flags |= FLAG_EXPIRY
            self.expiring = True
        if version.kind == KIND_PUT and (not spot.known or spot.hit.deleted):
            flags |= FLAG_CREATES
        payload_size = value_offset(flags, version.key_size) + version.head_size + version.value_size
        if version.made:
            payload = self.record + RECORD_HEADER_SIZE
            if (flags ^ version.made_flags) & FLAG_PREVIOUS:
                lay_out_body(payload, flags, version)
            lay_out_head(payload, flags, version, spot.hit.seq, spot.hit.address)
            log.commit_made(self.record, payload_size)
        else:
            lay_out(log.begin(payload_size), flags, version, spot.hit.seq, spot.hit.address)
            log.commit(payload_size)

        if spot.known and not spot.hit.deleted:
            index.add_dead(spot.hit.slot, superseded_size(index, &spot.hit))
        add_written(index, self.tail_slot, version.kind, flags, record_size(payload_size, False))
        # Committed. A reader that sees the entry now sees a record that no crash takes away.
        if version.expires:
            index.state.expiring = log.seq
        memory.store_release(spot.cell, spot.tag | make_address(self.tail_slot, log.last))
        index.applied(&seq, &count)
        if flags & FLAG_CREATES:
            count += 1
        elif version.kind == KIND_DELETE:
            count -= 1
        seq = log.seq
        index.publish(seq, count)
        self.seen = seq
        if self.several:
            log.give_tail()
        if _fault.faults() != self.faults:
            self.check_faults()
        log.after_commit(payload_size, seq, durable)
        return 1

    cdef int get_ready(self) except -1:
        # The index may be stored to, and knows the segment that is written.
        cdef Index index
        if self.several:
            index = self.hold("a compaction")
            try:
                self.enter_tail(index)
            finally:
                self.let_go()
            return 0
        while self.tail_id != self.log.segment_id:
            self.prepare(self.index)
        return 0

    cdef Index take_tail(self, what):
        # From here to `give_tail` of the log nobody else writes, whoever lets go of the GIL, and the index that is returned may be stored to.
        cdef Index index
        while True:
            index = self.index
            if index is None:
                self.raise_closed()
            if self.tail_id == 0 and not self.several:
                self.log.check_writable()
                self.prepare(index)
                continue
            if self.several:
                index = self.hold(what)
            else:
                self.log.hold_tail(what)
            if self.index is index and (self.tail_id != 0 or self.several):
                return index
            self.log.give_tail()

    cdef int prepare(self, Index index) except -1:
        # Before the first write of this handle, and after each roll.
        if self.tail_id == 0:
            self._begin_writing(index)
            if self.index is not index:
                return 0
        self.enter_tail(index)
        return self.tell_rolled()

    cdef int enter_tail(self, Index index) except -1:
        # What may be written to a segment of a cache without another look is not known of the next one.
        if self.due != NEVER_DUE and self.tail_id != self.log.segment_id:
            self.due = 0
        return Sharer.enter_tail(self, index)

    cdef int make_room(self, Version *version, uint64_t worst) except -1:
        # In the log, or, for a deletion on a full disk, what is needed for that; who asked looks again.
        try:
            return self.log.make_room(worst)
        except OSError as error:
            if version.kind != KIND_DELETE or not self.draw(error):
                raise
        return 0

    cdef bint draw(self, error) except -1:
        # Whether the log's reserve gave room to what removes keys. That the index knows no more segments is no want of room.
        return not isinstance(error, StoreError) and self.log.draw(error)

    cdef int draw_room(self, uint64_t size, uint64_t records, error) except -1:
        # Where `error` says that there is none for these records, which remove keys. By who holds the tail.
        while self.draw(error):
            try:
                return self.log.find_room(size, records, True)
            except OSError as another:
                error = another
        raise error

    cdef int make_way(self, uint64_t size) except -1:
        # Lets go of what is oldest in a cache, so that so many bytes, and some more, can be written.
        if self.due != NEVER_DUE:
            self._make_way(min(size, self.bound))
        return 0

    cdef int split(self, Index index, uint64_t hash) except -1:
        try:
            index.split(hash)
        except Reseed:
            self._rebuild_index(index)
        return 0


cdef inline void take_found(Spot *spot, uint64_t cleared) noexcept:
    # The key has a version: the next one goes into the same entry. One that was cleared counts as a deletion.
    if spot.hit.seq < cleared:
        spot.hit.deleted = True
    spot.cell = spot.hit.cell
    spot.tag = spot.cell[0] >> ADDRESS_BITS << ADDRESS_BITS
    spot.known = True
    spot.live = not spot.hit.deleted and (spot.hit.expires == 0 or spot.hit.expires > now_ns())


cdef class Content:
    """A value that was given, as bytes in memory. Made by `content_of`."""

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef Content content_of(value):
    # bytes and buffers as they are, str as UTF-8.
    cdef Content content = Content.__new__(Content)
    if isinstance(value, str):
        value = (<str>value).encode()
    if PyBytes_CheckExact(value):
        content.source = value
        content.start = PyBytes_AS_STRING(value)
        content.size = PyBytes_GET_SIZE(value)
        return content
    try:
        PyObject_GetBuffer(value, &content.view, PyBUF_SIMPLE)
    except (TypeError, BufferError):
        raise TypeError(
            f"a value is bytes, another contiguous buffer or str, not {type(value).__name__}") from None
    content.held = True
    content.start = <const char *>content.view.buf
    content.size = content.view.len
    return content


cdef uint64_t expiry_of(ttl) except? 0:
    # When that time to live ends, counted from now; 0 for None, which is no end.
    cdef double seconds
    if ttl is None:
        return 0
    try:
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    except TypeError:
        raise TypeError(f"a time to live, ttl, is a number of seconds, a timedelta or None, not {type(ttl).__name__}") from None
    except OverflowError:
        seconds = TTL_SECONDS_MAX * 2
    if not 0 < seconds <= <double>TTL_SECONDS_MAX:
        raise ValueError(f"a time to live, ttl, is more than 0 and at most {TTL_SECONDS_MAX:.0f} seconds, or None, not {told(ttl)!r}")
    return now_ns() + <uint64_t>(seconds * 1e9)


cdef void begin_version(Version *version, int kind, bytes key) noexcept:
    # Of no value yet.
    memset(version, 0, sizeof(version[0]))
    version.kind = kind
    version.key = PyBytes_AS_STRING(key)
    version.key_size = PyBytes_GET_SIZE(key)


cdef void set_value(Version *version, Content content, uint64_t expires) noexcept:
    version.value = content.start
    version.value_size = content.size
    version.expires = expires


cdef void lay_out(char *payload, int flags, Version *version, uint64_t previous_seq, uint64_t previous) noexcept nogil:
    # Writes a payload into memory that has room for it.
    lay_out_body(payload, flags, version)
    lay_out_head(payload, flags, version, previous_seq, previous)


cdef inline void lay_out_head(char *payload, int flags, Version *version, uint64_t previous_seq, uint64_t previous) noexcept nogil:
    cdef PayloadHeader header
    cdef Previous before
    header.key_length = <unsigned short>version.key_size
    header.kind = version.kind
    header.flags = flags
    header.value_length = <unsigned int>(version.head_size + version.value_size)
    memcpy(payload, &header, sizeof(header))
    if flags & FLAG_PREVIOUS:
        before.seq = previous_seq
        before.address = previous
        memcpy(payload + PAYLOAD_HEADER_SIZE, &before, sizeof(before))


cdef inline void lay_out_body(char *payload, int flags, Version *version) noexcept nogil:
    # What follows the head.
    cdef char *value = payload + value_offset(flags, version.key_size)
    # The gap between key and value is zeroed first, the key written over its beginning.
    memset(value - 8, 0, 8)
    payload += head_size(flags)
    if flags & FLAG_EXPIRY:
        memcpy(payload - EXPIRY_SIZE, &version.expires, EXPIRY_SIZE)
    memcpy(payload, version.key, version.key_size)
    # A deletion has no value, and a copy from nowhere is undefined even of nothing.
    if version.head_size:
        memcpy(value, version.head, version.head_size)
        value += version.head_size
    if version.value_size:
        memcpy(value, version.value, version.value_size)


cdef inline void fetch_tail(char *end) noexcept nogil:
    # Where the record after this one will be written: for the lines of this one the time since would have been too short.
    memory.prefetch_write(end)
    memory.prefetch_write(end + LINE)
    memory.prefetch_write(end + 2 * LINE)
