from mmapkv.writer cimport StoreWriter


cdef class StoreUpdater(StoreWriter):
    cdef bint put_if(self, key, value, bint present, ttl, bint durable) except -1
