from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint64_t

from mmapkv.reader cimport StoreReader


cdef struct Found:
    # One key of a block. It points into a log segment, and is good for as long as `settled` of the reader stays what it is.
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
    cdef int find_block(self, PyObject **keys, Py_ssize_t count, Found *found) except -1
