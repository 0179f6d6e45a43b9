"""Telling a plain log from a store, which is a log, too: nobody wants the one made into the other."""

from __future__ import annotations

import os
from typing import TypeAlias

from mmapio import _os
from mmapio.options import FlushPolicy
from mmapkv.decode import note_presence
from mmaplog.attach import INDEX_NAME
from mmaplog.errors import CorruptionError, FormatError, TooOld, without_advice
from mmaplog.log import DEFAULT_SEGMENT_BYTES, Log, open_log

__all__ = ["refuse_plain_log", "refuse_to_replace"]

_Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def refuse_plain_log(log: Log) -> None:
    """Raise FormatError where there is no index, and the first record is none of a store's.

    Costs a look at the directory, and at that record where there is no index.
    """
    if not len(log) or _os.kind_of(log.segments.directory, INDEX_NAME) != "nothing":
        return
    try:
        note_presence(log.replay(log.first_seq, log.first_seq + 1), {}, 1, 0)
    except (CorruptionError, TooOld):
        # Damaged, or dropped meanwhile: it tells nothing.
        return
    except FormatError as error:
        reason = without_advice(error.strerror)
        raise FormatError(
            f"holds a plain log of {len(log)} records, and no store: {reason}; use it as a log, by mmaplog, "
            "or name another directory",
            log.path,
        ) from None


def refuse_to_replace(path: _Path, mode: str) -> None:
    """Raise FormatError where `mode` "n" would put a store in the place of a plain log that has records.

    What cannot be opened is left to whoever opens it next. Costs an opening where there is no index.
    """
    if mode != "n":
        return
    try:
        if _os.kind_of(_os.open_directory(os.fsdecode(path)), INDEX_NAME) != "nothing":
            return
        log = open_log(Log, path, "r", FlushPolicy.MANUAL, False, DEFAULT_SEGMENT_BYTES, (INDEX_NAME,))
    except OSError:
        return
    with log:
        refuse_plain_log(log)
