"""Finding where a time begins in a log."""

from __future__ import annotations

import errno
from bisect import bisect_left
from typing import TYPE_CHECKING

from mmaplog.errors import LogError

if TYPE_CHECKING:
    from mmaplog.log import Log


def first_not_older(log: Log, nanoseconds: int, committed: int) -> int:
    """What ``Log.seek_time`` does, of the records below `committed`. Costs some twenty look-ups.

    Raises LogError for a record that has no time, and what ``Log.replay`` does.
    """

    def time_of(seq: int) -> int:
        # Of the record itself, or where compaction removed it, of the next one.
        entry = next(log.replay(seq, committed), None)
        if entry is None:
            return nanoseconds
        if entry.timestamp is None:
            raise LogError(
                errno.EINVAL,
                f"record {entry.seq} has no time: the log was opened without timestamps=True",
                log.path,
            )
        return entry.timestamp

    # Between segments first: the first record of each is found without a walk.
    first = log.first_seq
    bases = [first, *(base for base in log.segments.bases() if first < base < committed)]
    at = max(bisect_left(bases, nanoseconds, hi=len(bases) if first < committed else 0, key=time_of) - 1, 0)
    stop = bases[at + 1] if at + 1 < len(bases) else committed
    found = bisect_left(range(stop), nanoseconds, bases[at], key=time_of)
    # A number that compaction removed stands for the record after it.
    entry = next(log.replay(found, committed), None) if found < committed else None
    return committed if entry is None else entry.seq
