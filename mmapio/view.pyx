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
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.number cimport PyNumber_AsSsize_t
from cpython.object cimport Py_EQ, Py_NE
from libc.string cimport memcpy

from mmapio cimport _fault
from mmapio._vm cimport READ_WRITE
from mmapio.bounds cimport told
from mmapio.region cimport Region, attach, detach, fault_in

cdef char *BYTE_FORMAT = b"B"


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class MappedSlice:
    """A read-only, zero-copy view of part of a mapped file.

    Supports the buffer protocol, so ``memoryview(s)``, ``numpy.frombuffer(s)`` and file writes take it without
    copying. It stays valid for as long as it is referenced: after the file was closed, grown or unlinked.
    Making one costs the same whatever its length. Slicing gives another view, indexing an ``int``;
    it compares with any bytes-like object by content. Reading raises MappingFault where the file was cut by others.
    """

    def __init__(self):
        raise TypeError("MappedSlice objects are made by as_slice() and its like, not directly")

    def __dealloc__(self):
        detach(&self.link)

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        cdef Py_ssize_t start, size
        cdef unsigned char value
        if isinstance(key, slice):
            span_of(key, self.count, &start, &size)
            check_made(self.region)
            return slice_of(self.region, self.start + start, size)
        read_out(self.region, &value, self.start + index_of(key, self.count), 1)
        return value

    def __bytes__(self):
        return self.tobytes()

    def tobytes(self):
        """The content, copied. Costs one pass over the bytes. Raises MappingFault."""
        cdef object made = PyBytes_FromStringAndSize(NULL, self.count)
        read_out(self.region, PyBytes_AS_STRING(made), self.start, self.count)
        return made

    def __richcmp__(self, other, int operation):
        return same_bytes(self.region, self.start, self.count, other, operation)

    __hash__ = None

    def __getbuffer__(self, Py_buffer *view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("this view of a mapped file is read-only; use as_slice_mut or update_region to write")
        check_made(self.region)
        self.region.check()
        self.shape = self.count
        fill_buffer(view, self, self.start, &self.shape, flags, True)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False

    def __reduce__(self):
        raise TypeError("a view of a mapped file cannot be pickled or copied; bytes(view) makes a copy")

    def __repr__(self):
        return f"<MappedSlice of {self.count} bytes>"


cdef MappedSlice slice_of(Region region, const char *start, Py_ssize_t count):
    cdef MappedSlice made = MappedSlice.__new__(MappedSlice)
    made.region = region
    made.start = start
    made.count = count
    attach(region, &made.link, start, count)
    return made


cdef int fill_buffer(Py_buffer *view, object exporter, const char *start, Py_ssize_t *shape, int flags, bint readonly) except -1:
    view.obj = exporter
    view.buf = <void *>start
    view.len = shape[0]
    view.readonly = readonly
    view.itemsize = 1
    view.format = BYTE_FORMAT if flags & PyBUF_FORMAT else NULL
    view.ndim = 1
    view.shape = shape if flags & PyBUF_ND else NULL
    view.strides = &view.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
    view.suboffsets = NULL
    view.internal = NULL
    return 0


cdef Py_ssize_t index_of(key, Py_ssize_t count) except -1:
    cdef Py_ssize_t index = PyNumber_AsSsize_t(key, IndexError)
    if index < 0:
        index += count
    if index < 0 or index >= count:
        raise IndexError(f"index {told(key)} is outside a view of {count} bytes")
    return index


cdef int span_of(key, Py_ssize_t count, Py_ssize_t *start, Py_ssize_t *size) except -1:
    # Where a slice lies in a view of `count` bytes; it has no holes, or this raises.
    begin, stop, step = key.indices(count)
    if step != 1:
        raise ValueError(f"a view of a mapped file is contiguous: step must be 1, not {step}")
    start[0] = begin
    size[0] = max(stop - begin, 0)
    return 0


cdef int check_made(Region region) except -1:
    if region is None:
        raise TypeError("views are made by as_slice() and its like, not directly")
    return 0


cdef int read_out(Region region, void *to, const char *start, Py_ssize_t count) except -1:
    check_made(region)
    # Below a guard only where the fault handler may put no zero pages; elsewhere a mark tells of them afterwards.
    if region.kind == READ_WRITE:
        if _fault.copy(to, start, count) < 0:
            fault_in(region.path)
        return 0
    memcpy(to, start, count)
    return region.check()


cdef object same_bytes(Region region, const char *start, Py_ssize_t count, other, int operation):
    cdef Py_buffer view
    cdef int order = 0, result
    cdef bint same
    if operation != Py_EQ and operation != Py_NE:
        return NotImplemented
    check_made(region)
    try:
        PyObject_GetBuffer(other, &view, PyBUF_CONTIG_RO)
    except (TypeError, BufferError):
        return NotImplemented
    # Below a guard whatever the region: the other buffer may be of a file that was cut, too.
    same = view.len == count
    result = _fault.compare(view.buf, start, count, &order) if same else 0
    PyBuffer_Release(&view)
    if result < 0:
        fault_in(region.path)
    region.check()
    return (same and order == 0) == (operation == Py_EQ)
