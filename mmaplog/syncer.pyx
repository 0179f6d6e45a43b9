# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Making what is committed durable, and refusing where nothing may be promised any more."""

import errno as _errno
import operator
import os
import threading

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t

from mmapio cimport _fault, _wait
from mmapio cimport _memory as memory
from mmaplog.control cimport Control
from mmaplog.follow cimport time_to_sleep
from mmaplog.format cimport (
    MARK_OPENED,
    SYNCING,
    SEGMENT_HEADER_SIZE,
    CommitSlot,
    DurableMark,
    Footer,
    Found,
    Record,
    read_record,
)
from mmaplog.segment cimport Segment

from mmapio import _os as system
from mmapio.errors import Closed, FlushFailed, InvalidMode, MappingFault
from mmapio.flusher import Flusher
from mmapio.options import Trigger
from mmaplog import control as control_file
from mmaplog import recovery
from mmaplog.errors import CorruptionError, LogError, Poisoned, TooOld
from mmaplog.follow import deadline_after


# How long a thread sleeps before it looks for signals.
cdef int64_t SLICE_NS = 100_000_000
cdef int64_t SLICES = 4
# A sync of less is made for each record, or for a few.
cdef uint64_t LITTLE = 64 << 10
# How long who syncs waits for others to have something to sync, too. Shorter than a sync takes.
cdef int64_t GATHER_NS = 50_000


cdef class Syncer:
    """What a log's handle knows of its files, and how it makes them durable. :class:`mmaplog.appender.Appender` appends."""

    def flush(self):
        """Make every record that is committed now durable: on the device when it returns. Runs without the GIL.

        Raises FlushFailed once and Poisoned from then on when a sync fails: what it covered may be lost, and
        the kernel would report success for it later. InvalidMode on a reader, Closed.
        """
        self.check_writable()
        self.flush_to(self.control.committed().seq)

    def wait_durable(self, seq, timeout=None):
        """Wait until record `seq` is on the device: True once it is, False after `timeout` seconds.

        A writer does not wait for its policy, it flushes; a reader waits for the writer, in whichever process. Raises IndexError when
        there is no such record, TooOld (which is one) when it is truncated meanwhile, FlushFailed and Poisoned, for a sync that failed is never
        made good, Closed.
        """
        cdef Control control = None
        cdef uint64_t durable
        cdef int64_t span
        wanted = operator.index(seq)
        self.check()
        committed = self.control.committed().seq
        self.control.check()
        if not 0 <= wanted < committed:
            raise IndexError(f"record {wanted} is not in the log, which holds [{self.segments.first()}, {committed})")
        deadline = deadline_after(timeout)
        while True:
            self.check()
            durable = self.control.durable
            committed = self.control.committed().seq
            self.control.check()
            if wanted < durable:
                return True
            if wanted >= committed:
                raise TooOld(f"record {wanted} was truncated before it was durable", self._path)
            if self.writable and not self.forked:
                self.flush()
                continue
            if self.control.poison:
                self.raise_poisoned(self.control.poison)
            if self.control.private:
                raise LogError(
                    _errno.EACCES, "this reader may not write, and found the end of the log by itself: it is not told what becomes "
                    "durable; open it again later", self._path)
            left = time_to_sleep(deadline)
            if left <= 0:
                return False
            if control is None:
                # Its own: another thread may close the log meanwhile.
                self.check()
                control = control_file.for_waiting(self.directory, self.control)
            span = <int64_t>(left * 1e9)
            with nogil:
                control.wait_for_durable(durable, span)
            PyErr_CheckSignals()

    cdef int flush_to(self, uint64_t seq) except -1:
        # Every record below `seq`, and what else there is when the sync begins. Whoever waits here while another one syncs finds
        # the work done by it, or by the next: what was appended meanwhile is the business of who appended it.
        cdef unsigned long me = threading.get_ident()
        while True:
            self.check_writable()
            if self.control.durable >= seq:
                return 0
            if not self.flushing:
                # Nothing since the question lets go of the GIL.
                self.flushing = me
                break
            self.refuse_within_flush("a flush")
            self.wait_for_turn(seq)
        try:
            if self.expected:
                self.await_others()
            self.flush_held(seq)
        finally:
            self.give_turn()
        return 0

    cdef int await_others(self) except -1:
        # So many threads waited for the last sync, and are about to come again: one for all of them is worth a moment, and no more. A thread
        # by itself never waits here.
        cdef Control control = self.control
        cdef uint32_t seen
        cdef uint64_t wanted = memory.load_acquire(&control.hot.durable) + self.expected
        self.gathering = wanted
        with nogil:
            while True:
                seen = memory.load_acquire_u32(&self.arrivals)
                if control.committed().seq > wanted or _wait.wait_word(&self.arrivals, seen, GATHER_NS) < 0:
                    break
        self.gathering = 0
        return 0

    cdef int take_turn(self) except -1:
        # Keeps others from syncing; who holds `append_lock` may wait for it, for nobody who syncs waits for that.
        cdef unsigned long me = threading.get_ident()
        while self.flushing:
            self.wait_for_turn(<uint64_t>-1)
        self.flushing = me
        return 0

    cdef int wait_for_turn(self, uint64_t seq) except -1:
        # Until the turn is free or every record below `seq` is durable; for a while. Whoever is woken for neither goes back to sleep
        # without the GIL, which those who have something to do are waiting for.
        cdef Control control = self.control
        cdef uint32_t seen = self.turns, now
        cdef int64_t left = SLICES
        if control is None:
            return 0  # closed meanwhile, by who has the turn and is about to give it back
        self.sleepers += 1
        memory.store_release_u32(&self.arrivals, self.arrivals + 1)
        if self.gathering and control.committed().seq > self.gathering:
            _wait.wake_word(&self.arrivals, 1)
        with nogil:
            while left > 0:
                if _wait.wait_word(&self.turns, seen, SLICE_NS // SLICES) < 0:
                    left -= 1
                now = memory.load_acquire_u32(&self.turns)
                if memory.load_acquire(&self.flushing) == 0 or memory.load_acquire(&control.hot.durable) >= seq:
                    break
                seen = now
        self.sleepers -= 1
        PyErr_CheckSignals()
        return 0

    cdef int give_turn(self) except -1:
        self.expected = self.sleepers
        memory.store_release(&self.flushing, 0)
        memory.store_release_u32(&self.turns, self.turns + 1)
        _wait.wake_word(&self.turns, 0x7FFFFFFF)
        return 0

    cdef flush_held(self, uint64_t seq):
        if self.control.durable >= self.control.committed().seq:
            if _fault.faults() != self.faults:
                self.check_faults()
            self.bytes_pending = self.writes_pending = 0
            return
        self.begin_sync()
        try:
            # Meanwhile another process may have done it.
            if self.sync_mutex is None or self.control.durable < seq:
                self.flush_now()
        finally:
            self.end_sync()

    cdef flush_last(self):
        # By who closes the log. What a signal raises comes out once nothing is left to be done.
        cdef uint64_t seq = self.control.committed().seq
        try:
            self.flush_held(seq)
        except OSError:
            raise
        except BaseException:
            self.flush_held(seq)
            raise

    cdef int tell_unheard(self) except -1:
        # By who closes the log and was asked to flush: there is no later call to say it.
        if (self.control.poison and not self.heard and self.policy.trigger is not Trigger.NEVER
                and self.control.durable < self.control.committed().seq):
            self.raise_poisoned(self.control.poison)
        return 0

    cdef int begin_sync(self) except -1:
        # By who has the turn in this process: one process at a time. What is to be synced is settled here, and stays: a segment that
        # another process rolls past later is not among it.
        self.hold_sync()
        try:
            # Again: the sync of whoever held the mutex meanwhile may have failed, and left pages that are clean.
            self.check_writable()
            self.last_to_sync = None
            self.sync_target = self.control.committed()
            if self.control.durable < self.sync_target.seq:
                self.last_to_sync = self.segments.tail(&self.sync_target)
                if self.sync_mutex is not None:
                    self.gather_unsynced()
        except BaseException:
            self.end_sync()
            raise
        return 0

    cdef int hold_sync(self) except -1:
        if self.sync_mutex is not None:
            self.sync_mutex.take(True, None)
        try:
            if self.sync_mutex is not None and self.sync_mutex.owner_died:
                # A sync that was not finished promised nothing.
                self.sync_mutex.mark_consistent()
            if memory.load_acquire(&self.control.hot.sync_inflight) & SYNCING:
                # Nobody syncs now.
                self.repeat_sync()
        except BaseException:
            self.end_sync()
            raise
        return 0

    cdef int repeat_sync(self) except -1:
        # Nobody knows what became of the last sync: who made it was killed, or an exception came in between.
        try:
            recovery.repeat_sync(self.segments, self.control, SYNCING)
        except CorruptionError:
            # What the kernel could not write it has not kept either.
            self.control.fail_sync(_errno.EIO)
            raise
        except FlushFailed as error:
            self.fail_sync(error)
        return 0

    cdef int fail_sync(self, error) except -1:
        # What it covered may be lost, and no later sync would say so: nothing is acknowledged any more, by any handle.
        self.room = 0
        self.heard = True
        self.control.fail_sync(error.errno or _errno.EIO)
        if isinstance(error, FlushFailed):
            raise error
        raise FlushFailed(error.errno, f"sync failed: {error.strerror}", self._path) from error

    cdef int end_sync(self) except -1:
        if self.sync_mutex is not None:
            self.sync_mutex.give()
        return 0

    cdef gather_unsynced(self):
        # Whoever rolled since the last sync, in whichever process.
        cdef uint64_t durable = self.control.durable
        cdef Segment segment
        before = []
        segment = self.segments.holding(durable, self.sync_target.segment_id)
        while segment is not None and segment.base_seq < self.last_to_sync.base_seq:
            before.append(segment)
            segment = self.segments.following(segment, self.sync_target.segment_id)
        self.unsynced = before
        self.names_unsynced = self.last_to_sync.base_seq >= durable

    cdef flush_now(self):
        # Of what `begin_sync` found.
        cdef Segment segment, last = self.last_to_sync
        cdef CommitSlot target = self.sync_target
        cdef uint64_t bytes_covered = self.bytes_pending, writes_covered = self.writes_pending
        if last is None or self.control.durable >= target.seq:
            if _fault.faults() != self.faults:
                self.check_faults()
            self.bytes_pending = self.writes_pending = 0
            return
        # Taken at once: who rolls while files are opened leaves his segments to the next sync.
        before, self.unsynced = self.unsynced, []
        names, self.names_unsynced = self.names_unsynced, False
        try:
            opened = self.open_to_sync(before, last if last.base_seq < target.seq else None)
        except BaseException:
            self.unsynced = before + self.unsynced
            self.names_unsynced = True
            raise
        self.control.begin_sync(SYNCING)
        try:
            for segment, file in opened:
                segment.sync_through(file)
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
            self.fail_sync(error)
        except BaseException:
            # No memory, or a signal: nothing was promised, and all is still to be done, as if there had been no sync.
            self.unsynced = before + self.unsynced
            self.names_unsynced = True
            raise
        self.control.publish_durable(target.seq)
        self.control.end_sync(SYNCING)
        self.syncs += 1
        if bytes_covered < LITTLE and self.large_end > self.end:
            self.narrow = True
            self.room = 0
        # Others may have appended while the sync ran; that is not covered.
        self.bytes_pending -= bytes_covered
        self.writes_pending -= writes_covered
        for segment in before:
            self.seal(segment)

    cdef list open_to_sync(self, list before, Segment last):
        # Before anything is at stake: a file that is missing is no failed sync, nor is a descriptor that cannot be had. Held on to, for
        # who rolls meanwhile lets go of them. `last` is None where it has no records, and may be gone already, for a larger one.
        cdef Segment segment
        opened = []
        for segment in list(before):
            try:
                opened.append((segment, segment.handle()))
            except FileNotFoundError:
                # Rolled past when it was durable, and truncated since.
                self.segments.relist()
                if any(entry[1] == segment.id for entry in self.segments.names):
                    raise
                before.remove(segment)
        if last is not None:
            opened.append((last, last.handle()))
        return opened

    def needs_flush(self):
        """Whether a committed record is not yet durable. False when the log is closed or only read."""
        return self.control is not None and self.writable and not self.forked and self.control.durable < self.control.committed().seq

    def _nobody_heard(self):
        # Of a failed sync in the background. The poison in CONTROL tells everybody who asks, and a close who does not.
        self.heard = False

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
        self.heard = True
        raise Poisoned(
            poison, f"an earlier sync failed ({os.strerror(poison)}), so nothing is acknowledged any more; "
            "close every handle and open the log again", self._path)

    cdef raise_forked(self):
        raise Closed(
            _errno.EBADF, "inherited by fork, this handle belongs to the parent, which goes on writing; open it again in the child, "
            "with mode 'r' as long as the parent has it open for writing", self._path)

    cdef reentered(self, what):
        return LogError(
            _errno.EDEADLK, f"{what} within the block of a reservation, or from a destructor or signal handler that interrupted another one, "
            "of the same log; end the block first, or let the handler leave a note and act on it later", self._path)

    cdef int refuse_within_flush(self, what) except -1:
        # A destructor that interrupted a sync of this thread has the turn in hand: with that it must not wait for append_lock,
        # whose holder may be waiting for it.
        if self.flushing and self.flushing == threading.get_ident():
            raise self.reentered(what)
        return 0

    cdef int sync_names(self) except -1:
        # Of segments that were rolled to when there was nothing else to sync.
        try:
            system.sync(self.directory)
        except OSError as error:
            self.fail_sync(error)
        return 0

    cdef seal(self, Segment segment):
        # Only what is durable is sealed, and only once its successor's name is durable too.
        cdef Segment successor = self.segments.following(segment, self.segments.tail_id())
        cdef Footer footer
        if successor is None:
            if segment.base_seq < self.segments.first():
                return  # truncated meanwhile
            raise CorruptionError("the segment that follows is missing; restore it from a backup", segment.path)
        # Perhaps others wrote it.
        if segment.end == 0 and not segment.refresh():
            return  # truncated meanwhile
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
        # The name of a log's first segment is durable since the log was made, or what was before it was removed.
        if durable >= self.seq and (durable > self.tail.base_seq or self.tail.base_seq == self.segments.bases()[0]):
            return
        self.names_unsynced = True
        segment = self.segments.holding(durable, self.tail.id)
        while segment is not None and segment.base_seq < self.tail.base_seq:
            self.unsynced.append(segment)
            segment = self.segments.following(segment, self.tail.id)

    cdef bint is_marked(self) noexcept:
        # Whether the tail says that the log was closed cleanly.
        cdef DurableMark mark
        return self.tail.load_mark(&mark) and not mark.end & MARK_OPENED

    cdef int begin_writing(self) except -1:
        # Before this handle's first record, where it found the log marked.
        self.unmark()
        self.start_flusher()
        self.marked = False
        return 0

    cdef int start_flusher(self) except -1:
        if self.policy.trigger is not Trigger.MILLIS:
            return 0
        # It is known before it runs, to whoever closes the log or comes here again: a signal may come in between.
        if self.flusher is None:
            self.flusher = Flusher(self, self.policy.bound, "mmaplog-flusher")
        try:
            self.flusher.start()
        except RuntimeError:
            # There are too many threads, or the interpreter is about to end: then who writes sees to it himself, and at once.
            self.flusher = None
            self.writes_bound = 1
        return 0

    cdef int keep_flushing(self) except -1:
        # After a close that came to nothing, and had ended the thread.
        if self.control is not None and self.flusher is not None and self.flusher.stopping:
            self.flusher = None
            self.start_flusher()
        return 0

    cdef int unmark(self) except -1:
        # Before the first record since then: after a power cut its number counts as given out, though nothing be left of it.
        # Where the mark says so already, that is durable once nobody is in the middle of it.
        cdef DurableMark mark
        self.take_turn()
        try:
            self.hold_sync()
            try:
                if self.tail.load_mark(&mark) and not mark.end & MARK_OPENED:
                    self.sync_mark(mark.seq, mark.end | MARK_OPENED)
            except MappingFault:
                raise
            except OSError as error:
                self.fail_sync(error)
            finally:
                self.end_sync()
        finally:
            self.give_turn()
        return 0

    cdef mark_clean(self):
        # After a reboot, opening starts reading here instead of at the segment's beginning.
        cdef Segment tail = self.tail
        cdef DurableMark mark
        if tail.load_mark(&mark) and mark.seq == self.seq and mark.end == self.end:
            return
        self.hold_sync()
        try:
            self.sync_mark(self.seq, self.end)
        finally:
            self.end_sync()

    cdef int sync_mark(self, uint64_t seq, uint64_t end) except -1:
        self.control.begin_sync(SYNCING)
        self.tail.store_mark(seq, end)
        self.tail.sync()
        self.control.end_sync(SYNCING)
        return 0


cdef uint64_t end_of_records(Segment segment, uint64_t seq) noexcept nogil:
    # Where the record before `seq` ends; 0 is never returned, a segment has a header.
    cdef uint64_t offset = SEGMENT_HEADER_SIZE
    cdef Record record
    while read_record(segment.base, offset, segment.limit, segment.id, segment.base_seq, False, &record) == Found.RECORD:
        if record.seq >= seq:
            break
        offset += record.size
    return offset
