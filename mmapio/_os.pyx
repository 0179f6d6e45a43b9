# cython: language_level=3, auto_pickle=False, boundscheck=False, wraparound=False
"""The operating system boundary for files, directories and locks on their bytes.

Four modules make all system calls of the three packages: this one, _vm (address space and pages), _wait (sleeping on a
word) and _fault (pages that are not there). So a test can fail, tear or count any call by interposing the C library, and a
port to another platform is twins of these four. What Linux and macOS do differently is in _platform.h.
"""

import errno as _errno
import os
import stat as _stat

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EACCES, EAGAIN, EEXIST, EFAULT, EINTR, EINVAL, ENOMEM, ENOSYS, EOPNOTSUPP, errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strerror

cdef extern from "_platform.h" nogil:
    enum: F_GETFL, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW, F_RDLCK, F_WRLCK, F_UNLCK, SEEK_SET, CLOCK_REALTIME
    ctypedef struct c_flock "struct flock":
        short l_type
        short l_whence
        long long l_start
        long long l_len
        int l_pid

    ctypedef struct c_timespec "struct timespec":
        long long tv_sec
        long tv_nsec
    int fcntl(int fd, int command, c_flock *lock)
    int ftruncate(int fd, long long size)
    long pwrite(int fd, const void *data, size_t count, long long offset)
    int clock_gettime(int clock, c_timespec *result)
    int mmio_sync_file(int fd, void *base, size_t count)
    int mmio_sync_all(int fd)
    int mmio_allocate(int fd, uint64_t offset, uint64_t count)
    int64_t mmio_append(int fd, const void *data, size_t count, uint64_t end)
    int mmio_zero_range(int fd, uint64_t offset, uint64_t count)
    int mmio_punch_hole(int fd, uint64_t offset, uint64_t count)
    int mmio_reflink(int to, int source)
    int mmio_rename_new(int directory, const char *source, const char *to)
    int64_t mmio_copy_range(int to, int source, uint64_t offset, size_t count)
    int mmio_prefetch_file(int fd, uint64_t offset, uint64_t count)
    int mmio_boot_uuid(char *text, size_t count)
    int mmio_identity(int fd, uint64_t *out)

cdef size_t ZERO_CHUNK = 1 << 20
# One call of the kernel's, so that a copy of any size can be interrupted.
cdef size_t COPY_CHUNK = 64 << 20
# What the kernel says when it cannot copy between two files by itself.
CANNOT_COPY = tuple([-getattr(_errno, name) for name in ("EXDEV", "EOPNOTSUPP", "ENOTSUP", "ENOSYS", "EINVAL")])


cdef class Descriptor:
    """An open file or directory: its descriptor and the path that errors name. Closed when the last reference goes."""

    def __cinit__(self, int fd, path):
        self.fd = fd
        self.path = path
        self.owned = True

    def __dealloc__(self):
        # Without arguments that fit, the number was never set, and 0 is somebody's standard input.
        if self.owned:
            close_file(self.fd)

    def fileno(self):
        """The descriptor's number, valid while this object lives."""
        return self.fd

    def close_in_child(self):
        """In a forked child: close it, though threads of the parent may have left references that are never dropped."""
        if self.owned:
            close_file(self.fd)
        self.fd, self.owned = -1, False

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
    check_regular(opened)
    return opened


cdef check_regular(Descriptor opened):
    kind = os.fstat(opened.fd).st_mode
    if _stat.S_ISDIR(kind):
        raise IsADirectoryError(_errno.EISDIR, "is a directory, not a file", opened.path)
    if not _stat.S_ISREG(kind):
        raise OSError(_errno.EINVAL, "is not a regular file, so it cannot be mapped", opened.path)


def open_directory(path, Descriptor directory=None):
    """Open a directory, relative to `directory` if given; NotADirectoryError when it is something else."""
    cdef int flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if directory is None:
        return Descriptor(os.open(path, flags), path)
    return Descriptor(os.open(path, flags | os.O_NOFOLLOW, dir_fd=directory.fd), directory.locate(path))


def anonymous_file(name):
    """A file, in memory where there is such a thing, that no other process can open and that goes with its last descriptor."""
    if hasattr(os, "memfd_create"):
        return Descriptor(os.memfd_create(name, os.MFD_CLOEXEC), name)
    place = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"{name}.{os.urandom(8).hex()}")
    made = Descriptor(os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), name)
    os.unlink(place)
    return made


def make_directory(path, Descriptor directory=None):
    """Create a directory, accessible to its owner alone; relative to `directory` if given."""
    os.mkdir(path, 0o700, dir_fd=None if directory is None else directory.fd)


def kind_of(Descriptor directory not None, name):
    """What a name in an open directory stands for: "file", "directory", "nothing", or "other" for a link, a FIFO and their like."""
    try:
        kind = os.stat(name, dir_fd=directory.fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return "nothing"
    return "file" if _stat.S_ISREG(kind) else "directory" if _stat.S_ISDIR(kind) else "other"


def remove_directory(Descriptor directory not None, name):
    """Remove an empty directory of an open directory."""
    os.rmdir(name, dir_fd=directory.fd)


def list_directory(Descriptor directory not None):
    """The names in an open directory."""
    # Through a description of its own: the place in a listing is shared by all copies of a descriptor, in every
    # thread and forked child, and two listings at once would each see a part.
    own = Descriptor(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd), directory.path)
    return os.listdir(own.fd)


def disk_usage(Descriptor directory not None):
    """Bytes on disk of the files in an open directory."""
    return sum(file_usage(directory, name) for name in list_directory(directory))


def file_usage(Descriptor directory not None, name):
    """Bytes on disk of a file in an open directory; 0 when it is not there, perhaps any more."""
    try:
        return os.stat(name, dir_fd=directory.fd, follow_symlinks=False).st_blocks * 512
    except FileNotFoundError:
        return 0


def check_replaceable(path):
    """Raise unless `path` names a regular file or nothing: nothing else may be renamed over."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if _stat.S_ISDIR(kind):
        raise IsADirectoryError(_errno.EISDIR, "is a directory, not a file", path)
    if not _stat.S_ISREG(kind):
        raise OSError(_errno.EINVAL, "is not a regular file, so it cannot be replaced by one", path)


def replace_file(Descriptor directory not None, temporary, name):
    """Rename within one directory, replacing what has the name. Durable after `sync(directory)`."""
    os.rename(temporary, name, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)


def name_file(Descriptor opened not None, Descriptor directory not None, name):
    """Give a file that was made without a name a first one. Durable after `sync(directory)`. OSError where there is no /proc, too."""
    # Only with a directory given does it go by the file that this leads to.
    os.link(f"/proc/self/fd/{opened.fd}", name, dst_dir_fd=directory.fd)
    opened.path = directory.locate(name)


def rename_new(Descriptor directory not None, temporary, name):
    """Rename within one directory to a name that nothing has: FileExistsError. Durable after `sync(directory)`."""
    cdef bytes source = os.fsencode(temporary), to = os.fsencode(name)
    cdef int result = mmio_rename_new(directory.fd, source, to)
    if result == -EINVAL or result == -ENOSYS:
        # A file system, or a kernel, that knows no such renaming. Whoever else wants the name at this instant may lose.
        if name in list_directory(directory):
            result = -EEXIST
        else:
            replace_file(directory, temporary, name)
            result = 0
    raise_errno(result, directory.locate(name))


def remove_file(Descriptor directory, name):
    """Unlink a file, of `directory` unless that is None; FileNotFoundError when there is none."""
    os.unlink(name, dir_fd=None if directory is None else directory.fd)


def write_at(Descriptor opened not None, bytes data not None, uint64_t offset):
    """Write all of `data` at `offset`, or raise OSError; a short write is continued."""
    cdef size_t count = len(data)
    cdef const char *start = data
    cdef int result
    with nogil:
        result = write_all(opened.fd, start, count, offset)
    raise_errno(result, opened.path)


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
    cdef int result
    with nogil:
        result = truncate(opened.fd, size)
    raise_errno(result, opened.path)


def file_size(Descriptor opened not None):
    """The length of an open file in bytes."""
    cdef long long size = size_of(opened.fd)
    if size < 0:
        raise_errno(<int>size, opened.path)
    return size


def sync(Descriptor opened not None, bint metadata=False):
    """Make a file's or directory's bytes and the metadata needed to find them durable; with `metadata`, all of it.

    OSError when it fails.
    """
    cdef int result
    with nogil:
        result = mmio_sync_all(opened.fd) if metadata else sync_file(opened.fd, NULL, 0)
    raise_errno(result, opened.path)


def open_parent(Descriptor opened not None):
    """The directory that a file was opened in; None where it may not be opened."""
    parent = os.path.dirname(opened.path) or (b"." if isinstance(opened.path, bytes) else ".")
    try:
        return open_directory(parent)
    except OSError:
        return None


def punch_hole(Descriptor opened not None, uint64_t offset, uint64_t count):
    """Give the blocks of a range back to the file system; it reads as zeros. OSError(EOPNOTSUPP) where that cannot be done."""
    cdef int result
    with nogil:
        result = mmio_punch_hole(opened.fd, offset, count)
    raise_errno(result, opened.path)


def prefetch(Descriptor opened not None, uint64_t offset, uint64_t count):
    """Have the kernel read a range into the page cache. A hint: it returns before the bytes are there."""
    cdef int result
    with nogil:
        result = mmio_prefetch_file(opened.fd, offset, count)
    raise_errno(result, opened.path)


def copy_content(Descriptor source not None, Descriptor target not None, bint permissions=False):
    """Make the empty file `target` equal to `source`, and return how: "reflink", "copy_file_range" or "read and write".

    Blocks are shared where the file system can; else the kernel copies; else this does. Holes stay holes.
    With `permissions` those are copied too.
    """
    cdef uint64_t size = file_size(source)
    cdef int result
    if permissions:
        os.fchmod(target.fd, _stat.S_IMODE(os.fstat(source.fd).st_mode))
    with nogil:
        # It may have to write back what is dirty of the source first.
        result = mmio_reflink(target.fd, source.fd)
    if result == 0:
        return "reflink"
    size, how = copy_start(source, target, size)
    set_size(target, size)
    return how


def copy_start(Descriptor source not None, Descriptor target not None, uint64_t size):
    """Copy the first `size` bytes to the empty file `target`; the bytes there were, and "copy_file_range" or "read and write".

    The kernel copies; where it cannot, this does. Holes are left out, also at the end: the length of `target` is for the caller to set.
    """
    cdef uint64_t offset = 0, end = 0
    how = "copy_file_range"
    size = min(size, <uint64_t>file_size(source))
    while offset < size:
        offset, end = data_from(source.fd, offset, size)
        while offset < end and how == "copy_file_range":
            done = copy_some(target.fd, source.fd, offset, end - offset)
            PyErr_CheckSignals()
            if done < 0:
                if done not in CANNOT_COPY:
                    raise_errno(done, target.path)
                how = "read and write"
            elif done == 0:
                end = size = offset  # the file has become shorter
            offset += max(done, 0)
        while offset < end:
            part = read_at(source, min(end - offset, 1 << 20), offset)
            if not part:
                end = size = offset
            write_at(target, part, offset)
            offset += len(part)
    return size, how


def data_from(int fd, uint64_t offset, uint64_t size):
    """(start, end) of the next range of a file that is no hole; (size, size) when there is none."""
    if not hasattr(os, "SEEK_DATA"):
        return offset, size
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
        return min(start, size), min(os.lseek(fd, start, os.SEEK_HOLE), size)
    except OSError as error:
        # ENXIO: nothing but a hole up to the end. Else the file system knows of none.
        return (size, size) if error.errno == _errno.ENXIO else (offset, size)


cdef long copy_some(int target, int source, uint64_t offset, uint64_t count):
    cdef long done = -EINTR
    while done == -EINTR:
        with nogil:
            done = mmio_copy_range(target, source, offset, min(count, COPY_CHUNK))
    return done


def status(path):
    """The system's record of what a path names. FileNotFoundError when that is nothing."""
    return os.stat(path)


def duplicate(file, path):
    """A descriptor of one's own for what `file`, an open file or a descriptor's number, refers to; it must be a regular file."""
    number = file if isinstance(file, int) else file.fileno()
    try:
        made = Descriptor(os.dup(number), path)
    except OSError as error:
        error.filename = path
        raise
    check_regular(made)
    return made


def reopen(Descriptor opened not None):
    """The same file through an open file description of its own, with locks of its own; also when its name is gone."""
    # On macOS /dev/fd would be the same description again.
    place = f"/proc/self/fd/{opened.fd}" if os.path.isdir("/proc/self/fd") else opened.path
    return Descriptor(os.open(place, os.O_CLOEXEC | (os.O_RDWR if is_writable(opened) else os.O_RDONLY)), opened.path)


cdef int access_mode(int fd):
    return fcntl(fd, F_GETFL, NULL) & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)


def is_writable(Descriptor opened not None):
    """Whether a descriptor allows writing."""
    return access_mode(opened.fd) != os.O_RDONLY


def is_readable(Descriptor opened not None):
    """Whether a descriptor allows reading."""
    return access_mode(opened.fd) != os.O_WRONLY


def file_object(Descriptor opened not None):
    """An open binary file with a descriptor of its own for the same file, positioned where that was."""
    return os.fdopen(os.dup(opened.fd), "r+b" if is_writable(opened) else "rb")


def grow(Descriptor opened not None, uint64_t size, start=None):
    """Give a file at least `size` bytes, every block from `start`, or its end, on allocated; OSError(ENOSPC) leaves it as long as it was."""
    cdef int result = 0
    cdef uint64_t now = file_size(opened) if start is None else start
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


def file_number(int fd):
    """(device, inode) of an open file."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def boot_id():
    """The 16 bytes that name this boot of the kernel."""
    cdef char text[40]
    if mmio_boot_uuid(text, sizeof(text)) == 0:
        return bytes.fromhex(text[:36].decode().replace("-", ""))
    cdef Descriptor source = Descriptor(os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC), None)
    return bytes.fromhex(os.read(source.fd, sizeof(text)).decode().strip().replace("-", ""))


cdef uint64_t now_ns() noexcept nogil:
    # Nanoseconds since 1970; the clock of an unset machine may stand before that.
    cdef c_timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <uint64_t>max(now.tv_sec, 0) * 1000000000 + now.tv_nsec


cdef raise_errno(int result, path):
    if result < 0:
        raise OSError(-result, strerror(-result).decode(), path)


cdef int sync_file(int fd, void *base, size_t count) noexcept nogil:
    # Never retried: after a failed sync the kernel has marked the pages clean, a second one would lie.
    return mmio_sync_file(fd, base, count)


cdef int truncate(int fd, uint64_t size) noexcept nogil:
    while ftruncate(fd, size) < 0:
        if errno != EINTR:
            return -errno
    return 0


cdef int allocate(int fd, uint64_t offset, uint64_t count) noexcept nogil:
    # All or nothing: on failure the file has the size it had, or that another has given it meanwhile. Never cuts
    # what another has added: the blocks come first, and then the length goes up, which no call can bring down.
    cdef int failure
    while True:
        failure = mmio_allocate(fd, offset, count)
        if failure == -EINTR:
            continue
        if failure == -EOPNOTSUPP:
            failure = write_zeros(fd, offset, offset + count)
        if failure < 0 and size_of(fd) == <long long>offset:
            # Gives back the blocks that were to be had.
            ftruncate(fd, offset)
        return failure


cdef int write_zeros(int fd, uint64_t start, uint64_t end) noexcept nogil:
    cdef uint64_t reached = 0
    cdef int failure = extend_with_zeros(fd, end, ZERO_CHUNK, &reached)
    # As far as all of it is still what was written here.
    if failure < 0 and reached > start and size_of(fd) == <long long>reached:
        ftruncate(fd, start)
    return failure


cdef int extend_with_zeros(int fd, uint64_t end, size_t piece, uint64_t *reached) noexcept nogil:
    # Only ever at the end of the file, wherever it is by now. One that was cut below `reached` is left so: -EFAULT.
    cdef void *zeros = calloc(1, piece)
    cdef int64_t wrote = 0, size
    if zeros == NULL:
        return -ENOMEM
    while True:
        size = size_of(fd)
        if size < 0 or <uint64_t>size < reached[0]:
            wrote = -EFAULT if size >= 0 else size
            break
        reached[0] = size
        if <uint64_t>size >= end:
            break
        wrote = mmio_append(fd, zeros, min(end - <uint64_t>size, piece), size)
        if wrote < 0:
            break
        reached[0] += wrote
    free(zeros)
    return <int>min(wrote, 0)


cdef int allocate_written(int fd, uint64_t offset, uint64_t count, size_t piece) noexcept nogil:
    # As `allocate`, from the end of the file on, but the pages are in memory then and hold zeros, `piece` bytes at a time: what the
    # kernel keeps together, and writes together. On failure the file may have grown by some of them.
    cdef uint64_t reached = offset
    cdef int failure
    while True:
        failure = set_blocks_aside(fd, offset, count)
        if failure < 0 and failure != -EOPNOTSUPP:
            if failure == -EINTR:
                continue
            return failure
        return extend_with_zeros(fd, offset + count, piece, &reached)


cdef int zero_range(int fd, uint64_t offset, uint64_t count) noexcept nogil:
    # Of zeros in memory, zeros of which there is none; -EOPNOTSUPP and no change where that cannot be. XFS gives the blocks back and takes
    # others: when another has taken the room in between, it is asked for once more, and whatever fails then leaves a hole.
    cdef int failure = -EINTR
    while failure == -EINTR:
        failure = mmio_zero_range(fd, offset, count)
        if failure < 0 and failure != -EINTR and failure != -EOPNOTSUPP:
            failure = set_blocks_aside(fd, offset, count)
    return failure


cdef int write_all(int fd, const void *data, size_t count, uint64_t offset) noexcept nogil:
    # What was written before an error stays.
    cdef long wrote
    while count:
        wrote = write_some(fd, data, count, offset)
        if wrote < 0:
            return <int>wrote
        data = <const char *>data + wrote
        count -= wrote
        offset += wrote
    return 0


cdef long write_some(int fd, const void *data, size_t count, uint64_t offset) noexcept nogil:
    # The number of bytes written, or a negative errno.
    cdef long wrote
    while True:
        wrote = pwrite(fd, data, count, offset)
        if wrote >= 0:
            return wrote
        if errno != EINTR:
            return -errno


def lock_byte(Descriptor opened not None, uint64_t offset, bint exclusive, bint wait=False):
    """Lock one byte of a file for this open file description; False when another holds it.

    Open-file-description locks go with the descriptor: the kernel drops them when the last copy is
    closed, however the process ends, and two handles of one process exclude each other. With `wait`
    the call blocks, without the GIL, until the lock is free; signal handlers run meanwhile.
    """
    cdef int result
    while True:
        with nogil:
            result = set_lock(opened.fd, lock_of(F_WRLCK if exclusive else F_RDLCK, offset, 1), wait)
        if result == -EINTR:
            PyErr_CheckSignals()
        elif result == -EAGAIN or result == -EACCES:
            return False
        else:
            raise_errno(result, opened.path)
            return True


def unlock_byte(Descriptor opened not None, uint64_t offset, uint64_t count=1):
    """Give up a lock taken with `lock_byte`, or `count` of them, 0 for all from there on; no copy of the descriptor holds it any more."""
    raise_errno(set_lock(opened.fd, lock_of(F_UNLCK, offset, count), False), opened.path)


def byte_is_locked(Descriptor opened not None, uint64_t offset, uint64_t count=1):
    """Whether another open file description holds the byte, or one of `count`, shared or not. Works on a read-only descriptor."""
    cdef c_flock request = lock_of(F_WRLCK, offset, count)
    if fcntl(opened.fd, F_OFD_GETLK, &request) < 0:
        raise_errno(-errno, opened.path)
    return request.l_type != F_UNLCK


cdef c_flock lock_of(short kind, uint64_t offset, uint64_t count) noexcept nogil:
    return c_flock(l_type=kind, l_whence=SEEK_SET, l_start=offset, l_len=count, l_pid=0)


cdef int set_lock(int fd, c_flock request, bint wait) noexcept nogil:
    if fcntl(fd, F_OFD_SETLKW if wait else F_OFD_SETLK, &request) < 0:
        return -errno
    return 0
