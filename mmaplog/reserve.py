"""RESERVE: blocks kept back on the disk, so that a log on a full one can still be made smaller.

Dropping and compacting need some room before they give any: a new MANIFEST, a new segment. When the disk is
full they take it from here, and the reserve is filled again from what they freed. A layer above that has to
append a record in order to remove others may draw on it, too, a piece at a time, as long as half is left.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable
from typing import TypeVar

from mmapio import _os
from mmaplog.errors import LogError

logger = logging.getLogger("mmaplog")

NAME = "RESERVE"
# So much is given at a time to who appends.
PIECE = 64 << 10

_Result = TypeVar("_Result")


def is_full(error: OSError) -> bool:
    """Whether it says that there is no room: none on the disk, or none that a quota allows."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


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
        if not is_full(error):
            raise
        logger.warning("%s: no room for a reserve of %d bytes: the disk is full", path, size)


def spend_if_full(directory: _os.Descriptor, operation: Callable[[], _Result]) -> _Result:
    """Carry out `operation`, which frees more than it takes; on a full disk again, with the reserve's room.

    Raises what it raises. It must have changed nothing when it raises OSError(ENOSPC).
    """
    size = _wanted(directory)
    try:
        return operation()
    except OSError as error:
        # What the log itself raises says that it was begun.
        if size == 0 or isinstance(error, LogError) or not is_full(error):
            raise
    _empty(_opened(directory), size)
    return operation()


def draw(directory: _os.Descriptor, error: OSError) -> bool:
    """Give a piece back to the disk, if `error` says that it is full and half is left: whether that was so.

    Whoever is first has it then.
    """
    if isinstance(error, LogError) or not is_full(error):
        return False
    size, before = _wanted(directory), kept(directory)
    start = before - PIECE
    if size == 0 or start < size // 2:
        return False
    # From the end: what is left begins where the file does, unless another process has filled it meanwhile.
    with contextlib.suppress(OSError):
        _os.punch_hole(_opened(directory), start, PIECE)
    return kept(directory) < before


def kept(directory: _os.Descriptor) -> int:
    """Bytes that the reserve of an open directory takes on the disk at the moment."""
    return _os.file_usage(directory, NAME)


def refill(directory: _os.Descriptor, path: str) -> None:
    """Give the reserve back what it spent, once files that nobody has mapped any more have made room."""
    size = _wanted(directory)
    if size and kept(directory) < size:
        keep(directory, path, size)


def _wanted(directory: _os.Descriptor) -> int:
    # The length of the file, whether or not it has its blocks at the moment.
    try:
        return _os.file_size(_os.open_file(NAME, False, follow=False, directory=directory))
    except FileNotFoundError:
        return 0


def _fill(directory: _os.Descriptor, size: int) -> None:
    opened = _opened(directory)
    # Its length first, which says what is wanted, whoever is killed after that.
    if _os.file_size(opened) != size:
        _os.set_size(opened, size)
    if kept(directory) >= size:
        return
    try:
        _os.grow(opened, size, 0)
    except OSError:
        _empty(opened, size)
        raise


def _empty(opened: _os.Descriptor, size: int) -> None:
    # Without blocks, and yet as long as it is to be.
    try:
        _os.punch_hole(opened, 0, size)
    except OSError:
        # A file system without holes.
        _os.set_size(opened, 0)
        _os.set_size(opened, size)


def _opened(directory: _os.Descriptor) -> _os.Descriptor:
    return _os.open_file(NAME, True, create=True, follow=False, directory=directory)
