"""Saving what verifies of a damaged store: its log, and an index that is built anew from that."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from mmapio import _os
from mmapio.options import FlushPolicy
from mmapkv import attach, hints
from mmapkv.verify import DROP, verify
from mmaplog.errors import FormatError
from mmaplog.log import DEFAULT_SEGMENT_BYTES, Log, open_log
from mmaplog.recovery import BAD_SUFFIX
from mmaplog.repair import Repaired
from mmaplog.repair import repair as repair_log

__all__ = ["StoreRepaired", "repair"]

_Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]


@dataclass(frozen=True, slots=True)
class StoreRepaired:
    """What a repair did, or with `dry_run` would do.

    `log` says what became of the log, and which records are lost: a key whose last change is among them has
    the value from before that change, or is absent, or is back. `index` says why the index was built anew;
    None when it was left as it was. `keys` are those that are there now; None for a dry run. `set_aside` is
    the name under which something that is no index of this version was kept.
    """

    log: Repaired
    index: str | None
    keys: int | None
    set_aside: str | None
    changed: bool
    dry_run: bool


def repair(
    path: _Path, *, dry_run: bool = False, progress: Callable[[int, int], object] | None = None
) -> StoreRepaired:
    """Mend the store in the directory `path`, keeping what verifies, and say what is lost.

    For a store that does not open, or in which :func:`verify` finds damage. First :func:`mmaplog.repair`
    mends the log, which nobody may have open. Then, unless all is well, the index is built anew from it.
    Nothing of the log is overwritten; what is left out is kept in files ending in ``.bad``. A repair that is
    cut short is run again. With `dry_run` nothing is changed. `progress` is called with (bytes looked at,
    bytes in all) of the log. Costs two passes over the log, a check of the store, a microsecond a record.

    Raises Locked while any handle has it open, FormatError for a log of a newer version or whose records are
    not a store's, FileNotFoundError where there is no store, MappingFault, OSError as the system reports it.
    """
    mended = repair_log(path, dry_run=dry_run, progress=progress)
    reason = "the log was changed" if mended.changed else _what_is_wrong(path)
    if reason is None or dry_run:
        return StoreRepaired(mended, reason, None, None, mended.changed or reason is not None, dry_run)
    with open_log(Log, path, "w", FlushPolicy.MANUAL, False, DEFAULT_SEGMENT_BYTES, (attach.NAME,)) as log:
        log.begin_exclusive()
        try:
            set_aside = _set_aside(log)
            # Made again some time; here nothing is taken on trust.
            hints.clear(log)
            index, _ = attach.rebuild(log, None)
        finally:
            log.end_exclusive()
        log.flush()
        attach.conclude(log, index)
        _, keys = index.progress()
    return StoreRepaired(mended, reason, keys, set_aside, True, dry_run)


def _what_is_wrong(path: _Path) -> str | None:
    # With a store whose log needs no repair.
    found = verify(path)
    for each in found.damages:
        if each.remedy == DROP:
            raise FormatError(f"{each.reason}; {each.remedy}", each.path)
    if found.damages:
        return found.damages[0].reason
    return found.note


def _set_aside(log: Log) -> str | None:
    # What is not of this version, or no file at all, may be worth something to somebody.
    directory = log.segments.directory
    kind = _os.kind_of(directory, attach.NAME)
    if kind == "nothing":
        return None
    if kind == "file":
        try:
            attach.consider(log, writing=False)
        except FormatError:
            pass
        except OSError:
            return None
        else:
            return None
    taken = _os.list_directory(directory)
    names = (f"{attach.NAME}{number}{BAD_SUFFIX}" for number in ("", *(f".{at}" for at in range(1, 1000))))
    name = next(name for name in names if name not in taken)
    _os.replace_file(directory, attach.NAME, name)
    return name
