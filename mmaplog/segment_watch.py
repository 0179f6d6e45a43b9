"""Being told when the files of a log change: to archive what is full, or to see what retention removes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmapio.watch import ChangeEvent, WatchHandle, watch
from mmaplog.errors import LogError
from mmaplog.manifest import read as read_manifest
from mmaplog.segment import list_segments

if TYPE_CHECKING:
    from mmaplog.log import Log


@dataclass(frozen=True, slots=True)
class SegmentChange:
    """Names of segment files that came and that went since the last report, in order of their records.

    When one came, the one before it is full, and is not written to any more.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]


def watch_segments(log: Log, callback: Callable[[SegmentChange], object]) -> WatchHandle:
    """What ``Log.watch_segments`` does."""
    directory = log.segments.directory
    path = log.path

    def counting() -> list[str]:
        return [name for _, _, name in read_manifest(directory, path).counting(list_segments(directory))]

    known = counting()

    def look(_: ChangeEvent) -> None:
        nonlocal known
        try:
            now = counting()
        except (FileNotFoundError, LogError):
            # Being replaced by an empty log, or damaged: whoever uses the log says so.
            now = []
        before, known = known, now
        change = SegmentChange(
            tuple(name for name in now if name not in before),
            tuple(name for name in before if name not in now),
        )
        if change.added or change.removed:
            callback(change)

    return watch(path, look)
