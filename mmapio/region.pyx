# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""Address space with a file mapped over it, and the list of the views that point into it."""

import errno as _errno

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EFAULT, ENOMEM, errno
from libc.stdint cimport uint64_t
from libc.string cimport strerror

from mmapio cimport _fault, _vm
from mmapio._vm cimport ADVICE_HUGE_PAGE, Kind

from mmapio import _os as system
from mmapio import _vm as _system
from mmapio.errors import AdviceFailed, LockFailed, MappingFault, UnlockFailed

# Copies from this many bytes on let other threads run.
cdef Py_ssize_t WITHOUT_GIL = 256 << 10


@cython.final
@cython.no_gc
cdef class Region:
    """Address space with a file mapped over it; everything that points into it holds a reference."""

    def __cinit__(self):
        self.views.previous = self.views.next = &self.views

    def __dealloc__(self):
        # The slot first: a fault in what is mapped here next is not ours.
        if self.slot != NULL:
            _fault.give_slot(self.slot)
        if self.base != NULL:
            _vm.unmap(self.base, self.reserved)

    @property
    def address(self):
        """Where the region begins."""
        return <size_t>self.base

    @property
    def size(self):
        """Bytes of address space."""
        return self.reserved

    cdef bint faulted(self) noexcept:
        return self.slot.faulted != 0

    cdef int check(self) except -1:
        return fault_in(self.path) if self.slot.faulted else 0

    cdef int fail(self) except -1:
        # A page was missing, and nobody but the caller knows: the kernel said so instead of raising a signal.
        self.slot.faulted = 1
        _fault.met()
        return fault_in(self.path)

    cdef int require(self, size_t offset, size_t count) except -1:
        # Elsewhere nobody answers for a page that is not there.
        if offset > self.reserved or count > self.reserved - offset:
            raise ValueError(f"{count} bytes at offset {offset} are not within the {self.reserved} of the region")
        return 0

    cdef uint64_t last_view_end(self) noexcept:
        # Where in the file the living view ends that reaches furthest; 0 without views.
        cdef Link *link = self.views.next
        cdef const char *end = self.base
        while link != &self.views:
            # An empty view keeps nothing.
            if link.end > end and link.end > link.start:
                end = link.end
            link = link.next
        return end - self.base

    def advise(self, size_t offset, size_t count, int advice, name):
        """Give the kernel a piece of advice on the pages of a range. AdviceFailed with errno."""
        cdef char *start = self.base + offset // _vm.PAGE * _vm.PAGE
        cdef size_t span = self.base + offset + count - start
        cdef int result
        with nogil:
            result = _vm.advise(start, span, advice)
        if result == -EFAULT:
            raise MappingFault(
                EFAULT, f"a page within {count} bytes at offset {offset} cannot be had: the file was cut, or the disk is full; "
                "refresh() maps what is there now", self.path)
        if result < 0:
            raise AdviceFailed(
                -result, f"the kernel refused {name} for {count} bytes at offset {offset}: {strerror(-result).decode()}",
                self.path)

    def ask_for_huge_pages(self):
        """Ask the kernel for huge pages in all of the region, also where the file may grow to. False when it refuses."""
        cdef int result
        with nogil:
            result = _vm.advise(self.base, self.reserved, ADVICE_HUGE_PAGE)
        return result == 0

    def lock(self, size_t offset, size_t count):
        """Keep the pages of a range in memory. LockFailed with errno."""
        cdef char *start = self.base + offset // _vm.PAGE * _vm.PAGE
        cdef size_t span = self.base + offset + count - start
        cdef int result
        with nogil:
            result = _vm.lock(start, span)
        if result < 0:
            # An attempt that fails half way has locked a part.
            _vm.unlock(start, span)
            raise LockFailed(
                -result, f"cannot lock {count} bytes at offset {offset} into memory: {strerror(-result).decode()}; "
                "is the limit of `ulimit -l` reached?", self.path)

    def unlock(self, size_t offset, size_t count):
        """Let the pages of a range go. UnlockFailed with errno."""
        cdef char *start = self.base + offset // _vm.PAGE * _vm.PAGE
        cdef size_t span = self.base + offset + count - start
        cdef int result
        with nogil:
            result = _vm.unlock(start, span)
        if result < 0:
            raise UnlockFailed(
                -result, f"cannot unlock {count} bytes at offset {offset}: {strerror(-result).decode()}", self.path)

    def touch(self, size_t offset, size_t count):
        """Read a byte of every page of a range. MappingFault where one is not there."""
        self.require(offset, count)
        cdef char *start = self.base + offset // _vm.PAGE * _vm.PAGE
        cdef size_t span = self.base + offset + count - start
        cdef int result
        with nogil:
            result = _fault.touch(start, span, _vm.PAGE)
        if result < 0:
            self.fail()

    def touch_for_writing(self, size_t offset, size_t count):
        """Make every page of a range writable, changing nothing. MappingFault where one is not there."""
        self.require(offset, count)
        cdef char *at = self.base + offset // _vm.PAGE * _vm.PAGE
        cdef char *end = self.base + offset + count
        cdef uint64_t seen = 0
        cdef int result = 0
        with nogil:
            while at < end and result == 0:
                # A store of what is there, atomically: another process may be storing to the word.
                result = _fault.word32(_fault.OR, at, 0, &seen, 4)
                at += _vm.PAGE
        if result < 0:
            self.fail()

    def resident(self, size_t offset, size_t count):
        """One byte for each page of a range: 1 when the page is in memory, else 0. OSError when the kernel does not tell."""
        cdef size_t first = offset // _vm.PAGE * _vm.PAGE
        cdef size_t pages = whole_pages(offset + count - first) // _vm.PAGE
        cdef object found = PyBytes_FromStringAndSize(NULL, pages)
        cdef unsigned char *flags = <unsigned char *>PyBytes_AS_STRING(found)
        cdef int result = 0
        cdef size_t i
        if pages:
            with nogil:
                result = _vm.resident(self.base + first, pages * _vm.PAGE, flags)
        if result < 0:
            raise OSError(-result, f"cannot tell which pages are in memory: {strerror(-result).decode()}", self.path)
        for i in range(pages):
            # The other bits are reserved.
            flags[i] &= 1
        return found

    def details(self):
        """The kernel's figures of this region, in bytes by name. See `_vm.mapping_details`."""
        return _system.mapping_details(<size_t>self.base, self.reserved)


cdef int copy_guarded(Region region, uint64_t offset, Py_ssize_t count, char *to, const char *source, bint foreign) except -1:
    # Between `count` bytes at `offset` of a region and a buffer. `foreign`: nobody knows what memory the buffer is.
    cdef Region held = region
    cdef Link link
    cdef int result
    if count < WITHOUT_GIL:
        result = _fault.copy_aliased(to, source, count) if foreign else _fault.copy(to, source, count)
    else:
        # As long as it takes it counts as a view: the file must not be cut under it, nor unmapped by a close.
        attach(held, &link, held.base + offset, count)
        with nogil:
            result = _fault.copy_aliased(to, source, count) if foreign else _fault.copy(to, source, count)
        detach(&link)
    if result == -ENOMEM:
        raise MemoryError
    if result < 0:
        fault_in(held.path)
    return held.check()


cdef object read_copy(Region region, uint64_t start, Py_ssize_t count):
    cdef object made = PyBytes_FromStringAndSize(NULL, count)
    copy_guarded(region, start, count, PyBytes_AS_STRING(made), region.base + start, False)
    return made


cdef Region map_region(int fd, uint64_t want, uint64_t least, Kind kind, path):
    cdef Region region = Region.__new__(Region)
    cdef size_t got = 0
    cdef char *base
    cdef int result
    want = whole_pages(max(want, least, <uint64_t>1))
    least = whole_pages(max(least, <uint64_t>1))
    region.path = path
    region.kind = kind
    with nogil:
        base = <char *>_vm.map_reserve(want, least, &got)
        result = -errno if base == NULL else _fault.install()
    if base != NULL:
        device, inode = system.file_number(fd)
        region.base = base
        region.reserved = got
        if result == 0:
            result = _vm.map_file(base, got, fd, kind)
    if result < 0:
        raise OSError(
            -result, f"cannot map {least} bytes: {strerror(-result).decode()}"
            + ("; is the process' address space limited (ulimit -v)?" if result == -ENOMEM else ""), path)
    region.slot = _fault.take_slot(base, got, kind, device, inode)
    if region.slot == NULL:
        raise MemoryError
    return region


cdef uint64_t whole_pages(uint64_t count) noexcept nogil:
    return (count + _vm.PAGE - 1) // _vm.PAGE * _vm.PAGE


cdef int fault_in(path) except -1:
    raise MappingFault(
        _errno.EFAULT, "a page below the mapping could not be read or written: the file was truncated by others or its "
        "device failed; refresh() maps what is there now", path)
