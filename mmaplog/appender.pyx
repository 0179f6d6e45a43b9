# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""The writing half of a log: where the next record goes, room for it, and committing it."""

import errno as _errno
import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.errno cimport EFAULT, EOPNOTSUPP
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from mmapio cimport _fault
from mmapio cimport _memory as memory
from mmapio._os cimport Descriptor, now_ns, size_of, write_all, zero_range
from mmapio._vm cimport PAGE
from mmapio.mapping cimport MappedFile
from mmapio.mutable cimport MappedSliceMut, mutable_of
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
    RecordHeader,
    checksum_of,
)
from mmaplog.pieces cimport Pieces, pieces_of, slices_of
from mmaplog.preparer cimport LARGE, SPARE_SIZE, Preparer, make_ready
from mmaplog.segment cimport Segment
from mmaplog.tail cimport TailHolder

from mmapio import _os as system
from mmaplog.errors import RecordTooLarge
from mmaplog.segment import create_segment

# A segment starts with this and doubles, by no more than the second at a time.
cdef uint64_t FIRST_ALLOCATION = 64 << 10
cdef uint64_t STEP_MAX = 4 << 20
# The least that is made ready at a time, and how many syncs of the window before say that it is to be of blocks already written.
cdef uint64_t PREPARED_LEAST = 256 << 10
cdef uint64_t SYNCS_LEAST = 8
cdef uint64_t SEQ_PER_SEGMENT_MAX = 0xFFFFFFFF

# Records go to the file by so many bytes at a time where there are at least twice as many, unless they are larger than this.
cdef uint64_t PIECE = 256 << 10
cdef uint64_t BULK_LEAST = 2 * PIECE
cdef uint64_t BULK_RECORD_MAX = 64 << 10
# How many records ahead their payloads are fetched from memory.
cdef uint64_t AHEAD = 8


cdef class Appender(TailHolder):
    """The writing half of :class:`mmaplog.Log`, which opens it, reads, and closes it."""

    def __init__(self):
        raise TypeError("use Log.open")

    def __dealloc__(self):
        free(self.scratch)

    def append(self, data, *, bint durable=False):
        """Append one record and return its sequence number; it is visible to every process at once.

        `data` is any contiguous buffer. With `durable` it is on the device when the call returns, otherwise as the
        flush policy says. Costs one copy and one checksum. Raises OSError(ENOSPC) with nothing written when the disk is
        full, RecordTooLarge, InvalidMode, Closed, Poisoned, TypeError for what is no buffer, MappingFault once a file of the log was cut.
        """
        cdef Py_buffer view
        if PyBytes_CheckExact(data):
            return self.append_from(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), durable)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.append_from(view.buf, view.len, durable)
        finally:
            PyBuffer_Release(&view)

    cdef uint64_t append_from(self, const void *data, uint64_t size, bint durable) except? 0:
        cdef uint64_t seq
        if self.append_mutex is not None:
            seq = self.append_shared(data, size)
        else:
            while self.end + record_size(size, self.timestamps) > self.room:
                self.make_room(size)
            seq = put_record(self, data, size)
            if _fault.faults() != self.faults:
                self.check_faults()
        self.after_commit(size, seq + 1, durable)
        return seq

    cdef uint64_t append_shared(self, const void *data, uint64_t size) except? 0:
        # Where other processes append too: nothing but the mutex keeps them from it.
        cdef uint64_t seq
        self.check_writable()
        if record_size(size, self.timestamps) > RECORD_SIZE_MAX:
            self.refuse_size(size)
        self.hold_tail("an append")
        try:
            self.find_room(record_size(size, self.timestamps), 1, False)
            seq = put_record(self, data, size)
            if _fault.faults() != self.faults:
                self.check_faults()
        finally:
            self.give_tail()
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

    cdef MappedSliceMut begin_in_place(self, uint64_t size):
        # Holds the tail until end_in_place.
        self.hold_tail("an append")
        try:
            self.find_room(record_size(size, self.timestamps), 1, False)
            return mutable_of(self.tail.handle(), self.tail.region, self.begin(size), size)
        except BaseException:
            self.fall_back()
            self.give_tail()
            raise

    cdef uint64_t end_in_place(self, uint64_t size, bint commit, bint abandon) except? 0:
        # Commits the record, or lets go of what was written; to `abandon` it is never to use that memory again.
        cdef uint64_t seq = self.seq
        try:
            if commit:
                self.commit(size)
                if _fault.faults() != self.faults:
                    self.check_faults()
                if memory.load_relaxed(&self.control.hot.in_flight) > self.end:
                    # Less was used than was reserved.
                    self.fall_back()
            elif abandon:
                self.abandon_rest()
            else:
                self.fall_back()
        finally:
            self.give_tail()
        return seq

    cdef int abandon_rest(self) except -1:
        # Goes on in a new segment. When there is no room for one, the handle is of no more use.
        try:
            self.roll(0, False)
        except BaseException:
            memory.store_release(&self.control.hot.poison, _errno.ENOSPC)
            raise
        return 0

    cdef object write_many(self, Pieces pieces, bint atomic, bint durable):
        cdef uint64_t first = 0, need, total = 0, at = 0, done, size, start
        self.check_writable()
        for at in range(pieces.count):
            size = record_size(pieces.sizes[at], self.timestamps)
            if size > RECORD_SIZE_MAX:
                self.refuse_size(pieces.sizes[at])
            total += size
        if atomic and total > BATCH_SIZE_MAX:
            self.refuse_batch(pieces.count, total)
        # Nobody else finds room until this is through, also while this thread has let go of the GIL.
        self.hold_tail("an append")
        try:
            first = self.seq
            at = 0
            while at < pieces.count:
                need = total if atomic else record_size(pieces.sizes[at], self.timestamps)
                self.find_room(need, pieces.count if atomic else 1, total < BULK_LEAST)
                start = self.end
                done = self.write_bulk(pieces, at, atomic) if total >= BULK_LEAST else 0
                if done == 0:
                    done = self.write_run(pieces, at, atomic)
                if _fault.faults() != self.faults:
                    self.check_faults()
                at += done
                total -= self.end - start
                if at < pieces.count and self.bytes_pending >= self.bytes_bound:
                    self.flush()
        except BaseException:
            self.fall_back()
            raise
        finally:
            self.give_tail()
        if pieces.count:
            self.flush_if_due(durable)
        return range(first, first + pieces.count)

    cdef int refuse_batch(self, uint64_t records, uint64_t size) except -1:
        raise RecordTooLarge(f"{records} records of {size} bytes in all are more than the {BATCH_SIZE_MAX} that are atomic", self._path)

    cdef int flush_if_due(self, bint durable) except -1:
        # After many records, which are on the books.
        if durable or self.bytes_pending >= self.bytes_bound or self.writes_pending >= self.writes_bound:
            self.flush()
        return 0

    cdef uint64_t write_run(self, Pieces pieces, uint64_t at, bint atomic) noexcept:
        # Writes records from number `at` on for as long as they fit, and returns how many. The first one does.
        cdef uint64_t begun = at, limit = self.tail.limit, size, bytes = 0
        cdef char *payload
        with nogil:
            while at < pieces.count:
                size = pieces.sizes[at]
                if not self.fits(record_size(size, self.timestamps), limit):
                    break
                payload = self.begin(size)
                if size:
                    memcpy(payload, pieces.starts[at], size)
                write_record(self, self.base + self.end, size, flags_of(pieces, at, atomic))
                if not atomic or at + 1 == pieces.count:
                    self.publish()
                bytes += size
                at += 1
        # Below the GIL, and once they are published: a flush of another thread takes off the books what it finds there.
        self.bytes_pending += bytes
        self.writes_pending += at - begun
        return at - begun

    cdef uint64_t write_bulk(self, Pieces pieces, uint64_t at, bint atomic) except? 0:
        # The same for many bytes; none when there is no room for a whole piece.
        cdef uint64_t begun = at, done = 0, bytes = 0
        cdef MappedFile file = self.tail.handle()
        cdef int result = 0
        if self.end + PIECE > self.tail.limit:
            return 0
        if self.scratch == NULL:
            self.scratch = <char *>malloc(PIECE + BULK_RECORD_MAX)
            if self.scratch == NULL:
                raise MemoryError
        with nogil:
            done = self.pack(pieces, at, atomic, file.descriptor.fd, &result)
            for at in range(begun, begun + done):
                bytes += pieces.sizes[at]
        self.bytes_pending += bytes
        self.writes_pending += done
        if result == -EFAULT:
            self.tail.region.fail()
        if result < 0:
            raise OSError(-result, f"cannot write to the segment: {os.strerror(-result)}", self.tail.path)
        return done

    cdef uint64_t pack(self, Pieces pieces, uint64_t at, bint atomic, int fd, int *result) noexcept nogil:
        # Makes records in memory and writes them to the file by the piece, which spares the kernel a fault for each page, and zeroing
        # it. Readers go by what is published, so that none sees half a write. Pieces are small, and end where pages do: what a later
        # sync of one record has to write is as large as what was once written in one go.
        cdef uint64_t begun = at, limit = self.tail.limit, size, rest, before, whole = at
        cdef uint64_t start = self.end, boundary = (start // PIECE + 1) * PIECE
        cdef char *record
        while at < pieces.count:
            size = record_size(pieces.sizes[at], self.timestamps)
            if size > BULK_RECORD_MAX or not self.fits(size, limit):
                break
            if at + AHEAD < pieces.count:
                memory.prefetch(pieces.starts[at + AHEAD])
                memory.prefetch(pieces.starts[at + AHEAD] + 64)
            record = self.scratch + (self.end - start)
            if pieces.sizes[at]:
                memcpy(record + RECORD_HEADER_SIZE + TIME_SIZE * self.timestamps, pieces.starts[at], pieces.sizes[at])
            before = self.last
            write_record(self, record, pieces.sizes[at], flags_of(pieces, at, atomic))
            at += 1
            if self.end < boundary:
                continue
            memory.store_release(&self.control.hot.in_flight, self.end)
            memory.fence_release()
            # A file that was cut would grow again, with holes.
            result[0] = -EFAULT if size_of(fd) < <long long>limit else write_all(fd, self.scratch, boundary - start, start)
            if result[0] < 0:
                return whole - begun
            rest = self.end - boundary
            memmove(self.scratch, self.scratch + (boundary - start), rest)
            start = boundary
            boundary += PIECE
            whole = at - 1 if rest else at
            if atomic or whole == begun:
                continue
            if rest:
                # The last record goes beyond.
                publish_at(self, self.seq - 1, self.last, before)
            else:
                self.publish()
        # The rest is less than a piece, and its pages as small as those of anything that is appended by itself.
        memory.store_release(&self.control.hot.in_flight, self.end)
        memory.fence_release()
        memcpy(self.base + start, self.scratch, self.end - start)
        if at > begun and (not atomic or at == pieces.count):
            self.publish()
        return at - begun

    cdef int fall_back(self) except -1:
        # To the last record that was published: of what an error cut short nothing must be found behind it.
        cdef CommitSlot slot
        cdef uint64_t stop
        if self.control is None:
            return 0
        slot = self.control.committed()
        self.seq = slot.seq
        self.end = <uint64_t>slot.end * UNIT
        self.last = <uint64_t>slot.last * UNIT
        stop = min(memory.load_acquire(&self.control.hot.in_flight), self.tail.limit)
        if stop > self.end:
            memset(self.base + self.end, 0, stop - self.end)
        return 0

    cdef bint fits(self, uint64_t size, uint64_t limit) noexcept nogil:
        return self.end + size <= limit and self.end < RECORD_START_END and self.seq - self.base_seq < SEQ_PER_SEGMENT_MAX

    cdef int make_room(self, uint64_t payload_size) except -1:
        # The slow half of every append: what is wrong is raised here, and space is found before anything is written.
        cdef uint64_t need = record_size(payload_size, self.timestamps)
        self.check_writable()
        if payload_size > RECORD_SIZE_MAX or need > RECORD_SIZE_MAX:
            self.refuse_size(payload_size)
        self.hold_tail("an append")
        try:
            # There may be room that nobody gave back: what had met a fault elsewhere left none.
            self.find_room(need, 1, True)
        finally:
            self.give_tail()
        return 0

    cdef int find_room(self, uint64_t need, uint64_t records, bint ahead) except -1:
        # Room for so many bytes, in one segment, of so many records; with `ahead`, more will be needed soon. By who holds the tail.
        cdef uint64_t step
        if self.marked:
            self.begin_writing()
        if self.narrow:
            self.break_up()
        if (self.end + need > self.tail.capacity or self.end >= RECORD_START_END
                or (self.end + need > self.roll_bytes and self.seq > self.base_seq)
                or (records > 1 and self.end + need > RECORD_START_END)
                or self.seq - self.base_seq + records > SEQ_PER_SEGMENT_MAX):
            self.roll(need, ahead)
        elif self.end + need > self.tail.limit:
            if self.append_mutex is not None:
                self.tail.refresh()
                if self.end + need <= self.tail.limit:
                    return 0
            self.adopt_prepared()
            if self.end + need > self.tail.limit and ahead and self.append_mutex is None:
                self.make_ready_now()
            if self.end + need > self.tail.limit:
                step = min(max(self.tail.limit, FIRST_ALLOCATION), STEP_MAX)
                if self.syncs >= SYNCS_LEAST:
                    step = min(step, PREPARED_LEAST)
                self.tail.grow_or_just_enough(min(self.tail.limit + step, self.roll_bytes), self.end + need)
        else:
            return 0
        if ahead and self.append_mutex is None:
            self.prepare()
        return 0

    cdef int prepare(self) except -1:
        # Has the next window made ready while this one is filled. Where nobody syncs it grows with what has come since the last flush:
        # what is prepared will be filled before the next one, too, which then writes little in vain.
        cdef bint written = self.syncs >= SYNCS_LEAST
        cdef uint64_t size = PREPARED_LEAST if written else min(self.bytes_pending, STEP_MAX) & ~(PREPARED_LEAST - 1)
        cdef uint64_t stop = min(min(self.tail.limit + size, self.tail.capacity), self.roll_bytes)
        cdef bint whole = stop <= self.tail.limit
        self.syncs = 0
        if whole and (written or min(min(self.bytes_pending, self.tail.capacity), self.roll_bytes) < SPARE_SIZE):
            return 0
        try:
            if self.preparer is None:
                self.preparer = Preparer(self.locks.held, self.control)
            if whole:
                self.preparer.ask_spare(self.directory, FIRST_ALLOCATION)
            else:
                self.preparer.ask(self.tail, self.tail.limit, stop, written)
        except (OSError, RuntimeError, MemoryError):
            pass  # No thread or no descriptor to be had, which no append needs: it makes its own room.
        return 0

    cdef int make_ready_now(self) except -1:
        # No more than has come since the last flush, for the reason that `prepare` has, and no more than is done in no time.
        cdef uint64_t size = min(self.bytes_pending, PREPARED_LEAST) & ~(FIRST_ALLOCATION - 1), start
        cdef MappedFile file
        cdef int fd
        size = min(size, min(self.tail.capacity, max(self.roll_bytes, self.tail.limit)) - self.tail.limit)
        if size:
            file = self.tail.handle()
            fd, start = file.descriptor.fd, self.tail.limit
            with nogil:
                make_ready(fd, self.base, start, start + size, LARGE)
            self.tail.refresh()
            self.large_end = self.tail.limit
        return 0

    cdef int break_up(self) except -1:
        # What lies ahead of the last record's page was made ready in large pieces, and a sync of one record would write one of them: ahead
        # of it, pages are as if nobody had touched them. Where that cannot be, more is written. Blocks stay; a file system that takes
        # others for them may find the disk full, and then there is no room ahead until it does.
        cdef MappedFile file = self.tail.handle()
        cdef int fd = file.descriptor.fd, failure = 0
        cdef uint64_t start = (self.end + PAGE - 1) & ~(PAGE - 1), stop = self.large_end
        if start < stop:
            with nogil:
                failure = zero_range(fd, start, stop - start)
            if failure < 0 and failure != -EOPNOTSUPP:
                raise OSError(-failure, f"cannot set blocks aside again: {os.strerror(-failure)}", self.tail.path)
        self.narrow = False
        self.large_end = 0
        return 0

    cdef int adopt_prepared(self) except -1:
        # What the thread has made of the file is part of it once it is through.
        cdef Preparer preparer = self.preparer
        if preparer is not None and preparer.file is not None:
            with nogil:
                preparer.finish()
            preparer.file = preparer.sync_through = None
            self.tail.refresh()
            if preparer.together:
                self.large_end = self.tail.limit
            if preparer.failure() < 0:
                # Records were covered by that sync, and no later one may hear of it.
                self.control.fail_sync(-preparer.failure())
                self.check_writable()
        return 0

    cdef int refuse_size(self, uint64_t payload_size) except -1:
        raise RecordTooLarge(f"a record of {payload_size} bytes is larger than the {RECORD_SIZE_MAX} that fit", self._path)

    cdef int roll(self, uint64_t need, bint ahead) except -1:
        # It works on the file that is left now.
        self.adopt_prepared()
        # Who drops records may be another process: what is gone does not stay mapped.
        self.segments.follow_changes()
        cdef uint64_t capacity = max(<uint64_t>self.segments.manifest.segment_bytes, SEGMENT_HEADER_SIZE + need)
        cdef uint64_t size = min(capacity, max(min(STEP_MAX, self.roll_bytes), SEGMENT_HEADER_SIZE + need))
        cdef uint64_t end = self.end
        # Who writes fast has pages made ready here too, and meets none that the kernel has to bring one by one.
        cdef bint fast = ahead and self.append_mutex is None and self.syncs < SYNCS_LEAST and self.bytes_pending >= PREPARED_LEAST
        cdef Descriptor spare = None if self.preparer is None else self.preparer.take_spare()
        if fast:
            size = min(size, max(FIRST_ALLOCATION, SEGMENT_HEADER_SIZE + need))
        else:
            spare = None
        if need == 0:
            # Nobody asks for room yet, and there may be little.
            size = SEGMENT_HEADER_SIZE
        cdef Segment made = create_segment(
            self.directory, self.segments.log_uuid, self.seq, self.tail.epoch, capacity, size, SEGMENT_HEADER_SIZE + need, spare=spare)
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
        # Before anybody can know of one behind it: who sees no end takes all of the file for records, and remembers that.
        left.end = end
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
            self.discarded = left.id
        else:
            if self.append_mutex is None:
                self.unsynced.append(left)
                if need:
                    # Memory that was abandoned may be in use for ever.
                    left.give_back_behind(end)
            left.release()
        if fast:
            self.make_ready_now()
        return 0

    cdef char *begin(self, uint64_t payload_size) noexcept nogil:
        # Where the payload of the next record goes. Only after make_room, and commit must follow.
        return begin_at(self, payload_size)

    cdef void commit(self, uint64_t payload_size) noexcept nogil:
        # Seals the record whose payload is in place and makes it visible to all.
        write_record(self, self.base + self.end, payload_size, 0)
        publish_at(self, self.seq, self.end, self.last)

    cdef void commit_made(self, char *record, uint64_t payload_size) noexcept nogil:
        # In place of both, for a small record whose payload was made elsewhere, a header before it, seven bytes behind: no checksum waits for the segment.
        cdef uint64_t start = self.end
        begin_at(self, payload_size)
        write_record(self, record, payload_size, 0)
        memcpy(self.base + start, record, self.end - start)
        publish_at(self, self.seq, self.end, self.last)

    cdef void seal_next(self, uint64_t payload_size, uint8_t flags) noexcept nogil:
        # One of several that are published together.
        write_record(self, self.base + self.end, payload_size, flags)

    cdef void publish(self) noexcept nogil:
        publish_at(self, self.seq, self.end, self.last)

    cdef int after_commit(self, uint64_t size, uint64_t seq, bint durable) except -1:
        # Of a record of this size, before `seq`. The policies that are bounds on what is written; the one on time has a thread.
        self.bytes_pending += size
        self.writes_pending += 1
        if durable or self.bytes_pending >= self.bytes_bound or self.writes_pending >= self.writes_bound:
            self.flush_to(seq)
        return 0


cdef inline uint64_t put_record(Appender self, const void *data, uint64_t size) noexcept nogil:
    # There is room.
    cdef char *payload = begin_at(self, size)
    cdef uint64_t seq = self.seq
    if size:  # an empty buffer may be nowhere, and a copy from there is undefined
        memcpy(payload, data, size)
    write_record(self, self.base + self.end, size, 0)
    publish_at(self, self.seq, self.end, self.last)
    return seq


cdef inline char *begin_at(Appender self, uint64_t payload_size) noexcept nogil:
    memory.store_release(&self.control.hot.in_flight, self.end + record_size(payload_size, self.timestamps))
    memory.fence_release()
    return self.base + self.end + RECORD_HEADER_SIZE + TIME_SIZE * self.timestamps


cdef inline void write_record(Appender self, char *record, uint64_t payload_size, uint8_t flags) noexcept nogil:
    # Seals the record whose payload is in place, at `end` of the segment or where it will be copied from. The next one follows.
    cdef uint64_t size = record_size(payload_size, self.timestamps)
    cdef uint64_t used = RECORD_HEADER_SIZE + TIME_SIZE * self.timestamps + payload_size
    cdef uint64_t behind = self.seq - memory.load_relaxed(&self.control.hot.durable)
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


cdef inline void publish_at(Appender self, uint64_t seq, uint64_t end, uint64_t last) noexcept nogil:
    cdef CommitSlot slot
    slot.seq = seq
    slot.segment_id = self.segment_id
    slot.end = end // UNIT
    slot.last = last // UNIT
    self.control.publish(&slot)


cdef inline uint8_t flags_of(Pieces pieces, uint64_t at, bint atomic) noexcept nogil:
    # A batch of one record is a record.
    if not atomic or pieces.count == 1:
        return 0
    return FLAG_BATCH | (FLAG_BATCH_END if at + 1 == pieces.count else 0)
