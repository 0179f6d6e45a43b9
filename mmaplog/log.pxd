# A log as its users know it.

from mmaplog.appender cimport Appender
from mmaplog.format cimport CommitSlot


cdef class Log(Appender):
    cdef object locks           # LockFile
    cdef object policy
    cdef object flusher
    cdef object __weakref__
    cdef readonly bint recovered

    cdef CommitSlot end_now(self) except *
    cdef close_now(self)
    cdef release(self)
