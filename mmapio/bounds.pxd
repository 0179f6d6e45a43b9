# Numbers that callers give, checked before anything is done with them.

from libc.stdint cimport uint64_t

# Between 1 and the longest file there can be. InvalidSize.
cdef uint64_t checked_size(size, path) except? 0

# Not negative, and so small that no sum of two overflows; `length` and `path` are of the file, for the message. OutOfBounds.
cdef uint64_t checked_offset(offset, uint64_t length, path) except? 0

# A number as messages show it.
cdef object told(number)

# An index, cut to what a Py_ssize_t holds. TypeError.
cdef Py_ssize_t clamped(key) except? -1

# On the monotonic clock, so many seconds from now; infinity is one, too. TypeError, ValueError.
cdef object deadline_of(timeout)
