# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Many records at once, checked before anything is written, and then read without the GIL."""

import array

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc


cdef class Pieces:
    """The records of one call. Made by `pieces_of` or `slices_of`."""

    def __dealloc__(self):
        self.release()
        free(self.starts)
        free(self.sizes)

    cdef int allocate(self, uint64_t count) except -1:
        self.starts = <const char **>malloc(max(count, 1) * sizeof(char *))
        self.sizes = <uint64_t *>malloc(max(count, 1) * sizeof(uint64_t))
        if self.starts == NULL or self.sizes == NULL:
            raise MemoryError
        self.count = count
        return 0

    cdef int release(self) except -1:
        # Early, so that a bytearray can be resized as soon as the call is over.
        if self.held:
            self.held = False
            PyBuffer_Release(&self.view)
        return 0


def copied(data):
    """The content of a contiguous buffer as bytes. TypeError, BufferError."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return PyBytes_FromStringAndSize(<const char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef Pieces pieces_of(records):
    # Every other buffer than bytes is copied here: to ask for it may run Python code, which must not come between two records.
    cdef Pieces made = Pieces.__new__(Pieces)
    cdef list items = list(records)
    cdef Py_ssize_t at, count = len(items)
    for at in range(count):
        if not PyBytes_CheckExact(items[at]):
            items[at] = copied(items[at])
    made.items = items
    made.allocate(count)
    for at in range(count):
        made.starts[at] = PyBytes_AS_STRING(items[at])
        made.sizes[at] = PyBytes_GET_SIZE(items[at])
    return made


cdef Pieces slices_of(buffer, offsets):
    # The offsets are read once: another thread may write to them while this one works without the GIL.
    cdef Pieces made = Pieces.__new__(Pieces)
    cdef Py_buffer bounds
    cdef const uint64_t *words
    cdef uint64_t at, length, start, stop
    if not is_words(offsets):
        try:
            offsets = array.array("Q", list(offsets))
        except OverflowError as error:
            raise ValueError(f"an offset is not between 0 and the length of the buffer: {error}") from None
    PyObject_GetBuffer(buffer, &made.view, PyBUF_SIMPLE)
    made.held = True
    length = made.view.len
    PyObject_GetBuffer(offsets, &bounds, PyBUF_ND)
    try:
        words = <const uint64_t *>bounds.buf
        if bounds.len < 8:
            raise ValueError("there is one offset more than there are records, so at least one")
        made.allocate(bounds.len // 8 - 1)
        start = words[0]
        for at in range(made.count):
            stop = words[at + 1]
            if not start <= stop <= length:
                raise ValueError(
                    f"record {at} is from offset {start} to {stop}, which is not a part of the {length} bytes of the buffer")
            made.starts[at] = <const char *>made.view.buf + start
            made.sizes[at] = stop - start
            start = stop
    finally:
        PyBuffer_Release(&bounds)
    return made


cdef bint is_words(thing) except -1:
    # Whether it is a contiguous buffer of 64-bit words, which can be read as they are. A negative one is beyond every buffer.
    cdef Py_buffer view
    cdef bint fits
    try:
        PyObject_GetBuffer(thing, &view, PyBUF_ND | PyBUF_FORMAT)
    except (TypeError, BufferError):
        return False
    fits = (view.ndim == 1 and view.itemsize == 8 and view.format != NULL
            and view.format[0] in (c"Q", c"L", c"q", c"l") and view.format[1] == 0)
    PyBuffer_Release(&view)
    return fits
