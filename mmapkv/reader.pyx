# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Looking keys up in a store: what happens millions of times in readers and the writer alike."""

import errno as _errno

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t

from mmapio cimport _fault
from mmapio cimport _memory as memory
from mmapio._os cimport now_ns
from mmapio.region cimport copy_guarded
from mmapio.view cimport slice_of
from mmapkv.format cimport KEY_SIZE_MAX
from mmapkv.index cimport ABSENT, PRESENT, REPLACED, UNSOUND, Hit, Index, Outcome, is_doubtful
from mmapkv.marks cimport Marks
from mmapkv.moment cimport read_moment
from mmapkv.slots cimport SlotMap
from mmaplog.checksum cimport xxh3
from mmaplog.log cimport Log
from mmaplog.segment cimport Segment

from mmapio.errors import Closed
from mmapkv.errors import BufferTooSmall, SnapshotTooOld


cdef bytes as_bytes(object thing, str what):
    # bytes as they are, str as UTF-8, every other buffer copied.
    cdef Py_buffer view
    if PyBytes_CheckExact(thing):
        return <bytes>thing
    if isinstance(thing, str):
        return (<str>thing).encode()
    try:
        PyObject_GetBuffer(thing, &view, PyBUF_SIMPLE)
    except (TypeError, BufferError):
        raise TypeError(
            f"a {what} is bytes, another contiguous buffer or str, not {type(thing).__name__}") from None
    try:
        return PyBytes_FromStringAndSize(<const char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef class StoreReader:
    """The reading half of ``KVStore``, per operation.

    The subclass gives the methods that replace the index: `_reload_index`, `_mend_index`.
    """

    def __getitem__(self, key):
        cdef Hit hit
        cdef bytes wanted = <bytes>key if PyBytes_CheckExact(key) else as_bytes(key, "key")
        if not self.look(PyBytes_AS_STRING(wanted), PyBytes_GET_SIZE(wanted), &hit):
            raise KeyError(wanted)
        return self.value_of(&hit)

    def get(self, key, /, default=None):
        """The value of `key`, or `default`. Costs a cache miss for the index, one for the record and a copy.

        Raises CorruptionError when the record does not verify, TypeError for a key that is neither buffer nor str, Closed.
        """
        cdef Hit hit
        cdef bytes wanted = <bytes>key if PyBytes_CheckExact(key) else as_bytes(key, "key")
        if not self.look(PyBytes_AS_STRING(wanted), PyBytes_GET_SIZE(wanted), &hit):
            return default
        return self.value_of(&hit)

    def get_view(self, key, /, default=None):
        """The value of `key` as a zero-copy view, or `default`. Costs as :meth:`get`, whatever the size, and no copy.

        The view is valid, and its content what it is now, for as long as it is referenced: after the key was changed or deleted, and
        after the store was closed. The checksum is verified when it is taken, unless the store was opened with ``verify=False``.

        >>> import tempfile, mmapkv
        >>> kv = mmapkv.KVStore.open(tempfile.mkdtemp() + "/store")
        >>> kv["a"] = "one"
        >>> view = kv.get_view("a")
        >>> del kv["a"]
        >>> kv.close()
        >>> bytes(view), len(view), view[1:] == b"ne"
        (b'one', 3, True)

        Raises as :meth:`get`.
        """
        cdef Hit hit
        cdef bytes wanted = <bytes>key if PyBytes_CheckExact(key) else as_bytes(key, "key")
        if not self.look(PyBytes_AS_STRING(wanted), PyBytes_GET_SIZE(wanted), &hit):
            return default
        view = slice_of(self.slots.segment(hit.slot).region, hit.value, hit.value_size)
        if _fault.faults() != self.faults:
            self.check_faults()
        return view

    def get_into(self, key, buffer, /):
        """Copy the value of `key` to the beginning of a writable `buffer`; returns its size in bytes, or None when the key is absent.

        Costs as :meth:`get`, with no object made for the value; from 256 KiB on it is copied without the GIL.
        Raises BufferTooSmall, with the numbers and nothing written; TypeError or BufferError for what is no writable, contiguous
        buffer; as :meth:`get`.
        """
        cdef Hit hit
        cdef Segment segment
        cdef Py_buffer to
        cdef bytes wanted = <bytes>key if PyBytes_CheckExact(key) else as_bytes(key, "key")
        PyObject_GetBuffer(buffer, &to, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            if not self.look(PyBytes_AS_STRING(wanted), PyBytes_GET_SIZE(wanted), &hit):
                return None
            if hit.value_size > <uint64_t>to.len:
                raise BufferTooSmall(f"the value has {hit.value_size} bytes, the buffer {to.len}", self._path)
            segment = self.slots.segment(hit.slot)
            # No buffer is a second mapping of a log segment.
            copy_guarded(segment.region, hit.value - segment.base, hit.value_size, <char *>to.buf, hit.value, False)
            return hit.value_size
        finally:
            PyBuffer_Release(&to)

    def get_versioned(self, key, /, default=None):
        """(the value of `key`, its version), or `default`. Costs as :meth:`get`.

        The version is the number in the store's log under which the value was written: later values of whatever key have higher ones.
        Raises as :meth:`get`.

        >>> import tempfile, mmapkv
        >>> kv = mmapkv.KVStore.open(tempfile.mkdtemp() + "/store")
        >>> kv["a"], kv["b"] = "one", "two"
        >>> kv.get_versioned("b"), kv.get_versioned("c")
        ((b'two', 1), None)
        >>> kv.close()
        """
        cdef Hit hit
        cdef bytes wanted = <bytes>key if PyBytes_CheckExact(key) else as_bytes(key, "key")
        if not self.look(PyBytes_AS_STRING(wanted), PyBytes_GET_SIZE(wanted), &hit):
            return default
        return self.value_of(&hit), hit.seq

    def __contains__(self, key):
        cdef Hit hit
        cdef bytes wanted = <bytes>key if PyBytes_CheckExact(key) else as_bytes(key, "key")
        return self.look(PyBytes_AS_STRING(wanted), PyBytes_GET_SIZE(wanted), &hit) != 0

    def __len__(self):
        cdef uint64_t seq, count
        cdef Index index
        while True:
            index = self.index
            if index is None:
                self.raise_closed()
            if not index.retired:
                index.applied(&seq, &count)
                index.check()
                return count
            self._reload_index(index)

    cdef int look(self, const char *key, uint64_t key_size, Hit *hit) except -1:
        # 1 when the key is present. A key that cannot be stored is absent.
        cdef Outcome outcome
        cdef Index index
        while True:
            # Held by this thread for the turn: another may close the store whenever the GIL is let go.
            index = self.index
            if index is None:
                self.raise_closed()
            if key_size == 0 or key_size > KEY_SIZE_MAX:
                return 0
            if is_doubtful(index):
                outcome = REPLACED
            else:
                outcome = index.find(xxh3(key, key_size, index.seed), key, key_size, self.verify, hit)
            # One that was cut is not asked once another is there.
            if _fault.faults() != self.faults and outcome != REPLACED:
                self.check_faults()
            if outcome == PRESENT:
                if self.admit(index, hit):
                    if self.counting:
                        self.note_hit(hit.slot, hit.offset)
                    return 1
                outcome = ABSENT
            if outcome == ABSENT:
                self.misses += self.counting
                return 0
            self.settle(index, outcome, hit)

    cdef void note_hit(self, uint64_t slot, uint64_t offset) noexcept:
        # Of a cache: what was found there is wanted.
        self.hits += 1
        if self.marks is not None:
            self.marks.note(slot, offset)

    cdef bint admit(self, Index index, Hit *hit) except -1:
        # Whether what was found is a value now; the hit may be changed to an older version. What a commit stores becomes
        # visible at once, when `applied` is published: an entry may be ahead of that. Looked at after the entry, so
        # what one look-up shows, every later one shows too.
        # So it is with what was cleared.
        cdef uint64_t count, cleared
        cdef Hit newest
        if hit.seq >= self.seen or hit.seq < memory.load_acquire(&index.state.cleared):
            read_moment(index.state, &self.seen, &count, &cleared)
            if hit.seq < cleared:
                return False
            if hit.seq >= self.seen:
                newest = hit[0]
                try:
                    if not self.step_down(index, self.seen, cleared, False, hit):
                        return False
                except SnapshotTooOld:
                    # Compaction removes it once the newer one is visible.
                    read_moment(index.state, &self.seen, &count, &cleared)
                    if newest.seq >= self.seen:
                        raise
                    if newest.seq < cleared:
                        return False
                    hit[0] = newest
        if hit.deleted:
            return False
        return hit.expires == 0 or hit.expires > now_ns()

    cdef bint step_down(self, Index index, uint64_t stop, uint64_t cleared, bint held, Hit *hit) except -1:
        # From a version of a key to the newest one below `stop`, which is `held` or not; False when there is none that was not `cleared`.
        cdef Outcome outcome
        while True:
            outcome = index.version_before(stop, cleared, self.verify, hit)
            if _fault.faults() != self.faults:
                self.check_faults()
            if outcome == PRESENT:
                return True
            if outcome == ABSENT:
                return False
            self.settle(index, outcome, hit, held)

    cdef object value_of(self, Hit *hit):
        cdef object value = PyBytes_FromStringAndSize(hit.value, hit.value_size)
        if _fault.faults() != self.faults:
            self.check_faults()
        return value

    cdef int check_faults(self) except -1:
        # Something in this process read a page that was not there. If it was a page of this store, what was just
        # found, or not found, may be made of zeros.
        cdef uint64_t faults = _fault.faults()
        cdef Segment segment
        if self.index is None:
            self.raise_closed()
        self.log.check_faults()
        self.index.check()
        for each in self.slots.segments:
            if each is not None:
                segment = each
                segment.region.check()
        self.faults = faults
        return 0

    cdef int settle(self, Index index, Outcome outcome, Hit *hit, bint held=False) except -1:
        # What stands in the way of a look-up is removed, or raised. Lets go of the GIL.
        self.settled += 1
        if outcome == REPLACED:
            # Asked first without a lock, which a compaction may hold for long that has just changed the log.
            if index.is_replaced():
                self._reload_index(index)
        elif outcome == UNSOUND:
            self._mend_index(index)
        else:
            index.settle(outcome, hit, held)
        return 0

    def _open(self, Log log, bint verify):
        self.log = log
        self.verify = verify
        self._path = log.path

    def _use(self, Index index not None, SlotMap slots not None):
        # The index of a store just opened, or rebuilt later. A writer looks for its slot anew.
        self.index = index
        self.slots = slots
        self.seen = 0
        self.tail_id = 0

    def _count(self, Marks marks):
        # What is read from now on is counted, and noted there, if that is not None.
        self.counting = True
        self.marks = marks

    def _counted(self):
        # Look-ups that found something, and those that did not; None where they are not counted.
        return (self.hits, self.misses) if self.counting else None

    def _parts(self):
        return self.log, self.index

    def _forget(self):
        self.index = None
        self.slots = None
        self.marks = None

    cdef raise_closed(self):
        raise Closed(_errno.EBADF, "the store is closed; open it again", self._path)
