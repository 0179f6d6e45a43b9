"""The exceptions of mmapio.

    MmapIoError(OSError)
      OutOfBounds(IndexError)      a range that does not lie inside the file
      InvalidMode                  the handle's mode does not allow the operation
      Misaligned(ValueError)       an offset that is not a multiple of what the operation needs
      ResizeFailed(BufferError)    the file could not grow or shrink
        InvalidSize(ValueError)    a size that no file can have
      FlushFailed                  a sync failed; the handle is poisoned from then on
      AdviceFailed                 the kernel refused a piece of advice
      LockFailed                   pages could not be locked into memory
      UnlockFailed                 pages could not be unlocked
      WatchFailed                  a file could not be watched
      MappingFault                 a page below a mapping could not be read or written
      Closed(ValueError)           the handle was closed, or belongs to the parent of a fork
      Unsupported                  this platform or kernel has no such call

What the operating system refuses keeps its ``errno`` and ``filename``. Opening raises the builtin
subclass that fits (``FileNotFoundError``, ``PermissionError``, ``IsADirectoryError``, ...).
"""

__all__ = [
    "AdviceFailed",
    "Closed",
    "FlushFailed",
    "InvalidMode",
    "InvalidSize",
    "LockFailed",
    "MappingFault",
    "Misaligned",
    "MmapIoError",
    "OutOfBounds",
    "ResizeFailed",
    "UnlockFailed",
    "Unsupported",
    "WatchFailed",
]


class MmapIoError(OSError):
    """Base of every error that mmapio, mmaplog and mmapkv raise by themselves."""


class OutOfBounds(MmapIoError, IndexError):
    """The range does not lie inside the file or view."""


class InvalidMode(MmapIoError):
    """The mode the file was opened with does not allow this."""


class Misaligned(MmapIoError, ValueError):
    """The offset is not aligned as the operation needs."""


class ResizeFailed(MmapIoError, BufferError):
    """The file could not be grown or shrunk; it is as it was."""


class InvalidSize(ResizeFailed, ValueError):
    """The size is zero, negative, or beyond what a file can have."""


class FlushFailed(MmapIoError):
    """A sync failed. The kernel may have dropped the pages, so the handle never reports success again."""


class AdviceFailed(MmapIoError):
    """The kernel refused the advice."""


class LockFailed(MmapIoError):
    """The pages could not be locked into memory."""


class UnlockFailed(MmapIoError):
    """The pages could not be unlocked."""


class WatchFailed(MmapIoError):
    """The file could not be watched."""


class MappingFault(MmapIoError):
    """A page below the mapping could not be read or written: truncated by others, or a device error."""


class Closed(MmapIoError, ValueError):
    """The handle is closed, or was inherited by a forked child and belongs to the parent."""


class Unsupported(MmapIoError):
    """This platform or kernel has no call for it; :func:`mmapio.features` tells beforehand."""
