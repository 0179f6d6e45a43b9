# By how much the file of an index grows, and which of its pages are to be huge.

from libc.stdint cimport uint64_t

from mmapio cimport _vm
from mmapio._vm cimport ADVICE_HUGE_PAGE, READ_WRITE
from mmapio.mapping cimport MappedFile

cdef enum:
    # By this part, but by no less than the second and no more than the third. What is there ahead takes its place on the disk, and to allocate
    # it takes less time than to fill it.
    STEP_PART = 32
    STEP_MIN = 128 << 10
    STEP_MAX = 8 << 20
    # A processor that looks keys up misses its table of pages less with huge ones. But for any change in one the kernel writes all of it to
    # the device, twice a minute or so: none in the first, which opening and closing sync, and none beyond this.
    HUGE = 2 << 20
    HUGE_END = 64 << 20


cdef inline uint64_t grown(uint64_t size) noexcept nogil:
    # By whole huge pages where there are some: what the file has a part of only is never one.
    cdef uint64_t wanted = size + min(max(size // STEP_PART, <uint64_t>STEP_MIN), <uint64_t>STEP_MAX)
    # To the end of the first by itself: reading ahead there would bring small pages of the next one.
    return min(wanted, <uint64_t>HUGE) if size < HUGE else (wanted + HUGE - 1) & ~<uint64_t>(HUGE - 1)


cdef inline void ask_for_huge_pages(MappedFile file) noexcept:
    # Of who writes. The kernel may refuse, or have none.
    if file.kind == READ_WRITE and file.region.reserved > HUGE:
        _vm.advise(file.region.base + HUGE, min(file.region.reserved, <uint64_t>HUGE_END) - HUGE, ADVICE_HUGE_PAGE)
