# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False, cdivision=True
"""Which records of a cache were read: a bit for each, in a file of its own that every process maps.

A bit belongs to a place in the log, not to a key: what is written anew begins without. Nothing of it is ever needed. It is not
synced, a bit that is lost or set by accident costs a look-up of whoever wants what was evicted, and without the file readers mark nothing.
"""

import errno as _errno

cimport cython
from libc.stdint cimport uint8_t, uint64_t

from mmapio._os cimport Descriptor
from mmapio.mapping cimport MappedFile

from mmapio import _os as system

NAME = "VISITED"
# Twice as many places as the log of a cache has: of two records, which would share a bit, one is always gone.
cdef uint64_t BYTES_OF_LOG = 4
cdef uint64_t SIZE_MIN = 4096


@cython.final
cdef class Marks:
    """The bits, as they are mapped here. Made by `provide` and `find`."""

    cdef void forget(self, uint64_t slot) noexcept nogil:
        # A segment begins anew in this slot.
        cdef uint64_t at, start = slot * self.stride
        for at in range(start & ~<uint64_t>7, start + self.stride, 8):
            self.bits[(at & self.mask) >> 3] = 0


def provide(log, uint64_t max_bytes):
    """The marks of the cache whose log this is, made if there are none of the size that goes with `max_bytes`."""
    cdef uint64_t size = SIZE_MIN
    while size * 8 * MARK_BYTES < BYTES_OF_LOG * max_bytes:
        size *= 2
    directory = log.segments.directory
    for attempt in range(2):
        opened = system.open_file(NAME, True, create=True, follow=False, directory=directory)
        found = system.file_size(opened)
        if found == 0:
            system.grow(opened, size)
        elif found != size:
            # Who has that mapped marks in vain from now on.
            system.remove_file(directory, NAME)
            continue
        break
    return mapped(opened, log)


def find(log):
    """The marks that somebody provided; None where there are none, or none that may be written to."""
    if log.control.private:
        # The slots of an index of one's own are not those of others.
        return None
    try:
        opened = system.open_file(NAME, True, follow=False, directory=log.segments.directory)
        size = system.file_size(opened)
    except OSError as error:
        if error.errno in (_errno.ENOENT, _errno.EACCES, _errno.EPERM, _errno.EROFS, _errno.ELOOP, _errno.EINVAL):
            return None
        raise
    if size < SIZE_MIN or size & (size - 1):
        return None
    return mapped(opened, log)


cdef Marks mapped(Descriptor opened, log):
    cdef Marks made = Marks.__new__(Marks)
    made.file = MappedFile.from_descriptor(opened, writable=True, reserve=system.file_size(opened))
    made.bits = <uint8_t *>made.file.base
    made.mask = 8 * made.file.length - 1
    # A segment's bits are bytes of their own.
    made.stride = (log.segments.manifest.segment_bytes // MARK_BYTES + 8) & ~<uint64_t>7
    return made
