# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""The operating system boundary: the only module of the three packages that makes system calls.

One module so that a test can fail, tear or count any call by interposing the C library, and so that a
port to another platform is a twin of this file. Linux and its C library are assumed.
"""

import errno as _errno
import os
import stat as _stat

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EACCES, EAGAIN, EINTR, ENOMEM, EOPNOTSUPP, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strerror

cdef extern from "fcntl.h" nogil:
    enum: F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW, F_RDLCK, F_WRLCK, F_UNLCK, SEEK_SET
    ctypedef struct c_flock "struct flock":
        short l_type
        short l_whence
        long long l_start
        long long l_len
        int l_pid
    int fcntl(int fd, int command, c_flock *lock)
    int fallocate(int fd, int mode, long long offset, long long count)

cdef extern from "unistd.h" nogil:
    int close_descriptor "close"(int fd)
    int ftruncate(int fd, long long size)
    int fdatasync(int fd)
    long pwrite(int fd, const void *data, size_t count, long long offset)

cdef extern from "sys/mman.h" nogil:
    enum: PROT_NONE, PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS
    enum: MAP_NORESERVE, MAP_FIXED, MS_SYNC
    void *MAP_FAILED
    void *mmap(void *address, size_t count, int protection, int flags, int fd, long long offset)
    int munmap(void *address, size_t count)
    int msync(void *address, size_t count, int flags)

cdef extern from "sys/stat.h" nogil:
    ctypedef struct c_stat "struct stat":
        long long st_size
    int fstat(int fd, c_stat *result)

cdef extern from "time.h" nogil:
    enum: CLOCK_REALTIME
    ctypedef struct c_timespec "struct timespec":
        long long tv_sec
        long tv_nsec
    int clock_gettime(int clock, c_timespec *result)

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    /* From Linux 6.8; older headers lack the name, older kernels leave the bit clear in the answer. */
    #ifndef STATX_MNT_ID_UNIQUE
    #define STATX_MNT_ID_UNIQUE 0x00004000U
    #endif
    #ifndef STATX_MNT_ID
    #define STATX_MNT_ID 0x00001000U
    #endif
    /* struct statx as the kernel's ABI lays it out; only C libraries newer than some we support name stx_mnt_id. */
    static int mmio_identity(int fd, uint64_t out[6]) {
        unsigned char raw[256] = {0};
        long r = syscall(SYS_statx, fd, "", 0x1000 /* AT_EMPTY_PATH */, 0x00000fffU | STATX_MNT_ID | STATX_MNT_ID_UNIQUE, raw);
        if (r < 0) return -errno;
        uint32_t mask, nsec, major, minor; uint64_t ino, mnt; int64_t sec;
        __builtin_memcpy(&mask, raw, 4);
        __builtin_memcpy(&ino, raw + 32, 8);
        __builtin_memcpy(&sec, raw + 80, 8);
        __builtin_memcpy(&nsec, raw + 88, 4);
        __builtin_memcpy(&major, raw + 136, 4);
        __builtin_memcpy(&minor, raw + 140, 4);
        __builtin_memcpy(&mnt, raw + 144, 8);
        out[0] = ((uint64_t)major << 32) | minor;
        out[1] = ino;
        out[2] = (mask & 0x800U) ? (uint64_t)sec : 0;
        out[3] = (mask & 0x800U) ? nsec : 0;
        out[4] = (mask & (STATX_MNT_ID | STATX_MNT_ID_UNIQUE)) ? mnt : 0;
        out[5] = (mask & STATX_MNT_ID_UNIQUE) != 0;
        return 0;
    }
    """
    int mmio_identity(int fd, uint64_t *out)

cdef size_t PAGE = os.sysconf("SC_PAGE_SIZE")
# A shared file mapping gets huge pages only where address and file offset agree modulo this.
cdef size_t HUGE = 2 << 20
cdef size_t ZERO_CHUNK = 1 << 20

PAGE_SIZE = PAGE


cdef class Descriptor:
    """An open file or directory: its descriptor and the path that errors name. Closed when the last reference goes."""

    def __cinit__(self, int fd, path):
        self.fd = fd
        self.path = path
        self.owned = True

    def __dealloc__(self):
        # Without arguments that fit, the number was never set, and 0 is somebody's standard input.
        if self.owned:
            close_descriptor(self.fd)

    def fileno(self):
        """The descriptor's number, valid while this object lives."""
        return self.fd

    def locate(self, name):
        """The path of a file in this directory."""
        return os.path.join(self.path, name)


def open_file(path, bint writable, bint create=False, bint exclusive=False, bint follow=True,
              int mode=0o600, Descriptor directory=None):
    """Open a regular file, close-on-exec; relative to `directory` if given.

    Anything but a regular file is refused (a FIFO without blocking on it). Raises the builtin OSError
    subclass with errno and filename.
    """
    cdef int flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDWR if writable else os.O_RDONLY)
    if create:
        flags |= os.O_CREAT
    if exclusive:
        flags |= os.O_EXCL
    if not follow:
        flags |= os.O_NOFOLLOW
    shown = path if directory is None else directory.locate(path)
    try:
        opened = Descriptor(os.open(path, flags, mode, dir_fd=None if directory is None else directory.fd), shown)
    except OSError as error:
        error.filename = shown
        raise
    kind = os.fstat(opened.fd).st_mode
    if _stat.S_ISDIR(kind):
        raise IsADirectoryError(_errno.EISDIR, "is a directory, not a file", shown)
    if not _stat.S_ISREG(kind):
        raise OSError(_errno.EINVAL, "is not a regular file, so it cannot be mapped", shown)
    return opened


def open_directory(path):
    """Open a directory; NotADirectoryError when it is something else."""
    return Descriptor(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path)


def anonymous_file(name):
    """A file in memory that no other process can open and that goes with its last descriptor."""
    return Descriptor(os.memfd_create(name, os.MFD_CLOEXEC), name)


def make_directory(path):
    """Create a directory, accessible to its owner alone."""
    os.mkdir(path, 0o700)


def list_directory(Descriptor directory not None):
    """The names in an open directory."""
    # Through a description of its own: the place in a listing is shared by all copies of a descriptor, in every
    # thread and forked child, and two listings at once would each see a part.
    own = Descriptor(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd), directory.path)
    return os.listdir(own.fd)


def disk_usage(Descriptor directory not None):
    """Bytes on disk of the files in an open directory."""
    total = 0
    for name in list_directory(directory):
        try:
            total += os.stat(name, dir_fd=directory.fd, follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            # Removed by another process since it was listed.
            continue
    return total


def replace_file(Descriptor directory not None, temporary, name):
    """Rename within one directory, replacing what has the name. Durable after `sync(directory)`."""
    os.rename(temporary, name, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)


def remove_file(Descriptor directory, name):
    """Unlink a file, of `directory` unless that is None; FileNotFoundError when there is none."""
    os.unlink(name, dir_fd=None if directory is None else directory.fd)


def write_at(Descriptor opened not None, bytes data not None, uint64_t offset):
    """Write all of `data` at `offset`, or raise OSError; a short write is continued."""
    cdef size_t done = 0, count = len(data)
    cdef const char *start = data
    cdef long wrote
    while done < count:
        with nogil:
            wrote = write_some(opened.fd, start + done, count - done, offset + done)
        raise_errno(<int>min(wrote, 0), opened.path)
        done += wrote


def read_at(Descriptor opened not None, size_t count, uint64_t offset):
    """Read up to `count` bytes at `offset`; fewer only at the end of the file."""
    parts = []
    while count:
        part = os.pread(opened.fd, min(count, <size_t>1 << 30), offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        count -= len(part)
    return b"".join(parts)


def set_size(Descriptor opened not None, uint64_t size):
    """Cut or extend a file to `size` bytes; what is added reads as zeros and has no blocks yet."""
    raise_errno(truncate(opened.fd, size), opened.path)


def file_size(Descriptor opened not None):
    """The length of an open file in bytes."""
    cdef long long size = size_of(opened.fd)
    if size < 0:
        raise_errno(<int>size, opened.path)
    return size


def sync(Descriptor opened not None):
    """Make a file's or directory's bytes and the metadata needed to find them durable. OSError when it fails."""
    cdef int result
    with nogil:
        result = sync_file(opened.fd)
    raise_errno(result, opened.path)


def grow(Descriptor opened not None, uint64_t size):
    """Give a file at least `size` bytes, every block allocated; OSError(ENOSPC) leaves it as it was."""
    cdef int result = 0
    cdef uint64_t now = file_size(opened)
    if now < size:
        with nogil:
            result = allocate(opened.fd, now, size - now)
    raise_errno(result, opened.path)


def identity(Descriptor opened not None):
    """What tells one mounted file from every other: (device, inode, birth seconds, birth ns, mount id, unique?)."""
    cdef uint64_t out[6]
    memset(out, 0, sizeof(out))
    raise_errno(mmio_identity(opened.fd, out), opened.path)
    return (out[0], out[1], out[2], out[3], out[4], bool(out[5]))


def boot_id():
    """The 16 bytes that name this boot of the kernel."""
    with open("/proc/sys/kernel/random/boot_id") as source:
        return bytes.fromhex(source.read().strip().replace("-", ""))


cdef uint64_t now_ns() noexcept nogil:
    # Nanoseconds since 1970; the clock of an unset machine may stand before that.
    cdef c_timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <uint64_t>max(now.tv_sec, 0) * 1000000000 + now.tv_nsec


cdef raise_errno(int result, path):
    if result < 0:
        raise OSError(-result, strerror(-result).decode(), path)


cdef long long size_of(int fd) noexcept nogil:
    cdef c_stat found
    if fstat(fd, &found) < 0:
        return -errno
    return found.st_size


cdef int sync_file(int fd) noexcept nogil:
    # Never retried: after a failed sync the kernel has marked the pages clean, a second one would lie.
    while fdatasync(fd) < 0:
        if errno != EINTR:
            return -errno
    return 0


cdef int sync_mapping(void *address, size_t count) noexcept nogil:
    if msync(address, count, MS_SYNC) < 0:
        return -errno
    return 0


cdef int truncate(int fd, uint64_t size) noexcept nogil:
    while ftruncate(fd, size) < 0:
        if errno != EINTR:
            return -errno
    return 0


cdef int allocate(int fd, uint64_t offset, uint64_t count) noexcept nogil:
    # All or nothing: on failure the file has the size it had.
    cdef long long before = size_of(fd)
    cdef int failure
    if before < 0:
        return <int>before
    while fallocate(fd, 0, offset, count) < 0:
        if errno == EINTR:
            continue
        failure = -errno
        if failure == -EOPNOTSUPP:
            failure = write_zeros(fd, offset, count)
            if failure == 0:
                return 0
        ftruncate(fd, before)
        return failure
    return 0


cdef int write_zeros(int fd, uint64_t offset, uint64_t count) noexcept nogil:
    # Only ever beyond the end of the file, where it cannot overwrite anything.
    cdef void *zeros = calloc(1, ZERO_CHUNK)
    cdef long wrote = 0
    if zeros == NULL:
        return -ENOMEM
    while count:
        wrote = write_some(fd, zeros, min(count, ZERO_CHUNK), offset)
        if wrote < 0:
            break
        offset += wrote
        count -= wrote
    free(zeros)
    return <int>min(wrote, 0)


cdef long write_some(int fd, const void *data, size_t count, uint64_t offset) noexcept nogil:
    # The number of bytes written, or a negative errno.
    cdef long wrote
    while True:
        wrote = pwrite(fd, data, count, offset)
        if wrote >= 0:
            return wrote
        if errno != EINTR:
            return -errno


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


cdef int map_file(void *address, size_t count, int fd, bint writable) noexcept nogil:
    # Over a reservation. Pages beyond the end of the file become usable when the file grows.
    if mmap(address, count, PROT_READ | (PROT_WRITE if writable else 0), MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED:
        return -errno
    return 0


cdef int unmap(void *address, size_t count) noexcept nogil:
    if munmap(address, count) < 0:
        return -errno
    return 0


def lock_byte(Descriptor opened not None, uint64_t offset, bint exclusive, bint wait=False):
    """Lock one byte of a file for this open file description; False when another holds it.

    Open-file-description locks go with the descriptor: the kernel drops them when the last copy is
    closed, however the process ends, and two handles of one process exclude each other. With `wait`
    the call blocks, without the GIL, until the lock is free; signal handlers run meanwhile.
    """
    cdef int result
    while True:
        with nogil:
            result = set_lock(opened.fd, offset, F_WRLCK if exclusive else F_RDLCK, wait)
        if result == -EINTR:
            PyErr_CheckSignals()
        elif result == -EAGAIN or result == -EACCES:
            return False
        else:
            raise_errno(result, opened.path)
            return True


def unlock_byte(Descriptor opened not None, uint64_t offset):
    """Give up a lock taken with `lock_byte`."""
    raise_errno(set_lock(opened.fd, offset, F_UNLCK, False), opened.path)


def byte_is_locked(Descriptor opened not None, uint64_t offset):
    """Whether another open file description holds the byte, shared or not. Works on a read-only descriptor."""
    cdef c_flock request = one_byte(offset, F_WRLCK)
    if fcntl(opened.fd, F_OFD_GETLK, &request) < 0:
        raise_errno(-errno, opened.path)
    return request.l_type != F_UNLCK


cdef c_flock one_byte(uint64_t offset, short kind) noexcept nogil:
    cdef c_flock request
    memset(&request, 0, sizeof(request))
    request.l_type = kind
    request.l_whence = SEEK_SET
    request.l_start = offset
    request.l_len = 1
    return request


cdef int set_lock(int fd, uint64_t offset, short kind, bint wait) noexcept nogil:
    cdef c_flock request = one_byte(offset, kind)
    if fcntl(fd, F_OFD_SETLKW if wait else F_OFD_SETLK, &request) < 0:
        return -errno
    return 0
