# cython: language_level=3, auto_pickle=False
"""A record that is written in place."""

import errno as _errno
import operator
import threading

from libc.stdint cimport uint64_t

from mmapio.mutable cimport MappedSliceMut
from mmaplog.appender cimport Appender

from mmaplog.errors import LogError


cdef class Reservation:
    """Room for one record in the log itself. Made by ``Log.reserve``; a context manager that gives a writable buffer.

    At the end of its ``with`` block the record is committed, and `seq` is its number; when the block raises, there is no record. Until
    then nobody else appends: other threads and processes wait. `size` may be lowered within the block, when less is needed.
    The thread that enters the block leaves it, LogError in any other; a child that is forked within it has no part in it.
    """

    cdef Appender log
    cdef MappedSliceMut view
    cdef uint64_t reserved
    cdef uint64_t wanted
    cdef bint durable
    cdef bint begun
    cdef unsigned long thread
    cdef readonly object seq

    def __cinit__(self, Appender log not None, uint64_t size, bint durable):
        self.log = log
        self.reserved = self.wanted = size
        self.durable = durable

    @property
    def size(self):
        """How many bytes the record will have, at first all that were reserved. ValueError for more than that."""
        return self.wanted

    @size.setter
    def size(self, size):
        size = operator.index(size)
        if self.seq is not None or self.begun and self.view is None:
            raise LogError(_errno.EINVAL, "the block of the reservation has ended, its record is what it is", self.log._path)
        if not 0 <= size <= self.reserved:
            raise ValueError(f"{size} bytes are not within the {self.reserved} that were reserved")
        self.wanted = size

    def __enter__(self):
        if self.begun:
            raise LogError(_errno.EINVAL, "the reservation was used already; make another one", self.log._path)
        self.view = self.log.begin_in_place(self.reserved)
        self.begun = True
        self.thread = threading.get_ident()
        return self.view

    def __exit__(self, kind, error, traceback):
        cdef MappedSliceMut view = self.view
        if view is None:
            return False
        if self.log.forked:
            # The tail is the parent's, who is in this block too, and alone says what becomes of the record.
            if kind is None:
                self.log.raise_forked()
            return False
        if self.thread != threading.get_ident():
            # The tail is that thread's to give back; nothing was done, and it still can.
            raise LogError(
                _errno.EPERM, "the block of a reservation was left by another thread than entered it, which holds up every append until it leaves "
                "it itself", self.log._path)
        self.view = None
        exported = view.exports
        view.release()
        if exported:
            # Whoever holds it can go on writing: what is there must never become part of the log.
            self.log.end_in_place(0, False, True)
            if kind is None:
                raise BufferError(
                    f"the record was not appended: {exported} buffers taken from it are still in use; release them "
                    "before the end of the block")
        elif kind is not None:
            self.log.end_in_place(0, False, False)
        else:
            self.seq = self.log.end_in_place(self.wanted, True, False)
            self.log.after_commit(self.wanted, self.seq + 1, self.durable)
        return False
