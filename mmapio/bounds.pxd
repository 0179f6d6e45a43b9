# Numbers that callers give, checked before anything is done with them.

from libc.stdint cimport uint64_t

cdef extern from "Python.h":
    bint is_plain_int "PyLong_CheckExact"(object number) noexcept
    # Of a plain int it never raises.
    long long as_long_long "PyLong_AsLongLongAndOverflow"(object number, int *overflow) noexcept

# As long as a file can be, in bytes: offsets are signed in the system interface. An enum, so that it is a constant in C.
cdef enum:
    MAX_SIZE = 0x7FFFFFFFFFFFF000

# Between 1 and MAX_SIZE. InvalidSize.
cdef uint64_t checked_size(size, path) except? 0

cdef uint64_t converted_offset(offset, uint64_t length, path) except? 0xFFFFFFFFFFFFFFFF

# Not negative, and so small that no sum of two overflows; `length` and `path` are of the file, for the message. OutOfBounds.
cdef inline uint64_t checked_offset(offset, uint64_t length, path) except? 0xFFFFFFFFFFFFFFFF:
    cdef int overflow = 0
    cdef long long small
    if is_plain_int(offset):
        small = as_long_long(offset, &overflow)
        if overflow == 0 and small >= 0 and <uint64_t>small <= <uint64_t>MAX_SIZE:
            return small
    return converted_offset(offset, length, path)

# A number as messages show it.
cdef object told(number)

# An index, cut to what a Py_ssize_t holds. TypeError.
cdef Py_ssize_t clamped(key) except? -1

# On the monotonic clock, so many seconds from now; infinity is one, too. TypeError, ValueError.
cdef object deadline_of(timeout)
