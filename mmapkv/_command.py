"""What the commands of ``mmapkv`` share: the error for a wrong request, and names in messages."""

from __future__ import annotations

import os

__all__ = ["UsageError", "named"]


class UsageError(Exception):
    """The request itself is wrong: ``mmapkv`` prints the message and exits with 2, nothing was written."""


def named(path: str | bytes | os.PathLike[str]) -> str:
    r"""`path` as a message may show it: quoted ASCII, whatever bytes the name is made of.

    File names are bytes and may hold line ends, terminal escapes or no valid text at all.

    >>> print(named(b"caf\xe9.txt"), named("a b"))
    'caf\udce9.txt' 'a b'
    """
    return ascii(os.fsdecode(path))
