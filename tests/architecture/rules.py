"""Every limit and allow-list of the architecture tests, each stated here and nowhere else."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Lines of a source file, of any kind and anywhere in the project.
FILE_LINES_MAX = 600

#: Lines of a Python function from ``def`` to its end. Its docstring is not counted: that may be long.
FUNCTION_LINES_MAX = 80

#: What may stand at the top of the repository.
TOP_LEVEL = _words(
    ".ci .gitignore LICENSE README.md benchmarks docs examples mmapio mmapkv mmaplog pyproject.toml tests"
)

#: The modules and headers that may make system calls on file data, mappings and locks.
BOUNDARY = frozenset(f"mmapio.{name}" for name in _words("_os _vm _wait _fault _platform _mutex"))

#: Names of `os` that touch neither file data nor a lock: names, numbers, permissions and the process.
OS_ALLOWED = _words(
    """
    DirEntry PathLike devnull environ error fsdecode fsencode fspath get_terminal_size getenv getpid
    getppid linesep listdir name path register_at_fork scandir sep strerror
    access F_OK R_OK W_OK X_OK cpu_count getrandom process_cpu_count sched_getaffinity urandom
    O_APPEND O_CLOEXEC O_CREAT O_DIRECTORY O_EXCL O_NOFOLLOW O_NONBLOCK O_RDONLY O_RDWR O_TRUNC O_WRONLY
    """
)

#: Python modules that would go round the boundary.
PYTHON_FORBIDDEN = _words("_io ctypes fcntl io mmap multiprocessing posix shutil socket tempfile")

#: Methods of `pathlib.Path` that change, open or read a file.
PATH_METHODS_FORBIDDEN = _words(
    """
    chmod hardlink_to mkdir open read_bytes read_text rename rmdir symlink_to touch unlink
    write_bytes write_text
    """
)

#: Where native code may cimport from, the project apart.
CIMPORT_ALLOWED = _words(
    "cpython cython libc.errno libc.limits libc.math libc.stddef libc.stdint libc.stdlib libc.string"
)

#: C headers that a module outside the boundary may include.
HEADERS_ALLOWED = _words(
    """
    * Python.h errno.h immintrin.h limits.h math.h stdatomic.h stdbool.h stddef.h stdint.h stdlib.h string.h
    """
)

#: C functions that a module outside the boundary may not name: Python.h declares many of them by itself.
C_FORBIDDEN = _words(
    """
    close copy_file_range creat dup dup2 dup3 fallocate fclose fcntl fdatasync fdopen fflush flock fopen
    fork fread fseek fstat fsync ftruncate futex fwrite ioctl link linkat lockf lseek lstat madvise
    memfd_create mincore mkdir mkdirat mlock mlock2 mlockall mmap mmap64 mprotect mremap msync munlock
    munmap open open64 openat openat2 posix_fadvise posix_fallocate posix_madvise pread pread64 preadv
    preadv2 pwrite pwrite64 pwritev pwritev2 read readahead readv remap_file_pages rename renameat
    renameat2 rmdir sendfile shm_open splice stat statx sync sync_file_range syncfs syscall truncate
    unlink unlinkat userfaultfd write writev
    """
)

#: Public modules that a user imports by name, because no package may import them by itself.
PUBLIC_MODULES: frozenset[str] = _words("mmapkv.dbm")

#: What single modules may use beyond the above.
EXCEPTIONS: dict[str, frozenset[str]] = {
    # The base class of a cursor over memory, which opens nothing.
    "mmapio.reader": _words("io"),
    # The address of XXH3 in the wheel of xxhash.
    "mmaplog.checksum": _words("ctypes"),
    # A file object in memory: numpy reads and writes the header of an .npy through one.
    "mmapkv.codecs": _words("io"),
    # The demo opens the files that it is to load, and makes its store in a temporary directory.
    "mmapkv._demo_files": _words("Path.open"),
    "mmapkv.demo": _words("tempfile"),
    # Streams that lead nowhere stand in for standard ones that are closed.
    "mmaplog._command": _words("Path.open"),
    # The store that is measured is temporary.
    "mmapkv.bench": _words("tempfile"),
}
