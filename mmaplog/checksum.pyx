# cython: language_level=3, auto_pickle=False
"""XXH3-64 from the xxhash package, called without Python in between.

The package's extension module exports the functions of the C library that it bundles; `ctypes` finds the
address once, at import. Where a build hides the symbol its Python function serves, slower but equal.
Source of the algorithm: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""

import ctypes

import xxhash
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t, uintptr_t


cdef uint64_t call_python(const void *data, size_t count, uint64_t seed) noexcept nogil:
    with gil:
        return xxhash.xxh3_64_intdigest(PyBytes_FromStringAndSize(<const char *>data, count), seed)


cdef xxh3_function resolve():
    try:
        symbol = ctypes.PyDLL(xxhash._xxhash.__file__).XXH3_64bits_withSeed
    except (AttributeError, OSError):
        return call_python
    # The library stays loaded: the interpreter never unloads an extension module.
    return <xxh3_function><uintptr_t>ctypes.cast(symbol, ctypes.c_void_p).value


cdef xxh3_function xxh3 = resolve()

NATIVE = xxh3 != <xxh3_function>call_python
"""True when hashing calls C directly."""


def xxh3_64(bytes data not None, uint64_t seed=0):
    """XXH3-64 of some bytes. Costs about 8 ns for 100 bytes plus the call.

    >>> hex(xxh3_64(b"", 0))
    '0x2d06800538d394c2'
    """
    return xxh3(<const char *>data, len(data), seed)
