"""Pairs of a dbm file, of whichever kind this Python can read."""

from __future__ import annotations

import dbm
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from mmapkv.load_source import Entry, Refusals, Source, SourceError

__all__ = ["read_dbm"]


def read_dbm(path: str, refused: Refusals) -> Source:
    """All pairs of the dbm file `path`. Those of a shelf are pickles, and come as the bytes that they are.

    Nothing is refused. Raises SourceError for what cannot be opened.
    """
    try:
        opened: Any = dbm.open(path, "r")  # noqa: SIM115  closed when all is read
    except dbm.error as error:
        raise SourceError(f"{error}; this Python reads what its modules dbm.* can") from None
    return Source(len(opened) if hasattr(opened, "__len__") else 0, _entries(opened))


def _entries(opened: Any) -> Iterator[Entry]:
    with closing(opened):
        if not hasattr(opened, "firstkey"):
            for key in opened.keys():  # noqa: SIM118  not every kind can be iterated over
                yield bytes(key), bytes(opened[key]), None
            return
        # Of gdbm: without a list of all keys.
        key = opened.firstkey()
        while key is not None:
            yield key, opened[key], None
            key = opened.nextkey(key)
