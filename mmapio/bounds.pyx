# cython: language_level=3, auto_pickle=False
"""Numbers that callers give, checked: sizes of files, offsets and lengths, times."""

import errno as _errno
import operator
import time

from libc.stdint cimport uint64_t

from mmapio.errors import InvalidSize, OutOfBounds

cdef extern from "Python.h":
    # With NULL for the exception it clamps instead of raising.
    Py_ssize_t as_ssize_t "PyNumber_AsSsize_t"(object number, void *exception) except? -1


def checked(size, path):
    """A size as the number it is. InvalidSize for one that no file can have; `path` is of the file, for the message."""
    return checked_size(size, path)


cdef uint64_t checked_size(size, path) except? 0:
    size = operator.index(size)
    if not 0 < size <= <uint64_t>MAX_SIZE:
        raise InvalidSize(_errno.EINVAL, f"a size must be between 1 and {<uint64_t>MAX_SIZE} bytes, not {told(size)}", path)
    return size


cdef uint64_t converted_offset(offset, uint64_t length, path) except? 0xFFFFFFFFFFFFFFFF:
    offset = operator.index(offset)
    if not 0 <= offset <= <uint64_t>MAX_SIZE:
        raise OutOfBounds(_errno.EINVAL, f"offset or length {told(offset)} is outside the {length} bytes mapped", path)
    return offset


cdef object told(number):
    # As messages show it: Python refuses to print what has thousands of digits.
    bits = number.bit_length() if isinstance(number, int) else 0
    return f"a number of {bits} bits" if bits > 256 else number


cdef Py_ssize_t clamped(key) except? -1:
    return as_ssize_t(key, NULL)


cdef object deadline_of(timeout):
    try:
        seconds = timeout + 0.0
    except TypeError:
        raise TypeError(f"a timeout is a number of seconds, not {type(timeout).__name__}") from None
    if seconds != seconds:
        raise ValueError("a timeout is a number of seconds, not NaN")
    return time.monotonic() + seconds
