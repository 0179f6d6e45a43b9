# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""The operating system boundary for address space and pages: mapping, advice, locking, residency."""

import os

from libc.errno cimport ENOMEM, errno
from libc.stdint cimport uint64_t

cdef extern from "_platform.h" nogil:
    enum: PROT_NONE, PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED
    enum: MMIO_ADVICE_COUNT
    void *MAP_FAILED
    void *mmap(void *address, size_t count, int protection, int flags, int fd, long long offset)
    int munmap(void *address, size_t count)
    int mlock(const void *address, size_t count)
    int munlock(const void *address, size_t count)
    const int *mmio_advice
    int mmio_sync_range(int fd, void *address, size_t count)
    int mmio_start_writeback(int fd, void *address, uint64_t offset, uint64_t count)
    int mmio_advise(void *address, size_t count, int advice)
    int mmio_resident(void *address, size_t count, unsigned char *pages)

cdef size_t PAGE = os.sysconf("SC_PAGE_SIZE")
# A shared file mapping gets huge pages only where address and file offset agree modulo this.
cdef size_t HUGE = 2 << 20

PAGE_SIZE = PAGE

ADVICE_SUPPORTED = tuple([mmio_advice[number] >= 0 for number in range(MMIO_ADVICE_COUNT)])
"""For each piece of advice by number, whether this platform has a call for it; the kernel may still refuse."""


cdef void *map_reserve(size_t want, size_t least, size_t *got) noexcept nogil:
    # Address space only, huge-page aligned. Halved until the process' limit admits it; NULL (errno set) below `least`.
    cdef char *raw
    cdef size_t lead
    while True:
        raw = <char *>mmap(NULL, want + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if raw != MAP_FAILED:
            break
        if want <= least or errno != ENOMEM:
            return NULL
        want = max(least, (want // 2 + PAGE - 1) & ~(PAGE - 1))
    lead = (HUGE - <size_t>raw % HUGE) % HUGE
    if lead:
        munmap(raw, lead)
    munmap(raw + lead + want, HUGE - lead)
    got[0] = want
    return raw + lead


cdef int map_file(void *address, size_t count, int fd, Kind kind) noexcept nogil:
    # Over a reservation; on hugetlbfs no page may be set aside for all of it. Pages beyond the end of the file become usable when the file grows.
    cdef int protection = PROT_READ if kind == READ_ONLY else PROT_READ | PROT_WRITE
    cdef int flags = MAP_PRIVATE | MAP_NORESERVE if kind == COPY_ON_WRITE else MAP_SHARED | MAP_NORESERVE
    if mmap(address, count, protection, flags | MAP_FIXED, fd, 0) == MAP_FAILED:
        return -errno
    return 0


cdef int unmap(void *address, size_t count) noexcept nogil:
    return -errno if munmap(address, count) < 0 else 0


cdef int sync_range(int fd, void *address, size_t count) noexcept nogil:
    return mmio_sync_range(fd, address, count)


cdef int start_writeback(int fd, void *address, uint64_t offset, uint64_t count) noexcept nogil:
    return mmio_start_writeback(fd, address, offset, count)


cdef int advise(void *address, size_t count, int advice) noexcept nogil:
    return mmio_advise(address, count, advice)


cdef int lock(void *address, size_t count) noexcept nogil:
    return -errno if mlock(address, count) < 0 else 0


cdef int unlock(void *address, size_t count) noexcept nogil:
    return -errno if munlock(address, count) < 0 else 0


cdef int resident(void *address, size_t count, unsigned char *pages) noexcept nogil:
    return mmio_resident(address, count, pages)


def mapping_details(uint64_t address, uint64_t count):
    """The kernel's figures of the mappings within a range of addresses, in bytes by name (``Rss``, ``FilePmdMapped``, ...).

    ``advised`` is among them where huge pages were asked for.
    Empty where the kernel tells nothing (no /proc). Costs a walk over the process' page tables.
    """
    found = {}
    inside = False
    try:
        with open("/proc/self/smaps") as source:
            for line in source:
                name, _, rest = line.partition(" ")
                if not name.endswith(":"):
                    inside = address <= int(name.partition("-")[0], 16) < address + count
                elif inside and rest.endswith("kB\n"):
                    name = name.removesuffix(":")
                    found[name] = found.get(name, 0) + int(rest.split()[0]) * 1024
                elif inside and name == "VmFlags:" and "hg" in rest.split():
                    found["advised"] = 1
    except FileNotFoundError:
        return {}
    return found


def huge_page_policy():
    """What the kernel does about huge pages, by the name of the switch; empty where it has none."""
    found = {}
    for name in ("enabled", "shmem_enabled", "defrag"):
        try:
            with open(f"/sys/kernel/mm/transparent_hugepage/{name}") as source:
                text = source.read()
        except OSError:
            continue
        chosen = text.partition("[")[2].partition("]")[0]
        found[name] = chosen or text.strip()
    return found


def hugetlb_block(int fd):
    """The page size in bytes of a file on hugetlbfs; 0 for a file on any other file system."""
    # HUGETLBFS_MAGIC. Its files tell their page size as the block size.
    found = os.fstatvfs(fd)
    try:
        with open("/proc/self/mountinfo") as source:
            device = os.fstat(fd).st_dev
            wanted = f"{os.major(device)}:{os.minor(device)}"
            if any(line.split()[2] == wanted and " - hugetlbfs " in line for line in source):
                return found.f_bsize
    except FileNotFoundError:
        pass
    return 0
