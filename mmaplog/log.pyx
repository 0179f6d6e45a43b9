# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""The append-only log: one writer or several, any number of readers in any process."""

import errno as _errno
import os
import threading

from cpython.number cimport PyNumber_Index
from libc.stdint cimport uint64_t

from mmapio cimport _wait
from mmaplog.appender cimport record_size
from mmaplog.format cimport RECORD_SIZE_MAX, UNIT, CommitSlot
from mmaplog.keeper cimport Keeper
from mmaplog.look_up cimport find, find_many
from mmaplog.replay cimport Entry, Replay
from mmaplog.segment cimport Segment

from mmapio import _fork
from mmapio import _os as system
from mmapio.options import FlushPolicy, Trigger
from mmaplog import attach
from mmaplog import control as control_file
from mmaplog import reserve
from mmaplog.backup import backup
from mmaplog.batch import Batch
from mmaplog.bookmark_format import name_of
from mmaplog.by_time import first_not_older
from mmaplog.consumer import consumers, open_consumer, remove_consumer
from mmaplog.errors import Locked, LogError, TooOld
from mmaplog.follow import Follower
from mmaplog.group import open_member
from mmaplog.replay import backwards
from mmaplog.reservation import Reservation
from mmaplog.segment_watch import watch_segments
from mmaplog.verify import verify_log

DEFAULT_SEGMENT_BYTES = 64 << 20
"""How large a segment grows before the log rolls to the next."""

DEFAULT_POLICY = FlushPolicy.every_millis(1000)


cdef class Log(Keeper):
    """An append-only log of byte records, numbered from 0, in a directory of segment files.

    Make one with :meth:`open`. One handle writes; any number of handles in any process read what is committed, live and
    without a lock. A handle serves any number of threads.

    `writable` tells whether this handle may append, `recovered` whether opening had to find the end of the log in its
    segments. `control` and `segments` are for layers above.

    >>> import tempfile, os
    >>> with Log.open(os.path.join(tempfile.mkdtemp(), "events")) as log:
    ...     log.append(b"first"), log.append(b"second")
    ...     [bytes(entry.payload) for entry in log.replay()]
    (0, 1)
    [b'first', b'second']
    """

    @classmethod
    def open(
            cls, path, mode="c", *, flush_policy=DEFAULT_POLICY, timestamps=False, segment_bytes=DEFAULT_SEGMENT_BYTES, shared=False,
            reserve_bytes=None):
        """Open or create the log in the directory `path`.

        `mode` is as in dbm: "r" reads, "w" writes an existing log, "c" creates it if missing, "n" starts a new one.
        `flush_policy` says when appends become durable by themselves; `timestamps` stores the time with each record;
        `segment_bytes` (of a new log) is how large its files grow. With `shared`, other handles, of this process and others, that say so too may
        write at the same time; each append then takes a mutex between processes, and a policy counts what this handle wrote.
        `reserve_bytes` of the disk are kept back, so that :meth:`truncate_before`, :meth:`truncate_after`, :meth:`retain` and :meth:`compact` work
        when it is full, which take as much as a segment and 64 KiB; 0 gives them back, None leaves what there is.

        Costs O(1) after a clean close or a killed process; after a power cut, what was written since the last sync is read once.

        Raises FileNotFoundError, NotADirectoryError, PermissionError, ValueError for another mode, Locked (naming the
        process that writes), FormatError, CorruptionError; Unsupported for `shared` where there are no robust mutexes.
        """
        return open_log(cls, path, mode, flush_policy, timestamps, segment_bytes, (), shared, reserve_bytes)

    @property
    def path(self):
        """The directory, as it was given."""
        return self._path

    @property
    def closed(self):
        """True after :meth:`close`."""
        return self.control is None

    @property
    def committed(self):
        """The next sequence number: every record below it is visible to all. Raises Closed."""
        return self.end_now().seq

    cdef CommitSlot end_now(self) except *:
        # The next number, and the segment that it goes to.
        cdef CommitSlot slot
        self.check()
        slot = self.control.committed()
        self.control.check()
        return slot

    @property
    def durable(self):
        """Every record below this number is on the device. Raises Closed."""
        self.check()
        durable = self.control.durable
        self.control.check()
        return durable

    def __len__(self):
        self.check()
        # Before the end is looked at, which only a truncation takes back, and not below it.
        first = self.segments.first_seq
        return max(self.committed - first - self.segments.removed(), 0)

    def __iter__(self):
        """The entries of the log as it is now, in order: :meth:`replay`."""
        return self.replay()

    def __reversed__(self):
        """The same from the last to the first."""
        return self.replay(reverse=True)

    def batch(self, *, durable=False):
        """Records that are in the log together or not at all: a :class:`Batch`, appended when its ``with`` block ends.

        With `durable` they are on the device then. Costs what :meth:`append_many` does, and the payloads stay in memory until the end. Raises
        InvalidMode, Closed; at the end of the block what :meth:`append_many` does.

        >>> import tempfile, os
        >>> with Log.open(os.path.join(tempfile.mkdtemp(), "events")) as log:
        ...     with log.batch() as batch:
        ...         batch.append(b"debit")
        ...         batch.append(b"credit")
        ...     batch.seqs
        range(0, 2)
        """
        self.check_writable()
        return Batch(self, durable)

    def reserve(self, size, *, durable=False):
        """Room for a record of `size` bytes, to be written in place: a :class:`Reservation`. Spares a copy.

        Raises RecordTooLarge at once, ValueError for a negative size; what :meth:`append` raises comes when its block begins, and BufferError
        at its end when a buffer taken from it is still in use.

        >>> import tempfile, os
        >>> with Log.open(os.path.join(tempfile.mkdtemp(), "events")) as log:
        ...     with log.reserve(5) as buffer:
        ...         buffer[0:5] = b"hello"
        ...     bytes(log[0].payload)
        b'hello'
        """
        size = PyNumber_Index(size)
        if size < 0:
            raise ValueError(f"a record cannot have {size} bytes")
        if size > RECORD_SIZE_MAX or record_size(size, self.timestamps) > RECORD_SIZE_MAX:
            self.refuse_size(size)
        self.check_writable()
        return Reservation(self, size, durable)

    def __getitem__(self, seq):
        """The entry with this number; negative ones count from the end.

        Costs a walk over a KiB of records at most, once its segment was walked from the start for the first time. Raises IndexError
        when there is none, TooOld (which is one) when it was truncated, CorruptionError, Closed.
        """
        number = PyNumber_Index(seq)
        entry = find(self, number)
        return self.look_up(number, seq) if entry is None else entry

    cdef Entry look_up(self, number, asked):
        # The entry with this number, wherever it is.
        cdef CommitSlot slot = self.end_now()
        cdef Replay replay
        if number < 0:
            number += slot.seq
        self.require(number, number < slot.seq, asked)
        replay = Replay(self.segments, number, number + 1, True, slot.segment_id)
        entry = replay.take()
        if entry is None:
            raise IndexError(f"record {number} was removed by a compaction")
        return entry

    cdef int require(self, number, bint reached, asked) except -1:
        # That `number` is in the log, whose end has `reached` it or not; in other words that were `asked` for.
        cdef uint64_t first = self.segments.first()
        if not reached or number < 0:
            raise IndexError(f"record {asked} is not in the log, which holds [{first}, {self.end_now().seq})")
        if number < first:
            raise TooOld(f"record {asked} was truncated; the log holds [{first}, {self.end_now().seq})", self._path)
        return 0

    def read_many(self, seqs):
        """The entries with these numbers, as a list in their order. Raises what ``log[seq]`` does, and costs less for each."""
        return find_many(self, seqs)

    def seek_time(self, nanoseconds):
        """The number of the first record that is not older than a time, in nanoseconds since 1970; `committed` when all are.

        Costs some twenty look-ups. Times never go back within a log that one version of the clock wrote. Raises LogError when
        records have none: they were appended without ``timestamps=True``.
        """
        committed = self.committed
        return first_not_older(self, PyNumber_Index(nanoseconds), committed)

    def follow(self, start=None, *, timeout=None, verify=True):
        """Iterate over the records from `start` on and wait for those to come: a :class:`Follower`, also for ``async for``.

        From now on when `start` is None. With `timeout` it ends when no record came for so many seconds. Sleeps without polling
        until the writer appends, in whichever process; one that may not write CONTROL looks again every 2 ms. Raises
        IndexError for a start that is not in the log, and while iterating CorruptionError, MappingFault, Closed, and LogError
        instead of sleeping where a reader that may not write found the end of the log by itself.

        >>> import tempfile, os
        >>> with Log.open(os.path.join(tempfile.mkdtemp(), "events")) as log:
        ...     log.append(b"first")
        ...     [bytes(entry.payload) for entry in log.follow(0, timeout=0)]
        0
        [b'first']
        """
        committed = self.committed
        start = committed if start is None else PyNumber_Index(start)
        self.require(start, start <= committed, start)
        self.check()  # again: the conversion is free to run code that closes the log
        return Follower(
            self, control_file.for_waiting(self.directory, self.control), Replay(self.segments, start, start, verify, 0), timeout)

    def consumer(self, name, *, start=None, auto_commit=False, too_old="raise", timeout=None, verify=True):
        """Read on from where the consumer of this name last committed: a :class:`Consumer`, which holds the name.

        A new one begins at `start`, or with the first record. With `auto_commit` asking for the next entry, or waiting for it, commits
        those before. `too_old` says what to do about records that were dropped before they were read: "raise" TooOld, or "skip" them with a
        warning in the log named ``mmaplog``. `timeout` and `verify` are as of :meth:`follow`. Costs reading a file; making one, two
        syncs. Raises TypeError and ValueError for what cannot be a name (1 to 100 letters, digits, "_", "-" and "."), Locked
        (naming who holds it), LogError when a group has the name, FormatError, CorruptionError, PermissionError, Closed.

        >>> import tempfile, os
        >>> with Log.open(os.path.join(tempfile.mkdtemp(), "events")) as log:
        ...     with log.consumer("mailer", timeout=0) as consumer:
        ...         log.append_many([b"first", b"second", b"third"])
        ...         bytes(next(consumer).payload)
        ...         consumer.commit()
        ...         bytes(next(consumer).payload)
        ...     with log.consumer("mailer", timeout=0) as consumer:
        ...         [bytes(entry.payload) for entry in consumer]
        range(0, 3)
        b'first'
        b'second'
        [b'second', b'third']
        """
        return open_consumer(
            self, name, start=start, auto_commit=auto_commit, too_old=too_old, timeout=timeout, verify=verify)

    def group(self, name, *, batch=64, start=None, auto_commit=False, too_old="raise", timeout=None, verify=True):
        """Join the group of this name: a :class:`GroupMember`, which gets entries that no other member gets.

        It takes them `batch` at a time. The rest is as of :meth:`consumer`. Raises ValueError for a batch that is not positive, LogError
        when a consumer has the name or 128 members are there, Unsupported where there are no robust mutexes, and what
        :meth:`consumer` does but Locked.

        >>> import tempfile, os
        >>> with Log.open(os.path.join(tempfile.mkdtemp(), "events")) as log:
        ...     log.append_many([b"a", b"b", b"c"])
        ...     with log.group("workers", batch=2) as one, log.group("workers", batch=2) as other:
        ...         one.poll().seq, other.poll().seq
        range(0, 3)
        (0, 2)
        """
        return open_member(
            self, name, batch=batch, start=start, auto_commit=auto_commit, too_old=too_old, timeout=timeout, verify=verify)

    def consumers(self):
        """Every consumer and group of the log, by name: a list of :class:`ConsumerInfo`.

        Costs reading a small file for each. Raises FormatError and CorruptionError for one that cannot be understood, Closed.
        """
        return consumers(self)

    def remove_consumer(self, name):
        """Remove a consumer or group and its position, durably.

        Raises FileNotFoundError when there is none, Locked (naming who holds it), TypeError, ValueError, PermissionError, Closed.
        """
        remove_consumer(self, name)

    def verify(self, *, progress=None):
        """Check the checksum, number and place of every committed record, and change nothing: a :class:`Verified`.

        Its `damages` are empty when all is well. `progress` is called with (records looked at, records in all). Costs one pass over the files, without the GIL; the log can be used meanwhile. Raises
        MappingFault, Closed.
        """
        return verify_log(self, progress)

    def backup(self, target, *, verify=True, progress=None):
        """Copy the log, while it is in use by whomever, into the new directory `target`: a :class:`Backup` says what was made.

        The copy holds the records [first_seq, committed) of the moment the call began, and is a log of its own, with another uuid. All of it
        is on the device when this returns; until then there is nothing of that name. With `verify` every record of the copy is
        checked. `progress` is called with (bytes done, bytes in all). Costs one copy of the files, which file systems that share
        blocks do at once, and one pass to verify. Raises FileExistsError for a target that is there,
        CorruptionError when the log is damaged, LogError, Closed, OSError as the system reports it.
        """
        self.check()
        return backup(self, target, verify=verify, progress=progress)

    def watch_segments(self, callback):
        """Call `callback` with a :class:`SegmentChange` when segment files came or went, in whichever process: a ``WatchHandle``.

        To archive a segment once it is full, or to see what retention removes. The callbacks run on a thread of the watch's own, some 40 ms
        after the change; what one raises is logged. Stop the watch before you close the log. Costs what
        :func:`mmapio.watch.watch` does, and raises what that does: WatchFailed without the package watchfiles.
        """
        self.check()
        return watch_segments(self, callback)

    def stats(self):
        """Numbers about the log, as a dict: of records, segments, bytes on the disk, and what is durable. Raises Closed."""
        committed, used = self.committed, self.disk_usage()
        self.check()  # again: the GIL was let go of
        return {
            "records": len(self),
            "first_seq": self.segments.first_seq,
            "committed": committed,
            "durable": self.durable,
            "segments": len(self.segments.bases()),
            "segment_bytes": self.segments.manifest.segment_bytes,
            "epoch": self.epoch,
            "consumers": sum(name_of(name) is not None for name in system.list_directory(self.directory)),
            "bytes_on_disk": used,
            "reserve_bytes": reserve.kept(self.directory),
            "log_uuid": str(self.segments.log_uuid),
            "poison": self.control.poison,
        }

    def replay(self, start=0, stop=None, *, verify=True, reverse=False):
        """Iterate over the entries [start, stop), in order; to the end as it is now when `stop` is None.

        Each has `seq`, `timestamp` and a zero-copy `payload`. Reaching `start` costs what ``log[start]`` does. With `reverse` they
        come from the last to the first. Raises IndexError for a range that is not in the log, CorruptionError when a record
        does not verify, Closed.
        """
        first = self.segments.first_seq
        start = PyNumber_Index(start)
        if stop is not None:
            stop = PyNumber_Index(stop)
        cdef CommitSlot slot = self.end_now()
        if stop is None:
            stop = slot.seq
        if start > slot.seq:
            raise IndexError(f"there is no record {start} yet: the log holds [{first}, {slot.seq})")
        if start == 0:
            start = first
            if not reverse and first <= stop <= slot.seq:
                return self.replay_from_first(stop, verify, slot.segment_id)
        if not start <= stop <= slot.seq:
            raise IndexError(f"records [{start}, {stop}) are not all in the log, which holds [{first}, {slot.seq})")
        self.require(start, True, start)
        return (backwards if reverse else Replay)(self.segments, start, stop, verify, slot.segment_id)

    cdef replay_from_first(self, uint64_t stop, bint verify, uint64_t tail_id):
        # Wherever the log begins: that may move on meanwhile.
        cdef uint64_t first
        while True:
            first = min(self.segments.first(), stop)
            try:
                return Replay(self.segments, first, stop, verify, tail_id)
            except TooOld:
                if min(self.segments.first(), stop) == first:
                    raise

    @property
    def flushes_on_close(self):
        """Whether `close` will flush: on a writer that was not inherited or poisoned, unless the policy is NEVER."""
        if self.control is None or not self.writable or self.forked:
            return False
        return self.policy.trigger is not Trigger.NEVER and not self.control.poison

    def begin_exclusive(self):
        """For layers above: wait until no other handle of this log is being opened or closed, and keep them waiting."""
        self.check()
        if self.forked:
            self.raise_forked()
        self.locks.begin()

    def claim(self):
        """For layers above: be the writer for a moment, to mend what is derived. Between begin_exclusive and end_exclusive.

        Raises Locked when there is a writer, PermissionError where nothing may be written.
        """
        # The lock is the file's, so a writer would get it again, and then give away what it had.
        assert not self.writable
        if self.locks.writable and not self.control.private:
            self.locks.claim_writer()
        elif self.locks.has_writer():
            raise Locked("open for writing by another process", self._path)
        else:
            raise PermissionError(_errno.EACCES, "may be read only", self._path)

    def unclaim(self):
        """End what `claim` began."""
        self.locks.release_writer()

    def end_exclusive(self):
        """Let others open and close again."""
        self.locks.end()

    def disk_usage(self):
        """Bytes that the files of the log, and those that a layer above keeps with them, take on the disk."""
        self.check()
        return system.disk_usage(self.directory)

    @property
    def end_of_tail(self):
        """For layers above: (id of the segment being written, offset after its last record)."""
        return self.segment_id, self.end

    def close(self):
        """Close the handle, flushing first unless the policy is NEVER; the second time does nothing.

        Payloads handed out stay valid. Raises FlushFailed when the last flush fails, Poisoned when an earlier one did and no call has said so;
        the handle is closed all the same.
        """
        if self.control is None:
            return
        if self.forked:
            self.release()
            return
        self.refuse_within_flush("a close")
        # After a truncation or compaction of another thread.
        with self.care:
            if self.caring:
                raise self.reentered("a close")
            try:
                self.close_carefully()
            except BaseException:
                self.keep_flushing()
                raise

    cdef close_carefully(self):
        stopped = None
        while True:
            # No other thread is in the middle of an append or a sync from here on, and none begins one before CONTROL is sealed.
            with self.append_lock:
                if self.growing:
                    raise self.reentered("a close")
                if self.flusher is stopped:
                    self.take_turn()
                    try:
                        return self.close_now()
                    finally:
                        self.give_turn()
                stopped = self.flusher
            # With no lock in hand that it could want: the thread may be waiting for one. Meanwhile another may write, and start it.
            stopped.stop()

    cdef close_now(self):
        if self.control is None:
            return
        self.room = 0
        try:
            if self.flushes_on_close:
                self.check_writable()
                self.flush_last()
            if self.writable:
                self.leave()
                self.tell_unheard()
        finally:
            self.release()

    cdef leave(self):
        # The last writer to go vouches for what he leaves. Nobody comes meanwhile.
        if self.preparer is not None:
            # Or it would go on with a file that another writer has by then.
            try:
                self.adopt_prepared()
            finally:
                self.preparer.stop()
        self.locks.begin()
        try:
            if self.append_mutex is None or not self.locks.has_writer():
                self.vouch()
        finally:
            # Before anybody else can ask who writes: he would take this one for a writer at work.
            try:
                self.locks.release_writer()
            finally:
                self.locks.end()

    cdef vouch(self):
        if self.append_mutex is not None:
            self.come_up()
            if self.flushes_on_close:
                self.flush_held(self.control.committed().seq)  # what others appended who did not come to flush it
        if not self.control.poison:
            self.tail.shrink(self.end)
        if self.flushes_on_close and self.control.durable == self.control.committed().seq:
            self.mark_clean()
        self.control.seal()

    cdef release(self):
        self.room = 0
        if self.preparer is not None:
            self.preparer.stop()
        self.control = None
        self.tail = None
        self.unsynced = []
        self.locks.close()

    def __enter__(self):
        self.check()
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        state = "closed" if self.control is None else f"{'writing' if self.writable else 'reading'}, {len(self)} records"
        return f"<Log {self._path!r} {state}>"

    def _after_fork_in_child(self):
        # The parent goes on with the log. The child may read what it has mapped, nothing else.
        self.forked = True
        self.room = 0
        self.flusher = None
        if self.preparer is not None:
            self.preparer.abandon()

    def __reduce__(self):
        raise TypeError("a log cannot be pickled or copied; open its path again")


def open_log(cls, path, mode, flush_policy, timestamps, segment_bytes, derived, bint shared=False, reserve_bytes=None):
    """What :meth:`Log.open` does, for layers above that keep `derived` files of their own in the directory, and call `drop_strays`."""
    cdef Log log = cls.__new__(cls)
    if not isinstance(flush_policy, FlushPolicy):
        raise TypeError(f"flush_policy must be a mmapio.FlushPolicy, not {flush_policy!r}")
    if reserve_bytes is not None:
        reserve_bytes = PyNumber_Index(reserve_bytes)
        if reserve_bytes < 0 or mode == "r":
            raise ValueError(f"a reserve of {reserve_bytes} bytes cannot be kept with mode {mode!r}: a writer keeps one, of 0 or more bytes")
    log._path = os.fsdecode(path)
    found = attach.attach(log._path, mode, segment_bytes, derived, shared=shared)
    try:
        if reserve_bytes is not None:
            reserve.keep(found.directory, log._path, reserve_bytes)
        take_apart(log, found, mode, flush_policy, timestamps, shared, bool(derived))
    except BaseException:
        found.locks.close()
        raise
    return log


cdef take_apart(Log log, found, mode, flush_policy, timestamps, bint shared, bint spares_strays):
    # What opening found becomes the handle.
    cdef CommitSlot slot
    cdef Segment tail
    log.directory = found.directory
    log.locks = found.locks
    log.segments = found.segments
    log.control = found.control
    log.recovered = found.recovered
    log.policy = flush_policy
    log.timestamps = timestamps
    log.spares_strays = spares_strays
    log.append_lock = threading.RLock()
    log.care = threading.RLock()
    log.unsynced = []
    log.bytes_bound = log.writes_bound = log.roll_bytes = <uint64_t>-1
    if mode == "r":
        return
    log.writable = True
    if flush_policy.trigger is Trigger.ALWAYS:
        log.writes_bound = 1
    elif flush_policy.trigger is Trigger.BYTES:
        log.bytes_bound = flush_policy.bound
    elif flush_policy.trigger is Trigger.WRITES:
        log.writes_bound = flush_policy.bound
    tail = log.segments.tail(&slot)
    log.seq = slot.seq
    log.move_to(tail, <uint64_t>slot.end * UNIT, <uint64_t>slot.last * UNIT)
    if timestamps:
        log.learn_time(&slot)
    if shared:
        log.append_mutex, log.sync_mutex = log.control.mutexes()
    else:
        log.adopt_unsynced()
    log.marked = log.is_marked()
    log.check_faults()
    log.restore_room()
    log.control.fenced = _wait.register_for_fences() == 0
    _fork.register(log)
    if shared or not log.marked:
        # Somebody may have written what is not durable. Otherwise there is nothing to do for it until this handle writes.
        log.start_flusher()
