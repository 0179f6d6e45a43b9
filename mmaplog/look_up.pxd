# One record by its number, where the way to it is known.

from mmaplog.replay cimport Entry
from mmaplog.syncer cimport Syncer


cdef Entry find(Syncer log, object number)
cdef list find_many(Syncer log, numbers)
