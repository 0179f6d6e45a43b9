"""An index that is not the one any more: another file has its name, or it was cut."""

from __future__ import annotations

from mmapio import _os
from mmapio._os import Descriptor
from mmaplog.attach import INDEX_NAME

CUT = (
    "the index was truncated by others, or its device failed; open the store again for writing, which builds "
    "the index from the log"
)


def has_successor(directory: Descriptor, opened: int, named: int) -> bool:
    """Whether the index is another file than the one that is open: has the name, and the inode in CONTROL.

    One that merely has the name, a copy say, is kept up by no writer.
    """
    if _os.file_number(opened)[1] == named:
        return False
    try:
        return _os.file_number(directory.fileno(), INDEX_NAME)[1] == named
    except FileNotFoundError:
        # Whoever makes one says so once it is there.
        return False
