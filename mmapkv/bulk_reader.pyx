# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Looking up many keys in one call, so that their cache misses overlap instead of following one another."""

import errno as _errno

from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_ND,
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from cpython.ref cimport Py_INCREF, PyObject
from cpython.tuple cimport PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from mmapio cimport _fault
from mmapio cimport _memory as memory
from mmapio.bounds cimport clamped, told
from mmapio.view cimport slice_of
from mmapkv.approach cimport Probe, approach_buckets, approach_records, find_near
from mmapkv.format cimport KEY_SIZE_MAX, LINE
from mmapkv.index cimport ABSENT, PRESENT, REPLACED, Hit, Index, Outcome
from mmapkv.reader cimport StoreReader, as_bytes

from mmapio.errors import MappingFault
from mmapkv.errors import BufferTooSmall

cdef extern from "Python.h":
    PyObject **PySequence_Fast_ITEMS(object sequence)

cdef enum:
    # How far ahead of a loop over them objects and values are fetched.
    AHEAD = 16


def refuse_one_key(keys):
    """Raise TypeError for one key where many are wanted: its characters or bytes would be taken for them."""
    if isinstance(keys, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"an iterable of keys is wanted, and {keys!r} is one key: pass [{keys!r}]")


cdef tuple as_keys(keys):
    # The keys as bytes, in a tuple, which nobody changes while they are looked up.
    cdef PyObject **items
    cdef Py_ssize_t at, count
    cdef bint exact = True
    cdef tuple held
    if type(keys) is list:
        while True:
            count = PyList_GET_SIZE(keys)
            held = PyTuple_New(count)
            # Which may have collected garbage, and a destructor have changed the list.
            if PyList_GET_SIZE(keys) == count:
                break
        items = PySequence_Fast_ITEMS(keys)
        for at in range(count):
            if at + AHEAD < count:
                memory.prefetch(items[at + AHEAD])
            Py_INCREF(<object>items[at])
            PyTuple_SET_ITEM(held, at, <object>items[at])
            exact &= PyBytes_CheckExact(<object>items[at])
    else:
        refuse_one_key(keys)
        held = tuple(keys)
        items = PySequence_Fast_ITEMS(held)
        count = PyTuple_GET_SIZE(held)
        for at in range(count):
            if at + AHEAD < count:
                memory.prefetch(items[at + AHEAD])
            exact &= PyBytes_CheckExact(<object>items[at])
    return held if exact else tuple([as_bytes(key, "key") for key in held])


def keys_of(keys):
    """Many keys as bytes, in a tuple. TypeError for one that is neither buffer nor str, and for one key in place of many."""
    return as_keys(keys)


cdef class BulkReader(StoreReader):
    """The part of ``KVStore`` that reads many keys at a time."""

    def get_many(self, keys, default=None, view=False):
        """The values of `keys`, as a list in their order, with `default` for each that is absent.

        `keys` is any iterable of them. The values are bytes, or with `view` zero-copy views as of :meth:`get_view`. Costs, in calls with
        hundreds of keys, a fraction of as many look-ups, for their cache misses overlap. Each value is one that the key had during the
        call; together they are no snapshot. Holds the GIL.
        Raises CorruptionError when a record does not verify, TypeError for a key that is neither buffer nor str, and for one key in place of many, Closed.
        """
        cdef tuple held = as_keys(keys)
        cdef PyObject **items = PySequence_Fast_ITEMS(held)
        cdef Py_ssize_t at, i, count = PyTuple_GET_SIZE(held)
        cdef bint zero_copy = view
        cdef list values = [default] * count
        cdef Found found[GROUP]
        cdef Pipeline pipeline
        if self.index is None:
            self.raise_closed()
        start(&pipeline)
        for at in range(0, count, GROUP):
            self.find_group(items, at, count, &pipeline, found)
            for i in range(min(<Py_ssize_t>GROUP, count - at)):
                if found[i].size < 0:
                    continue
                if zero_copy:
                    values[at + i] = slice_of(self.slots.segment(found[i].slot).region, found[i].value, found[i].size)
                else:
                    values[at + i] = PyBytes_FromStringAndSize(found[i].value, found[i].size)
            if _fault.faults() != self.faults:
                self.check_faults()
        return values

    def get_many_into(self, keys, buffer, lengths=None, *, stride=0):
        """Copy the values of `keys` into a writable `buffer`, one after another; returns how many bytes that were.

        With a `stride` in bytes each value has a place of its own, as the rows of an array: that of key number i begins at i * stride, and what a
        shorter or absent value leaves of it stays as it was. `lengths`, a writable buffer of 64-bit signed integers, receives
        the length of each value, and -1 for a key that is absent; without it an absent key is a KeyError. Costs as
        :meth:`get_many`, with no object made for a value. Holds the GIL.

        >>> import tempfile, mmapkv, array
        >>> kv = mmapkv.KVStore.open(tempfile.mkdtemp() + "/store")
        >>> kv["a"], kv["b"] = "one", "three"
        >>> buffer, lengths = bytearray(16), array.array("q", [0] * 3)
        >>> kv.get_many_into(["a", "x", "b"], buffer, lengths), lengths.tolist(), bytes(buffer[:8])
        (8, [3, -1, 5], b'onethree')
        >>> kv.close()

        Nothing is written when it raises: BufferTooSmall, with the numbers, for what does not fit; KeyError; CorruptionError;
        ValueError for a negative stride; TypeError or BufferError for what is no such key or buffer; Closed.
        """
        cdef tuple held = as_keys(keys)
        cdef Py_buffer to, sizes
        cdef Py_ssize_t apart
        try:
            # One that is longer than any buffer is so of a second value alone.
            apart = clamped(stride)
        except TypeError:
            raise TypeError(f"a stride is a number of bytes, an integer, not {type(stride).__name__}") from None
        if apart < 0:
            raise ValueError(f"a stride is the distance of two values in bytes, 0 when they are packed, not {told(stride)}")
        PyObject_GetBuffer(buffer, &to, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            if lengths is None:
                return self.fill(held, &to, NULL, apart)
            PyObject_GetBuffer(lengths, &sizes, PyBUF_ND | PyBUF_FORMAT | PyBUF_WRITABLE)
            try:
                if (sizes.itemsize != sizeof(int64_t) or sizes.format == NULL or sizes.format[0] not in (c"q", c"l")
                        or sizes.format[1] != 0):
                    raise TypeError(f"lengths are 64-bit signed integers, as of array('q') or numpy.int64, not {type(lengths).__name__}")
                if sizes.len // <Py_ssize_t>sizeof(int64_t) < PyTuple_GET_SIZE(held):
                    raise BufferTooSmall(
                        f"there are {PyTuple_GET_SIZE(held)} keys and room for {sizes.len // <Py_ssize_t>sizeof(int64_t)} lengths",
                        self._path)
                return self.fill(held, &to, <int64_t *>sizes.buf, apart)
            finally:
                PyBuffer_Release(&sizes)
        finally:
            PyBuffer_Release(&to)

    cdef object fill(self, tuple keys, Py_buffer *to, int64_t *lengths, Py_ssize_t stride):
        cdef Py_ssize_t at, count = PyTuple_GET_SIZE(keys)
        cdef PyObject **items = PySequence_Fast_ITEMS(keys)
        cdef uint64_t settled
        cdef Filling job
        cdef Pipeline pipeline
        if self.index is None:
            self.raise_closed()
        job.found = <Found *>malloc(max(count, 1) * sizeof(Found))
        if job.found == NULL:
            raise MemoryError
        job.count = count
        job.to = <char *>to.buf
        job.stride = stride
        job.lengths = lengths
        try:
            # From the last time that anything stood in the way to the end of the copying the GIL is held, and what was found stays.
            settled = self.settled
            start(&pipeline)
            at = 0
            while at < count:
                self.find_group(items, at, count, &pipeline, job.found + at)
                at += GROUP
                if self.settled != settled:
                    settled = self.settled
                    start(&pipeline)
                    at = 0
            self.admit_all(keys, &job, to.len)
            if _fault.call(copy_all, &job) < 0:
                self.check_faults()
                raise MappingFault(
                    _errno.EFAULT, "a page below the buffer could not be written: the file that it is of was truncated by others", self._path)
            if _fault.faults() != self.faults:
                self.check_faults()
            return job.written
        finally:
            free(job.found)

    cdef int admit_all(self, tuple keys, Filling *job, Py_ssize_t room) except -1:
        # Raises, before anything is written, when something is absent that must not be, or does not fit.
        cdef Py_ssize_t at, size, last = 0, needed = 0
        for at in range(job.count):
            size = job.found[at].size
            if size < 0:
                if job.lengths == NULL:
                    raise KeyError(keys[at])
                continue
            if job.stride == 0:
                needed += size
                continue
            if size > job.stride:
                raise BufferTooSmall(
                    f"the value of key number {at} has {size} bytes, more than the stride of {job.stride}", self._path)
            last, needed = at, size
        # A stride may be so long that the product is more than a register holds.
        if needed > room or last and job.stride > (room - needed) // last:
            raise BufferTooSmall(
                f"the values of {job.count} keys need {<object>last * job.stride + needed} bytes, the buffer has {room}", self._path)
        return 0

    cdef int find_group(self, PyObject **keys, Py_ssize_t at, Py_ssize_t count, Pipeline *pipeline, Found *found) except -1:
        # Looks up the group of keys that begins with number `at`, of `count`. Since `found` was filled the GIL has not been let go.
        cdef Py_ssize_t i, size = min(<Py_ssize_t>GROUP, count - at)
        cdef uint64_t settled
        cdef Index index
        cdef Outcome outcome = ABSENT
        cdef Probe *probe
        cdef Hit hit
        while True:
            index = self.index
            if index is None:
                self.raise_closed()
            settled = self.settled
            if pipeline.settled != settled:
                # What is under way may have gone by the files that were.
                pipeline.settled = settled
                pipeline.fetched = pipeline.hashed = pipeline.compared = at
            advance(index, keys, at, count, pipeline)
            for i in range(size):
                probe = &pipeline.probes[(at + i) % UNDER_WAY]
                outcome = ABSENT
                if 0 < probe.key_size <= KEY_SIZE_MAX:
                    outcome = find_near(index, probe, self.verify, &hit)
                if outcome == PRESENT and self.admit(index, &hit):
                    found[i].value = hit.value
                    found[i].size = hit.value_size
                    found[i].slot = hit.slot
                    if self.counting:
                        self.note_hit(hit.slot, hit.offset)
                elif outcome == PRESENT or outcome == ABSENT:
                    found[i].size = -1
                    self.misses += self.counting
                else:
                    break
            if _fault.faults() != self.faults and outcome != REPLACED:
                self.check_faults()
            if outcome != PRESENT and outcome != ABSENT:
                self.settle(index, outcome, &hit)
            if self.settled == settled:
                return 0


cdef void start(Pipeline *pipeline) noexcept:
    # No reader has settled this often.
    pipeline.settled = ~<uint64_t>0


cdef void advance(Index index, PyObject **keys, Py_ssize_t at, Py_ssize_t count, Pipeline *pipeline) noexcept:
    # Each group behind the one at `at` takes its next step, the foremost the last but one. What it needs was asked for a group ago.
    cdef Py_ssize_t i, stop
    cdef Probe *probes
    stop = min(at + 4 * GROUP, count)
    for i in range(pipeline.fetched, stop):
        memory.prefetch(<const char *>keys[i])
        memory.prefetch(PyBytes_AS_STRING(<object>keys[i]))
    pipeline.fetched = stop
    stop = min(at + 3 * GROUP, count)
    while pipeline.hashed < stop:
        probes = &pipeline.probes[pipeline.hashed % UNDER_WAY]
        for i in range(min(<Py_ssize_t>GROUP, stop - pipeline.hashed)):
            probes[i].key = PyBytes_AS_STRING(<object>keys[pipeline.hashed + i])
            probes[i].key_size = PyBytes_GET_SIZE(<object>keys[pipeline.hashed + i])
        approach_buckets(index, probes, min(<Py_ssize_t>GROUP, stop - pipeline.hashed))
        pipeline.hashed += GROUP
    stop = min(at + 2 * GROUP, count)
    while pipeline.compared < stop:
        probes = &pipeline.probes[pipeline.compared % UNDER_WAY]
        approach_records(index, probes, min(<Py_ssize_t>GROUP, stop - pipeline.compared))
        pipeline.compared += GROUP


cdef int copy_all(void *argument) noexcept nogil:
    cdef Filling *job = <Filling *>argument
    cdef char *to = job.to
    cdef Py_ssize_t at, size
    job.written = 0
    for at in range(job.count):
        if at + AHEAD < job.count and job.found[at + AHEAD].size > 0:
            memory.prefetch(job.found[at + AHEAD].value)
            memory.prefetch(job.found[at + AHEAD].value + LINE)
        size = job.found[at].size
        if job.lengths != NULL:
            job.lengths[at] = size
        if size >= 0:
            if job.stride:
                to = job.to + at * job.stride
            memcpy(to, job.found[at].value, size)
            to += size
            job.written += size
    return 0
