# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""The writing half of a log: where the next record goes, room for it, committing it, and making it durable."""

import errno as _errno
import os
import threading

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mmapio cimport _fault
from mmapio cimport _memory as memory
from mmapio._os cimport now_ns
from mmaplog.format cimport (
    FLAG_BATCH,
    FLAG_BATCH_END,
    FLAG_TIME,
    LAG_UNKNOWN,
    RECORD_HEADER_SIZE,
    RECORD_SIZE_MAX,
    SEGMENT_HEADER_SIZE,
    TIME_SIZE,
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
from mmaplog.pieces cimport Pieces, pieces_of, slices_of
from mmaplog.segment cimport Segment

from mmapio import _os as system
from mmapio.errors import Closed, FlushFailed, InvalidMode, MappingFault
from mmaplog.errors import CorruptionError, LogError, Poisoned, RecordTooLarge
from mmaplog.segment import create_segment

# A segment starts with this and doubles, by no more than the second at a time.
cdef uint64_t FIRST_ALLOCATION = 64 << 10
cdef uint64_t STEP_MAX = 4 << 20
cdef uint64_t SEQ_PER_SEGMENT_MAX = 0xFFFFFFFF
# What is atomic is in one segment, in which no record starts at or beyond RECORD_START_END.
cdef uint64_t BATCH_SIZE_MAX = RECORD_START_END - SEGMENT_HEADER_SIZE


cdef class Appender:
    """The writing half of :class:`mmaplog.Log`, which opens it, reads, and closes it."""

    def __init__(self):
        raise TypeError("use Log.open")

    def append(self, data, *, bint durable=False):
        """Append one record and return its sequence number; it is visible to every process at once.

        `data` is any contiguous buffer. With `durable` it is on the device when the call returns, otherwise as the
        flush policy says. Costs one copy and one checksum. Raises OSError(ENOSPC) with nothing written when the disk is
        full, RecordTooLarge, InvalidMode, Closed, Poisoned, TypeError for what is no buffer, MappingFault once a file of the log was cut.
        """
        cdef Py_buffer view
        cdef uint64_t seq
        cdef char *payload
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            while self.end + record_size(view.len, self.timestamps) > self.room:
                self.make_room(view.len)
            payload = self.begin(view.len)
            if view.len:  # an empty buffer may be nowhere, and a copy from there is undefined
                memcpy(payload, view.buf, view.len)
            seq = self.seq
            self.commit(view.len)
            if _fault.faults() != self.faults:
                self.check_faults()
            self.after_commit(view.len, durable)
        finally:
            PyBuffer_Release(&view)
        return seq

    def append_many(self, records, offsets=None, *, bint atomic=False, bint durable=False):
        """Append records one after the other, with none of another thread's in between, and return their numbers as a range.

        `records` is an iterable of contiguous buffers. With `offsets` it is one buffer, and record i its bytes from
        ``offsets[i]`` to ``offsets[i + 1]``; offsets are integers, in any sequence or in a buffer of unsigned 64-bit
        words, and then no Python object is touched per record and other threads run meanwhile. With `atomic` all of them are in the
        log or none, whatever happens, a power cut included. `durable` costs one sync for all.

        Everything is checked before anything is written: TypeError for what is no buffer, ValueError for offsets that go back or
        beyond the buffer, RecordTooLarge for a record, or with `atomic` for all of them. Raises OSError(ENOSPC) when the
        disk is full: with `atomic` nothing is written, otherwise those before are in the log, up to :attr:`committed`; and what
        :meth:`append` raises.
        """
        cdef Pieces pieces
        if offsets is None:
            pieces = pieces_of(records)
        else:
            pieces = slices_of(records, offsets)
        try:
            return self.write_many(pieces, atomic, durable)
        finally:
            pieces.release()

    cdef object write_many(self, Pieces pieces, bint atomic, bint durable):
        cdef uint64_t first = 0, need, total = 0, at = 0, done, size
        self.check_writable()
        for at in range(pieces.count):
            size = record_size(pieces.sizes[at], self.timestamps)
            if size > RECORD_SIZE_MAX:
                self.refuse_size(pieces.sizes[at])
            total += size
        if atomic and total > BATCH_SIZE_MAX:
            raise RecordTooLarge(
                f"{pieces.count} records of {total} bytes in all are more than the {BATCH_SIZE_MAX} that are atomic", self._path)
        self.refuse_within_flush("an append")
        with self.append_lock:
            self.check_writable()
            if self.growing or self.paused:
                raise self.reentered("an append")
            # Nobody else finds room until this is through, also while this thread has let go of the GIL.
            self.growing = True
            self.room = 0
            first = self.seq
            at = 0
            try:
                while at < pieces.count:
                    need = total if atomic else record_size(pieces.sizes[at], self.timestamps)
                    self.find_room(need, pieces.count if atomic else 1)
                    done = self.write_run(pieces, at, atomic)
                    if _fault.faults() != self.faults:
                        self.check_faults()
                    at += done
                    if at < pieces.count and self.bytes_pending >= self.bytes_bound:
                        self.flush()
            finally:
                self.growing = False
                self.restore_room()
        if pieces.count and (durable or self.bytes_pending >= self.bytes_bound or self.writes_pending >= self.writes_bound):
            self.flush()
        return range(first, first + pieces.count)

    cdef uint64_t write_run(self, Pieces pieces, uint64_t at, bint atomic) noexcept:
        # Writes records from number `at` on for as long as they fit, and returns how many. The first one does.
        cdef uint64_t begun = at, limit = self.tail.limit, size, bytes = 0
        cdef uint8_t flags = 0
        cdef const char *source
        cdef char *payload
        with nogil:
            while at < pieces.count:
                size = pieces.sizes[at]
                if (self.end + record_size(size, self.timestamps) > limit or self.end >= RECORD_START_END
                        or self.seq - self.base_seq >= SEQ_PER_SEGMENT_MAX):
                    break
                payload = self.begin(size)
                source = pieces.starts[at]
                if size:
                    memcpy(payload, source, size)
                if atomic and pieces.count > 1:
                    flags = FLAG_BATCH | (FLAG_BATCH_END if at + 1 == pieces.count else 0)
                self.write_record(size, flags)
                if not atomic or at + 1 == pieces.count:
                    self.publish()
                bytes += size
                at += 1
        # Below the GIL, and once they are published: a flush of another thread takes off the books what it finds there.
        self.bytes_pending += bytes
        self.writes_pending += at - begun
        return at - begun

    def flush(self):
        """Make every record that is committed now durable: on the device when it returns. Runs without the GIL.

        Raises FlushFailed once and Poisoned from then on when a sync fails: what it covered may be lost, and
        the kernel would report success for it later. InvalidMode on a reader, Closed.
        """
        self.check_writable()
        self.flush_to(self.control.committed().seq)

    cdef int flush_to(self, uint64_t seq) except -1:
        # Every record below `seq`, and what else there is when the sync begins. Whoever waits here while another one syncs finds
        # the work done by it, or by the next: what was appended meanwhile is the business of who appended it.
        with self.flush_turn:
            while True:
                self.check_writable()
                if self.control.durable >= seq:
                    return 0
                if not self.flushing:
                    break
                self.refuse_within_flush("a flush")
                self.flush_turn.wait()
            self.flushing = threading.get_ident()
        try:
            self.flush_held()
        finally:
            self.give_turn()
        return 0

    cdef int take_turn(self) except -1:
        # Keeps others from syncing; who holds `append_lock` may wait for it, for nobody who syncs waits for that.
        with self.flush_turn:
            while self.flushing:
                self.flush_turn.wait()
            self.flushing = threading.get_ident()
        return 0

    cdef int give_turn(self) except -1:
        with self.flush_turn:
            self.flushing = 0
            self.flush_turn.notify_all()
        return 0

    cdef flush_held(self):
        cdef Segment segment
        cdef CommitSlot target
        target = self.control.committed()
        cdef uint64_t bytes_covered = self.bytes_pending, writes_covered = self.writes_pending
        if self.control.durable >= target.seq:
            if _fault.faults() != self.faults:
                self.check_faults()
            self.bytes_pending = self.writes_pending = 0
            return
        # Found before anything is at stake: a file that is missing is no failed sync.
        cdef Segment last = self.segments.by_id(target.segment_id)
        # Likewise a descriptor that cannot be had.
        for segment in self.unsynced:
            segment.handle()
        last.handle()
        before, self.unsynced = self.unsynced, []
        names, self.names_unsynced = self.names_unsynced, False
        try:
            for segment in before:
                segment.sync()
            last.sync()
            if names:
                system.sync(self.directory)
            # A sync of what is left of a file succeeds.
            if _fault.faults() != self.faults:
                self.check_faults()
        except MappingFault:
            self.room = 0
            self.unsynced = before + self.unsynced
            self.names_unsynced = True
            raise
        except OSError as error:
            self.room = 0
            memory.store_release(&self.control.hot.poison, error.errno or _errno.EIO)
            if isinstance(error, FlushFailed):
                raise
            raise FlushFailed(error.errno, f"sync failed: {error.strerror}", self._path) from error
        except BaseException:
            # No memory, or a signal: nothing was promised, and all is still to be done.
            self.unsynced = before + self.unsynced
            self.names_unsynced = True
            raise
        self.control.publish_durable(target.seq)
        # Others may have appended while the sync ran; that is not covered.
        self.bytes_pending -= bytes_covered
        self.writes_pending -= writes_covered
        for segment in before:
            self.seal(segment)

    def needs_flush(self):
        """Whether a committed record is not yet durable. False when the log is closed or only read."""
        return self.control is not None and self.writable and not self.forked and self.control.durable < self.control.committed().seq

    def pause(self):
        """For layers above: hold off every append, of all threads, until `resume`. Not reentrant."""
        self.refuse_within_flush("a close or a rebuild")
        self.append_lock.acquire()
        try:
            self.check_writable()
            if self.growing or self.paused:
                raise self.reentered("a close or a rebuild")
        except BaseException:
            self.append_lock.release()
            raise
        self.paused = True
        self.room = 0

    def resume(self):
        """Let appends go on after `pause`."""
        self.paused = False
        self.restore_room()
        self.append_lock.release()

    def _nobody_heard(self):
        # Of a failed sync in the background: the poison in CONTROL tells everybody who asks.
        pass

    cdef int check(self) except -1:
        if self.control is None:
            raise Closed(_errno.EBADF, "the log is closed; open it again", self._path)
        return 0

    cdef int check_writable(self) except -1:
        self.check()
        if not self.writable:
            raise InvalidMode(_errno.EACCES, "the log is open for reading; open it with mode 'w' or 'c'", self._path)
        if self.forked:
            self.raise_forked()
        cdef uint64_t poison = memory.load_acquire(&self.control.hot.poison)
        if poison:
            self.raise_poisoned(poison)
        if _fault.faults() != self.faults:
            self.check_faults()
        return 0

    cdef int check_faults(self) except -1:
        # Something in this process met a page that was not there. If it was a page of this log, what was stored there
        # is lost, and what was read there were zeros.
        cdef uint64_t faults = _fault.faults()
        self.check()
        try:
            self.control.check()
            self.segments.check()
        except MappingFault:
            self.room = 0
            raise
        self.faults = faults
        return 0

    cdef raise_poisoned(self, poison):
        raise Poisoned(
            poison, f"an earlier sync failed ({os.strerror(poison)}), so nothing is acknowledged any more; "
            "close every handle and open the log again", self._path)

    cdef raise_forked(self):
        raise Closed(_errno.EBADF, "a log inherited by fork belongs to the parent; open it again in the child", self._path)

    cdef void restore_room(self) noexcept:
        self.room = 0
        if (self.control is not None and self.writable and not self.forked and not self.control.hot.poison
                and _fault.faults() == self.faults):
            self.room = self.tail.limit

    cdef reentered(self, what):
        return LogError(
            _errno.EDEADLK, f"{what} from a destructor or signal handler that interrupted another one of the same log; "
            "let the handler leave a note instead, and act on it later", self._path)

    cdef int refuse_within_flush(self, what) except -1:
        # A destructor that interrupted a sync of this thread has the turn in hand: with that it must not wait for append_lock,
        # whose holder may be waiting for it.
        if self.flushing == threading.get_ident():
            raise self.reentered(what)
        return 0

    cdef int make_room(self, uint64_t payload_size) except -1:
        # The slow half of every append: what is wrong is raised here, and space is found before anything is written.
        cdef uint64_t need = record_size(payload_size, self.timestamps)
        self.check_writable()
        if payload_size > RECORD_SIZE_MAX or need > RECORD_SIZE_MAX:
            self.refuse_size(payload_size)
        self.refuse_within_flush("an append")
        # Holding the lock, and with no room left for those who do not, this thread may let go of the GIL.
        with self.append_lock:
            self.check_writable()
            if self.growing or self.paused:
                raise self.reentered("an append")
            if self.end + need <= self.tail.limit and self.end < RECORD_START_END:
                # There may be room that nobody gave back: what had met a fault elsewhere left none.
                self.restore_room()
                return 0
            self.growing = True
            self.room = 0
            try:
                self.find_room(need, 1)
            finally:
                self.growing = False
                self.restore_room()
        return 0

    cdef int find_room(self, uint64_t need, uint64_t records) except -1:
        # Room for so many bytes, in one segment, of so many records. By who holds the lock and has set `growing`.
        cdef uint64_t step
        cdef Segment tail
        if (self.end + need > self.tail.capacity or self.end >= RECORD_START_END
                or (records > 1 and self.end + need > RECORD_START_END)
                or self.seq - self.base_seq + records > SEQ_PER_SEGMENT_MAX):
            self.roll(need)
        elif self.end + need > self.tail.limit:
            step = min(max(self.tail.limit, FIRST_ALLOCATION), STEP_MAX)
            grow_or_just_enough(self.tail, self.tail.limit + step, self.end + need)
        else:
            return 0
        if self.bytes_pending >= STEP_MAX:
            # So much since the last flush: this will be filled before the next one, too, which then writes little in vain.
            tail = self.tail
            with nogil:
                tail.prefault(self.end, tail.limit)
        return 0

    cdef int refuse_size(self, uint64_t payload_size) except -1:
        raise RecordTooLarge(f"a record of {payload_size} bytes is larger than the {RECORD_SIZE_MAX} that fit", self._path)

    cdef int roll(self, uint64_t need) except -1:
        cdef uint64_t capacity = max(<uint64_t>self.manifest.segment_bytes, SEGMENT_HEADER_SIZE + need)
        cdef uint64_t size = min(capacity, max(STEP_MAX, SEGMENT_HEADER_SIZE + need))
        cdef uint64_t end = self.end
        cdef Segment made
        try:
            made = create_segment(
                self.directory, self.segments.log_uuid, self.seq, self.tail.epoch, capacity, size)
        except OSError as error:
            if error.errno != _errno.ENOSPC:
                raise
            made = create_segment(
                self.directory, self.segments.log_uuid, self.seq, self.tail.epoch, capacity, SEGMENT_HEADER_SIZE + need)
        cdef Segment left = self.tail
        cdef CommitSlot slot
        if left.base_seq == self.seq:
            # The other one's name goes below. Of two changes of a directory a power cut may keep the second alone, and then there
            # would be no segment that begins here.
            try:
                system.sync(self.directory)
            except BaseException:
                system.remove_file(self.directory, made.name)
                raise
        self.segments.add(made)
        self.names_unsynced = True
        self.move_to(made, SEGMENT_HEADER_SIZE, 0)
        slot.seq = self.seq
        slot.segment_id = made.id
        slot.end = SEGMENT_HEADER_SIZE // UNIT
        slot.last = 0
        self.control.publish(&slot)
        memory.store_release(&self.control.hot.in_flight, SEGMENT_HEADER_SIZE)
        if left.base_seq == self.seq:
            # Nothing was ever in it: the record is too large for it and has got a segment of its own.
            self.segments.discard(left)
        else:
            left.end = end
            left.release()
            self.unsynced.append(left)
        return 0

    cdef void move_to(self, Segment segment, uint64_t end, uint64_t last) noexcept:
        self.tail = segment
        self.base = segment.base
        self.segment_id = segment.id
        self.base_seq = segment.base_seq
        self.end = end
        self.last = last

    cdef char *begin(self, uint64_t payload_size) noexcept nogil:
        # Where the payload of the next record goes. Only after make_room, and commit must follow.
        memory.store_release(&self.control.hot.in_flight, self.end + record_size(payload_size, self.timestamps))
        memory.fence_release()
        return self.base + self.end + RECORD_HEADER_SIZE + TIME_SIZE * self.timestamps

    cdef void commit(self, uint64_t payload_size) noexcept nogil:
        # Seals the record whose payload is in place and makes it visible to all.
        self.write_record(payload_size, 0)
        self.publish()

    cdef void write_record(self, uint64_t payload_size, uint8_t flags) noexcept nogil:
        # Seals the record whose payload is in place. What is written next follows it.
        cdef uint64_t size = record_size(payload_size, self.timestamps)
        cdef uint64_t used = RECORD_HEADER_SIZE + TIME_SIZE * self.timestamps + payload_size
        cdef uint64_t behind = self.seq - memory.load_relaxed(&self.control.hot.durable)
        cdef char *record = self.base + self.end
        cdef RecordHeader *header = <RecordHeader *>record
        header.length = size // UNIT
        header.seq = <uint32_t>(self.seq - self.base_seq)
        header.type = TYPE_DATA
        header.flags = <uint8_t>(size - used) | flags | (FLAG_TIME if self.timestamps else 0)
        header.lag = <uint16_t>behind if behind < LAG_UNKNOWN else LAG_UNKNOWN
        if self.timestamps:
            # The clock may be set back; times in a log never go back, so that they can be searched.
            self.time = max(now_ns(), self.time)
            memcpy(record + RECORD_HEADER_SIZE, &self.time, sizeof(self.time))
        memset(record + used, 0, size - used)
        header.checksum = checksum_of(record, self.segment_id, self.end, header.length)
        self.last = self.end
        self.end += size
        self.seq += 1

    cdef void publish(self) noexcept nogil:
        cdef CommitSlot slot
        slot.seq = self.seq
        slot.segment_id = self.segment_id
        slot.end = self.end // UNIT
        slot.last = self.last // UNIT
        self.control.publish(&slot)

    cdef int after_commit(self, uint64_t size, bint durable) except -1:
        # By who has committed it, before anybody else can: `seq` is still the number after his record.
        # The policies that are bounds on what is written; the one on time has a thread.
        self.bytes_pending += size
        self.writes_pending += 1
        if durable or self.bytes_pending >= self.bytes_bound or self.writes_pending >= self.writes_bound:
            self.flush_to(self.seq)
        return 0

    cdef seal(self, Segment segment):
        # Only what is durable is sealed, and only once its successor's name is durable too.
        cdef Segment successor = self.segments.following(segment, 0)
        cdef Footer footer
        if successor is None:
            raise CorruptionError("the segment that follows is missing; restore it from a backup", segment.path)
        footer.seq = successor.base_seq
        footer.end = segment.end or end_of_records(segment, successor.base_seq)
        footer.records = footer.seq - segment.base_seq
        footer.time_min = 0
        footer.time_max = <uint64_t>-1
        segment.store_footer(&footer)
        segment.release()

    cdef adopt_unsynced(self):
        # A killed writer may have rolled since its last sync: those segments, and their names, are still to be synced.
        cdef uint64_t durable = self.control.durable
        if durable >= self.seq:
            return
        self.names_unsynced = True
        segment = self.segments.holding(durable, 0)
        while segment is not None and segment.base_seq < self.base_seq:
            self.unsynced.append(segment)
            segment = self.segments.following(segment, 0)

    cdef mark_clean(self):
        # After a reboot, opening starts reading here instead of at the segment's beginning.
        cdef Segment tail = self.tail
        cdef DurableMark mark
        if tail.load_mark(&mark) and mark.seq == self.seq and mark.end == self.end:
            return
        tail.store_mark(self.seq, self.end)
        tail.sync()


cdef grow_or_just_enough(Segment segment, uint64_t size, uint64_t least):
    # A nearly full disk may still have room for what is needed now.
    try:
        segment.grow(max(size, least))
    except OSError as error:
        # The failed attempt may have been seen half way.
        segment.refresh()
        if error.errno != _errno.ENOSPC:
            raise
        try:
            segment.grow(least)
        except OSError:
            segment.refresh()
            raise


cdef uint64_t end_of_records(Segment segment, uint64_t seq) noexcept nogil:
    # Where the record before `seq` ends; 0 is never returned, a segment has a header.
    cdef uint64_t offset = SEGMENT_HEADER_SIZE
    cdef Record record
    while read_record(segment.base, offset, segment.limit, segment.id, segment.base_seq, False, &record) == Found.RECORD:
        if record.seq >= seq:
            break
        offset += record.size
    return offset
