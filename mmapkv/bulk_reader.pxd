from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from mmapkv.approach cimport Probe
from mmapkv.reader cimport StoreReader

cdef enum:
    # Keys that take a step together, and those under way at a time, a group for each step: the key object, the bucket, the record, the
    # end. Each group is a burst of requests to memory; more of them than it takes at a time would have to wait for one another.
    GROUP = 4
    UNDER_WAY = 4 * GROUP


# Many keys that are looked up one group after another. While one group takes its last step, those behind it are on their way.
cdef struct Pipeline:
    Probe probes[UNDER_WAY]     # that of key number i is at i modulo UNDER_WAY
    Py_ssize_t fetched          # below this number the key objects were asked for ...
    Py_ssize_t hashed           # ... and the buckets ...
    Py_ssize_t compared         # ... and the records
    uint64_t settled            # `settled` of the reader when they were


cdef struct Found:
    # One key of a group. It points into a log segment, and is good for as long as `settled` of the reader stays what it is.
    const char *value
    Py_ssize_t size             # -1: the key is absent
    uint64_t slot


# What `get_many_into` does below the guard: the buffer may be of a file that is cut meanwhile.
cdef struct Filling:
    Found *found
    Py_ssize_t count
    char *to
    Py_ssize_t stride           # 0: packed
    int64_t *lengths            # or NULL
    Py_ssize_t written


cdef class BulkReader(StoreReader):
    cdef object fill(self, tuple keys, Py_buffer *to, int64_t *lengths, Py_ssize_t stride)
    cdef int admit_all(self, tuple keys, Filling *job, Py_ssize_t room) except -1
    cdef int find_group(self, PyObject **keys, Py_ssize_t at, Py_ssize_t count, Pipeline *pipeline, Found *found) except -1
