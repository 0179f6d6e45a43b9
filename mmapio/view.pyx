# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Zero-copy views of mapped files."""

cimport cython
from cpython.buffer cimport (
    PyBUF_CONTIG_RO,
    PyBUF_FORMAT,
    PyBUF_ND,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.number cimport PyNumber_AsSsize_t
from cpython.object cimport Py_EQ, Py_NE
from libc.string cimport memcmp

cdef char *BYTE_FORMAT = b"B"


@cython.final
@cython.freelist(64)
cdef class MappedSlice:
    """A read-only, zero-copy view of part of a mapped file.

    Supports the buffer protocol, so ``memoryview(s)``, ``numpy.frombuffer(s)`` and file writes take it without
    copying. It stays valid for as long as it is referenced: after the file was closed, grown or unlinked.
    Making one costs the same whatever its length. Slicing gives another view, indexing an ``int``;
    it compares with any bytes-like object by content.
    """

    def __init__(self):
        raise TypeError("MappedSlice objects are made by as_slice() and its like, not directly")

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        cdef Py_ssize_t start, stop, step, index
        if isinstance(key, slice):
            start, stop, step = key.indices(self.count)
            if step != 1:
                raise ValueError(f"a mapped slice is contiguous: step must be 1, not {step}")
            return slice_of(self.owner, self.start + start, max(stop - start, 0))
        index = PyNumber_AsSsize_t(key, IndexError)
        if index < 0:
            index += self.count
        if index < 0 or index >= self.count:
            raise IndexError(f"index {key} is outside a slice of {self.count} bytes")
        return <unsigned char>self.start[index]

    def __bytes__(self):
        return PyBytes_FromStringAndSize(self.start, self.count)

    def tobytes(self):
        """The content, copied. Costs one pass over the bytes."""
        return PyBytes_FromStringAndSize(self.start, self.count)

    def __richcmp__(self, other, int operation):
        cdef Py_buffer view
        cdef bint same
        if operation != Py_EQ and operation != Py_NE:
            return NotImplemented
        try:
            PyObject_GetBuffer(other, &view, PyBUF_CONTIG_RO)
        except (TypeError, BufferError):
            return NotImplemented
        same = view.len == self.count and memcmp(view.buf, self.start, self.count) == 0
        PyBuffer_Release(&view)
        return same == (operation == Py_EQ)

    __hash__ = None

    def __getbuffer__(self, Py_buffer *view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("this view of a mapped file is read-only; use as_slice_mut or update_region to write")
        self.shape = self.count
        view.obj = self
        view.buf = <void *>self.start
        view.len = self.count
        view.readonly = 1
        view.itemsize = 1
        view.format = NULL
        if flags & PyBUF_FORMAT:
            view.format = BYTE_FORMAT
        view.ndim = 1
        view.shape = &self.shape if flags & PyBUF_ND else NULL
        view.strides = &view.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False

    def __reduce__(self):
        raise TypeError("a view of a mapped file cannot be pickled or copied; bytes(view) makes a copy")

    def __repr__(self):
        return f"<MappedSlice of {self.count} bytes>"


cdef MappedSlice slice_of(object owner, const char *start, Py_ssize_t count):
    cdef MappedSlice made = MappedSlice.__new__(MappedSlice)
    made.owner = owner
    made.start = start
    made.count = count
    return made
