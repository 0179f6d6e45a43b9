"""The exceptions of mmaplog, all below :class:`mmapio.MmapIoError` (an ``OSError``).

    LogError(MmapIoError)
      FormatError           a file is not ours, or of a version or log this code must not touch
      CorruptionError       bytes that were durable are damaged; errno EBADMSG
      Locked                another handle holds the writer's lock, or the consumer
      Poisoned              a sync failed earlier; nothing is acknowledged any more
      RecordTooLarge        a record does not fit the format; also a ValueError
      TooOld                a record was truncated, or its number used again; also an IndexError

What mmapio raises comes through as it is.
"""

import errno

from mmapio.errors import MmapIoError

__all__ = ["CorruptionError", "FormatError", "Locked", "LogError", "Poisoned", "RecordTooLarge", "TooOld"]


class LogError(MmapIoError):
    """Base of what a log raises by itself."""


class FormatError(LogError):
    """A file has the wrong magic, a newer version, unknown flags or belongs to another log."""

    def __init__(self, message: str, path: object = None) -> None:
        super().__init__(errno.EINVAL, message, path)


class CorruptionError(LogError):
    """Bytes that had been durable no longer verify. Nothing was changed on disk."""

    def __init__(self, message: str, path: object = None) -> None:
        super().__init__(errno.EBADMSG, message, path)


class Locked(LogError):
    """Another process, or another handle of this one, has the log open for writing, or holds the consumer."""

    def __init__(self, message: str, path: object = None) -> None:
        super().__init__(errno.EAGAIN, message, path)


class Poisoned(LogError):
    """A sync failed earlier, so no later write can be promised; close every handle and open again."""


class RecordTooLarge(LogError, ValueError):
    """The record is larger than the format can hold."""

    def __init__(self, message: str, path: object = None) -> None:
        super().__init__(errno.EFBIG, message, path)


class TooOld(LogError, IndexError):
    """A record was in the log and is not any more: truncated, or its number is used again."""

    def __init__(self, message: str, path: object = None) -> None:
        super().__init__(errno.ESTALE, message, path)


def without_advice(message: str | None) -> str:
    """What is wrong, without what to do: for whoever looked at everything, and has advice of his own.

    >>> without_advice("the header does not match its checksum; restore the file from a backup")
    'the header does not match its checksum'
    """
    return (message or "").partition("; ")[0]
