# A log as its users know it.

from mmaplog.appender cimport Appender


cdef class Log(Appender):
    cdef object locks           # LockFile
    cdef object policy
    cdef object flusher
    cdef object __weakref__
    cdef readonly bint recovered

    cdef release(self)
