"""An index that is not the one any more: another file has its name, or it was cut."""

from __future__ import annotations

from mmapio import _os
from mmapio._os import Descriptor
from mmaplog.attach import INDEX_NAME

CUT = (
    "the index was truncated by others, or its device failed; open the store again for writing, which builds "
    "the index from the log"
)


def has_successor(directory: Descriptor, opened: int) -> bool:
    """Whether another file than the one that is open has the name of the index. False while none has it."""
    try:
        if _os.kind_of(directory, INDEX_NAME) != "file":
            return False
        return _os.file_number(directory.fileno(), INDEX_NAME) != _os.file_number(opened)
    except FileNotFoundError:
        # Whoever makes one says so once it is there.
        return False
