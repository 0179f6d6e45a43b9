# cython: language_level=3, auto_pickle=False
"""What stays in a log: dropping its oldest or its newest records, and those in between that nobody wants any more."""

import errno as _errno
import operator
import time

from libc.stdint cimport uint64_t

from mmapio cimport _memory as memory
from mmaplog.appender cimport Appender
from mmaplog.draft cimport Draft
from mmaplog.format cimport SEGMENT_HEADER_SIZE, CommitSlot
from mmaplog.segment cimport Segment

from mmapio import _os as system
from mmaplog import compaction, reserve, retention, truncation
from mmaplog import manifest as manifest_file
from mmaplog.errors import CorruptionError, FormatError, LogError
from mmaplog.segment import create_segment

# How long one who can be halted waits between two looks whether another process is through.
cdef double CARE_PAUSE_SECONDS = 0.01


cdef class Keeper(Appender):
    """The half of :class:`mmaplog.Log` that removes records."""

    @property
    def first_seq(self):
        """The number of the first record that the log still has, or will have. Raises Closed."""
        self.check()
        first = self.segments.first_seq
        self.control.check()
        return first

    @property
    def epoch(self):
        """How often numbers have been given out again so far: after a truncation at the end, or a power cut that took records."""
        self.check()
        cdef CommitSlot slot
        return self.segments.tail(&slot).epoch

    def resume(self, epoch, seq):
        """Where somebody must go on who had read every record below `seq` while :attr:`epoch` was `epoch`.

        At `seq`, or before it when numbers below it have been given out again since: what he read of those is no longer in the log. When
        that is below :attr:`first_seq`, records were dropped before he read them, as TooOld says to who goes on there. Costs nothing
        when the epoch is the same.
        """
        self.check()
        cdef CommitSlot slot
        cdef Segment segment
        epoch, wanted = operator.index(epoch), operator.index(seq)
        self.check()  # again: the conversions are free to run code that closes the log
        segment = self.segments.tail(&slot)
        found = min(wanted, slot.seq)
        while segment is not None and segment.epoch > epoch:
            self.segments.relist()
            found = min(wanted, slot.seq)
            for entry in reversed(self.segments.listing()):
                segment = self.segments.open(entry)
                if segment is None:
                    # Removed since it was listed.
                    segment = self.segments.tail(&slot)
                    break
                if segment.epoch <= epoch:
                    break
                found = min(found, entry[0])
            else:
                # All that is left is newer. Of what is not, MANIFEST knows where newer epochs began.
                for began in self.segments.manifest.began:
                    if began.epoch > epoch:
                        return min(found, began.seq)
                break
        return found

    def truncate_before(self, seq):
        """Drop every record below `seq`, which is the log's first number from then on; below the first one, nothing happens.

        Whole segments are unlinked; what else is below is not read any more. Views of payloads stay valid. Costs a sync of MANIFEST, and one
        of the records when those up to `seq` are not durable. Raises IndexError for a number beyond the end, OSError with
        nothing dropped, and what :meth:`append` raises. Readers below it get TooOld.
        """
        wanted = operator.index(seq)
        self.begin_care("a truncation")
        try:
            if wanted > self.control.committed().seq:
                raise IndexError(f"record {wanted} is beyond the end of the log, {self.control.committed().seq}")
            if wanted > self.segments.first_seq:
                self.spend_if_full(lambda: self.advance_to(wanted, wanted))
        finally:
            self.end_care()

    def truncate_after(self, seq):
        """Drop every record from number `seq` on. The next one gets this number, in a new segment of a higher epoch.

        What stays is made durable first. All or nothing, whatever happens, once it has begun. Views of payloads stay valid; followers that had read
        what was dropped get TooOld, consumers go back. Raises IndexError for a number that is not in the log, OSError(ENOSPC)
        with nothing dropped, and what :meth:`append` raises.
        """
        wanted = operator.index(seq)
        self.begin_care("a truncation")
        try:
            # Nobody opens the log meanwhile, appends to it, or syncs.
            self.locks.begin()
            try:
                self.hold_tail("a truncation")
                try:
                    if not self.segments.first_seq <= wanted <= self.seq:
                        raise IndexError(
                            f"the log cannot be cut at {wanted}: it holds [{self.segments.first_seq}, {self.seq})")
                    if wanted < self.seq:
                        self.spend_if_full(lambda: self.cut_now(wanted))
                finally:
                    self.give_tail()
            finally:
                self.locks.end()
        finally:
            self.end_care()

    def retain(self, *, max_bytes=None, max_age=None, max_records=None, consumers=False):
        """Drop the oldest segments as far as these limits allow, and return the first number that is left.

        So that what stays takes at most `max_bytes` on the disk, is not older than `max_age` seconds, counts at least `max_records`; with
        `consumers`, only what every consumer and group has committed is dropped, whatever else is asked for; where there are none, they ask for
        nothing to go. Whole segments go, never the one being
        written: of the limits, bytes and age may be passed by less than a segment, and never is a record dropped that all of
        them would keep. The age of a segment is that of its successor, so records need no times; one made by a
        clock that was wrong, before the one in front of it or in the future, has none. Costs one look at the directory. Raises ValueError for a limit that is negative or NaN, and what :meth:`truncate_before` raises.
        """
        self.begin_care("a truncation")
        try:
            wanted, consents = retention.first_to_keep(self, max_bytes, max_age, max_records, consumers)
            if wanted > self.segments.first_seq:
                self.spend_if_full(lambda: self.advance_to(wanted, wanted, consents))
            return self.segments.first_seq
        finally:
            self.end_care()

    def compact(self, keep=None, *, key=None):
        """Rewrite the full segments without the records that nobody wants: a :class:`Compaction`. Numbers stay, with gaps.

        `keep` is called with each entry and says whether it stays. `key` is called with each entry and gives anything hashable; only the
        newest entry of each key stays, or all whose key is None. With both, an entry must pass both. The segment being written
        is left alone. Readers go on meanwhile, with what was there before or after; so do appends.

        Costs a pass over the records with a call for each, and memory for each key and for the largest record. A group of segments at a time is replaced
        by one: what `keep` raises leaves those that were not reached as they are, and so do OSError(ENOSPC), which is raised before anything is
        removed, and a crash. Raises CorruptionError, and what :meth:`append` raises.
        """
        self.begin_care("a compaction")
        try:
            return compaction.compact(self, keep, key)
        finally:
            self.end_care()

    def spend_if_full(self, operation):
        """For `compact`: carry out what frees more room than it takes; on a full disk with the help of the reserve."""
        return reserve.spend_if_full(self.directory, operation)

    def draw(self, error):
        """For layers above whose appends remove what others appended: whether there is more room on a full disk than when it raised `error`."""
        return reserve.draw(self.directory, error)

    def replace_segments(self, Draft made not None, listed, replaced, swept, between=None):
        """For `compact`: put a segment that is whole and synced in the place of others. `listed` is its entry in MANIFEST.

        What it leaves out though nothing newer stands for it is below number `swept`. `between` is called when it counts, and the others are still there.
        """
        # Nobody else changes it meanwhile.
        manifest = self.segments.manifest.with_compacted(listed, swept)
        system.sync(self.directory)
        manifest_file.write(self.directory, manifest)
        self.control.change(self.segments.first_seq)
        self.segments.adopt(manifest, made.base_seq, made.id, made.name)
        if between is not None:
            between()
        for each in replaced:
            system.remove_file(self.directory, each.name)
        self.segments.tidy = True

    def roll_tail(self):
        """For layers above: let what comes go to a new segment, so that after a flush all that there is can be compacted."""
        self.hold_tail("a compaction")
        try:
            if self.tail.base_seq < self.seq:
                if self.marked:
                    self.begin_writing()
                self.roll(0, False)
        finally:
            self.give_tail()

    def truncate_to(self, seq):
        """For layers above that take care of the log: what `truncate_before` does, for a number that the log has.

        Who reads on from below it misses nothing, for what comes says the same.
        """
        self.advance_to(seq, 0)

    def has_writer(self):
        """For layers above: whether another handle writes the log."""
        self.check()
        return self.locks.has_writer()

    def roll_after(self, size):
        """For layers above: have segments that are written from now on roll at so many bytes, where they hold a record by then."""
        self.roll_bytes = size

    @property
    def has_unsealed(self):
        """For layers above: whether a segment was rolled past, by this process or another, that a flush would seal."""
        cdef CommitSlot slot
        if self.append_mutex is None:
            return len(self.unsynced) > 0
        return self.control.durable < self.segments.tail(&slot).base_seq

    def hold_past(self, seq):
        """For layers above: tell those who compact, in whichever process, that the log is looked at as it was below `seq`."""
        self.check()
        self.locks.hold_past(seq)

    def let_past(self, seq):
        """End what `hold_past` began."""
        self.check()
        self.locks.let_past(seq)

    def oldest_past(self, stop):
        """The lowest number below `stop` that another handle holds, or `stop`."""
        self.check()
        return self.locks.oldest_past(stop)

    def drop_strays(self):
        """For layers above that keep files of their own: nothing leads to segments that do not count any more.

        While nobody else truncates or compacts.
        """
        self.remove_strays()

    cdef int remove_strays(self) except -1:
        # What somebody left who was killed. MANIFEST names it no more, and that must be durable first.
        if self.segments.sole and self.segments.tidy:
            return 0
        strays = self.segments.strays()
        if strays:
            manifest_file.sync(self.directory)
            system.sync(self.directory)
            self.control.change(self.segments.first_seq)
            self.segments.relist()
        for name in strays:
            system.remove_file(self.directory, name)
        self.segments.tidy = True
        return 0

    def try_care(self):
        """For layers above: keep others from truncating and compacting until `leave_care`, if nobody is at it: whether that is so."""
        self.check_writable()
        if not self.care.acquire(False):
            return False
        try:
            taken = not self.caring and self.locks.try_care()
        except BaseException:
            self.care.release()
            raise
        if taken:
            self.caring = True
        else:
            self.care.release()
        return taken

    def leave_care(self):
        """End what `try_care` began."""
        self.let_care()

    cdef int begin_care(self, what, kept_out=None) except -1:
        # One truncation or compaction at a time, of all threads and processes. `kept_out` is called while another process is waited for, and
        # may raise.
        self.check_writable()
        self.refuse_within_flush(what)
        self.refuse_within_tail(what)
        self.care.acquire()
        if self.caring:
            self.care.release()
            raise self.reentered(what)
        self.caring = True
        try:
            self.check_writable()
            if kept_out is None:
                self.locks.begin_care()
            else:
                while not self.locks.try_care():
                    kept_out()
                    time.sleep(CARE_PAUSE_SECONDS)
            try:
                # Whoever was killed at the like has left nothing half done behind this.
                self.hold_tail(what)
                self.give_tail()
                self.segments.catch_up()
                if self.segments.manifest.first_seq > self.control.first_seq:
                    self.control.change(self.segments.manifest.first_seq)
                if not self.spares_strays:
                    self.remove_strays()
            except BaseException:
                self.locks.end_care()
                raise
        except BaseException:
            self.caring = False
            self.care.release()
            raise
        return 0

    cdef int end_care(self) except -1:
        try:
            reserve.refill(self.directory, self._path)
        finally:
            self.let_care()
        return 0

    cdef int let_care(self) except -1:
        try:
            self.locks.end_care()
        finally:
            self.caring = False
            self.care.release()
        return 0

    cdef int leave_cut(self, uint64_t seq, error) except -1:
        # MANIFEST says that it has begun.
        memory.store_release(&self.control.hot.poison, _errno.EIO)
        raise LogError(
            _errno.EIO, f"the log could not be cut at {seq} all the way ({error}); close every handle and open it again, which "
            "finishes that", self._path) from error

    cdef int advance_to(self, uint64_t seq, uint64_t swept, tuple consents=()) except -1:
        # MANIFEST first: from then on what is below counts for nothing, whether or not it is still there.
        if seq > self.control.durable:
            # Or a power cut could leave a log that ends before it begins.
            self.flush_to(seq)
        began = self.begun_below(seq)
        self.segments.tidy = False
        manifest_file.write(self.directory, self.segments.manifest.truncated_before(seq, swept, began, consents))
        self.control.change(seq)
        self.segments.relist()
        for name in self.segments.strays():
            system.remove_file(self.directory, name)
        self.segments.tidy = True
        return 0

    cdef tuple begun_below(self, uint64_t seq):
        # The epochs that began below `seq`. Segments of those that are known go unasked: epochs never go down.
        cdef CommitSlot slot
        cdef Segment segment
        known = self.segments.manifest.began
        epoch = self.segments.tail(&slot).epoch
        found = []
        for entry in reversed(self.segments.listing()):
            if entry[0] >= seq:
                continue
            try:
                segment = self.segments.open(entry)
            except (CorruptionError, FormatError):
                # Damage may be why it is to go. It is of no newer epoch than what is behind it.
                pass
            else:
                epoch = epoch if segment is None else segment.epoch
            if epoch <= (known[-1].epoch if known else 0):
                break
            found.append((entry[0], epoch))
        return manifest_file.with_begun(known, reversed(found))

    cdef int cut_now(self, uint64_t seq) except -1:
        # By who holds the tail, while nobody else may open the log.
        cdef Segment successor, across = self.segments.holding(seq, self.segment_id)
        self.adopt_prepared()
        self.segments.tidy = False
        manifest = self.segments.manifest
        # Epochs never go down from a segment to the next.
        epoch = manifest.next_epoch(self.tail.epoch)
        manifest = manifest.cut_after(seq, epoch, across.count_below(seq) if across.sparse else 0)
        successor = create_segment(
            self.directory, self.segments.log_uuid, seq, epoch, manifest.segment_bytes, truncation.FIRST_ALLOCATION, SEGMENT_HEADER_SIZE,
            publish=False)
        self.take_turn()
        try:
            self.begin_sync()
            try:
                try:
                    self.flush_now()
                    manifest_file.write(self.directory, manifest)
                except BaseException as error:
                    if manifest_file.read(self.directory, self._path).cut is None:
                        system.remove_file(self.directory, successor.name)
                        raise
                    self.leave_cut(seq, error)
                try:
                    successor, _ = truncation.finish_cut(self.segments, manifest, self.control, successor)
                except BaseException as error:
                    self.leave_cut(seq, error)
                self.unsynced = []
                self.names_unsynced = False
                self.seq = seq
                self.move_to(successor, SEGMENT_HEADER_SIZE, 0)
            finally:
                self.end_sync()
        finally:
            self.give_turn()
        return 0
