"""The exceptions of mmapkv, all below :class:`mmapio.MmapIoError` (an ``OSError``).

    StoreError(MmapIoError)
      InvalidKey(ValueError)       a key that a store cannot hold: empty or longer than the format allows
      ValueTooLarge(ValueError)    a value longer than the format allows
      SnapshotTooOld               compaction has removed what a walk or snapshot needs
      BufferTooSmall(ValueError)   what was asked for does not fit into the buffer that was given
      Conflict                     what a transaction read or writes was changed since it began

What the log below raises comes through as it is: ``CorruptionError``, ``FormatError``, ``Locked``,
``Poisoned``, ``RecordTooLarge`` for a batch. A missing key is a ``KeyError``.
"""

import errno

from mmapio.errors import MmapIoError

__all__ = ["BufferTooSmall", "Conflict", "InvalidKey", "SnapshotTooOld", "StoreError", "ValueTooLarge"]


class StoreError(MmapIoError):
    """Base of what a store raises by itself."""


class InvalidKey(StoreError, ValueError):
    """The key is empty or too long."""

    def __init__(self, message: str, path: object = None) -> None:
        super().__init__(errno.EINVAL, message, path)


class ValueTooLarge(StoreError, ValueError):
    """The value is longer than the format allows."""

    def __init__(self, message: str, path: object = None) -> None:
        super().__init__(errno.EFBIG, message, path)


class SnapshotTooOld(StoreError):
    """Compaction has removed versions that are needed to see the store as it was. Begin anew."""

    def __init__(self, message: str, path: object = None) -> None:
        super().__init__(errno.ESTALE, message, path)


class BufferTooSmall(StoreError, ValueError):
    """The values do not fit into the buffer; nothing was written to it."""

    def __init__(self, message: str, path: object = None) -> None:
        super().__init__(errno.ERANGE, message, path)


class Conflict(StoreError):
    """Others changed what a transaction read or writes. Nothing of it was written; it can be run again."""

    def __init__(self, message: str, path: object = None) -> None:
        super().__init__(errno.EAGAIN, message, path)
