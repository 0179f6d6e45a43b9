# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Sorting keys while other threads go on: list.sort keeps the GIL, for a second or more where there are a million keys."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcmp


cdef struct Item:
    uint64_t head               # the first bytes that not all keys share, as a number: most comparisons need no more
    const char *start
    uint64_t size
    Py_ssize_t at


cdef int compare(const void *one, const void *other) noexcept nogil:
    cdef const Item *a = <const Item *>one
    cdef const Item *b = <const Item *>other
    cdef int order
    if a.head != b.head:
        return -1 if a.head < b.head else 1
    order = memcmp(a.start, b.start, min(a.size, b.size))
    if order:
        return order
    return (a.size > b.size) - (a.size < b.size)


cdef uint64_t head_of(const Item *item, uint64_t shared) noexcept nogil:
    cdef uint64_t head = 0, at
    for at in range(shared, shared + 8):
        head = head << 8 | (<unsigned char>item.start[at] if at < item.size else 0)
    return head


def sorted_keys(dict keys not None):
    """The keys of a dict, all of them bytes, as a sorted list. Costs half a microsecond each, most of it without the GIL.

    Takes 32 bytes for each meanwhile. Raises TypeError, MemoryError.

    >>> sorted_keys({b"pear": 1, b"p": 2, b"apple": 3})
    [b'apple', b'p', b'pear']
    """
    # The list keeps the bytes alive, whatever becomes of the dict.
    cdef list unsorted = list(keys)
    cdef Py_ssize_t count = len(unsorted), i
    cdef uint64_t shared, at
    cdef bytes key
    cdef Item *items
    if count == 0:
        return []
    items = <Item *>malloc(count * sizeof(Item))
    if items == NULL:
        raise MemoryError
    try:
        for i in range(count):
            key = unsorted[i]
            items[i].start = PyBytes_AS_STRING(key)
            items[i].size = PyBytes_GET_SIZE(key)
            items[i].at = i
        with nogil:
            shared = items[0].size
            for i in range(1, count):
                at = 0
                while at < shared and at < items[i].size and items[i].start[at] == items[0].start[at]:
                    at += 1
                shared = at
            for i in range(count):
                items[i].head = head_of(&items[i], shared)
            qsort(items, count, sizeof(Item), compare)
        return [unsorted[items[i].at] for i in range(count)]
    finally:
        free(items)
