# cython: language_level=3, auto_pickle=False
"""The memory that a handle's file is mapped by: where it is stored to, where its views point, and what growth left behind."""

import errno as _errno
import weakref

cimport cython
from libc.stdint cimport uint64_t
from libc.string cimport strerror

from mmapio cimport _os
from mmapio._fault cimport CHECKED
from mmapio._os cimport Descriptor
from mmapio._vm cimport READ_ONLY, READ_WRITE
from mmapio.account cimport Account
from mmapio.region cimport Region, fault_in, map_region

from mmapio.errors import Closed, OutOfBounds


@cython.no_gc_clear
cdef class MappedRegions(Account):
    """The regions of one handle, and the length of its file."""

    def _regions(self):
        # The region of stores, and that of views where it is another.
        self.check()
        cdef Region viewed = self.view_region(self.length)
        return [self.region] if viewed is self.region else [self.region, viewed]

    def _mark_if_cut(self):
        # After the kernel refused a page: on a full disk nothing is lost, of a file that was cut something is.
        self.check_open()
        if self.learn_length() < self.length:
            self.region.slot.faulted = 1

    def _want_huge_pages(self):
        # Also of what this is mapped to later. False when the kernel refuses.
        self.check()
        self.huge = True
        return self.region.ask_for_huge_pages()

    cdef int check(self) except -1:
        return 0 if sound(self) else self.find_fault()

    cdef int check_open(self) except -1:
        if self.region is None:
            raise Closed(_errno.EBADF, "the mapped file is closed; open it again", self._path)
        return 0

    cdef int find_fault(self) except -1:
        # Raises what keeps this handle from being used; nothing, when it was only not obvious.
        self.check_open()
        if self.faulted():
            fault_in(self._path)
        self.forget_dead()
        return 0

    cdef bint faulted(self) noexcept:
        # Also below a view that growth has left behind.
        cdef Region old
        if self.region.slot.faulted or (self.viewed is not None and self.viewed.slot.faulted):
            return True
        for each in self.retired:
            old = each()
            if old is not None and old.slot.faulted and not old.forgiven:
                return True
        return False

    cdef int check_range(self, uint64_t offset, uint64_t count) except -1:
        return self.refuse_range(offset, count) if offset > self.length or count > self.length - offset else 0

    cdef int refuse_range(self, uint64_t offset, uint64_t count) except -1:
        raise OutOfBounds(
            _errno.EINVAL, f"{count} bytes at offset {offset} reach outside the {self.length} bytes mapped", self._path)

    cdef Region view_region(self, uint64_t end):
        # Views of a writable file point into a mapping of their own, which cannot be stored to: there a fault below somebody
        # else's code can be answered with zero pages, for no later store can be lost in them.
        cdef Region fresh, region = self.region
        # Another thread may close the handle while this one maps, and the descriptor's number be another file's.
        cdef Descriptor held = self.descriptor
        if self.viewed is None or self.viewed.reserved < end:
            if self.viewed is not None:
                self.retire(self.viewed)
                self.viewed = None
            try:
                fresh = map_region(held.fd, region.reserved, max(self.length, end), READ_ONLY, self._path)
            except OSError:
                # Address space is short: better a view without that than none.
                fresh = region
            self.check_open()
            if self.viewed is not None and self.viewed.reserved >= end:
                return self.viewed  # another thread's, who was faster
            self.viewed = fresh
            return fresh
        return self.viewed

    cdef Region map_stores(self, int fd, uint64_t want, uint64_t least):
        cdef Region made = map_region(fd, want, least, self.kind, self._path)
        if self.checked:
            made.slot.kind = CHECKED
        return made

    cdef int renew(self, uint64_t want, uint64_t least) except -1:
        # Another thread may close the handle while this one maps, and the descriptor's number be another file's.
        cdef Descriptor held = self.descriptor
        cdef Region old, fresh = self.map_stores(held.fd, want, least)
        if self.huge:
            fresh.ask_for_huge_pages()
        self.check_open()
        if self.faulted():
            # From a fault this is the way out: what was mapped before is not asked for faults again. Its views still count.
            for each in [self.region, self.viewed, *[reference() for reference in self.retired]]:
                old = each
                if old is not None:
                    old.forgiven = True
        self.retire(self.region)
        if self.viewed is not None and self.viewed is not self.region:
            self.retire(self.viewed)
        self.region = fresh
        self.base = fresh.base
        self.viewed = None if self.kind == READ_WRITE else fresh
        return 0

    cdef int retire(self, Region region) except -1:
        # Its views go on, and still count when the file is to shrink.
        self.forget_dead()
        self.retired.append(weakref.ref(region))
        return 0

    cdef int forget_dead(self) except -1:
        # Those that no view is left of: without any, there is less to check in each call.
        for each in self.retired:
            if each() is None:
                self.retired = [other for other in self.retired if other() is not None]
                break
        return 0

    cdef uint64_t furthest_view(self) except? 0:
        cdef uint64_t end = self.region.last_view_end()
        cdef Region old
        if self.viewed is not None:
            end = max(end, self.viewed.last_view_end())
        for each in self.retired:
            old = each()
            if old is not None:
                end = max(end, old.last_view_end())
        return end

    cdef uint64_t learn_length(self) except? 0:
        cdef long long found = _os.size_of(self.descriptor.fd)
        if found < 0:
            raise OSError(<int>-found, strerror(<int>-found).decode(), self._path)
        return found
