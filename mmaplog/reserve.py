"""RESERVE: blocks kept back on the disk, so that a log on a full one can still be made smaller.

Dropping and compacting need some room before they give any: a new MANIFEST, a new segment. When the disk is
full they take it from here, and the reserve is filled again from what they freed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable
from typing import TypeVar

from mmapio import _os

logger = logging.getLogger("mmaplog")

NAME = "RESERVE"

_Result = TypeVar("_Result")


def keep(directory: _os.Descriptor, path: str, size: int) -> None:
    """Have the reserve of an open directory be `size` bytes; 0 removes it.

    A disk that is full already is no error, so that the log can be opened and made smaller: then the reserve
    is filled later.
    """
    if size == 0:
        with contextlib.suppress(FileNotFoundError):
            _os.remove_file(directory, NAME)
        return
    try:
        _fill(directory, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        logger.warning("%s: no room for a reserve of %d bytes: the disk is full", path, size)


def spend_if_full(directory: _os.Descriptor, path: str, operation: Callable[[], _Result]) -> _Result:
    """Carry out `operation`, which frees more than it takes; on a full disk again, with the reserve's room.

    Raises what it raises. It must have changed nothing when it raises OSError(ENOSPC).
    """
    size = _os.file_usage(directory, NAME)
    try:
        return operation()
    except OSError as error:
        if size == 0 or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    _os.set_size(_opened(directory), 0)
    try:
        return operation()
    finally:
        keep(directory, path, size)


def _fill(directory: _os.Descriptor, size: int) -> None:
    opened = _opened(directory)
    if _os.file_size(opened) != size:
        _os.set_size(opened, 0)
        _os.grow(opened, size)


def _opened(directory: _os.Descriptor) -> _os.Descriptor:
    return _os.open_file(NAME, True, create=True, follow=False, directory=directory)
