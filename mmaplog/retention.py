"""How much of a log's beginning may go."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mmapio import _os
from mmaplog.manifest import Consent

if TYPE_CHECKING:
    from mmaplog.log import Log


def first_to_keep(
    log: Log, max_bytes: int | None, max_age: float | None, max_records: int | None, consumers: bool
) -> tuple[int, tuple[Consent, ...]]:
    """The number at which the log may begin so that it keeps these limits, and the consumers that agree.

    Costs a look at each segment's file. Raises ValueError for a limit that is negative or NaN.
    """
    for name, limit in (("max_bytes", max_bytes), ("max_age", max_age), ("max_records", max_records)):
        if limit is not None and not limit >= 0:
            raise ValueError(f"{name} must not be negative, and be a number, but is {limit}")
    committed = log.committed
    log.segments.relist()
    listing = log.segments.listing()
    # Between each two neighbours the log can be cut; what is before a boundary has a newer segment behind it.
    boundaries = [entry[0] for entry in listing[1:] if log.first_seq < entry[0] <= committed]
    wanted = log.first_seq
    if max_bytes is not None:
        wanted = max(wanted, _within_bytes(log, listing, boundaries, max_bytes))
    if max_age is not None:
        wanted = max(wanted, _within_age(log, listing, boundaries, max_age))
    if max_records is not None:
        removed = {
            base: sum(
                each.stop - each.base_seq - each.records
                for each in log.segments.manifest.compacted
                if each.base_seq >= base
            )
            for base in boundaries
        }
        enough = (base for base in boundaries if committed - base - removed[base] >= max_records)
        wanted = max(wanted, _last(enough, wanted))
    if consumers:
        from mmaplog.consumer import places

        found = list(places(log))
        if not found:
            return wanted, ()
        floor = min(each.committed for each in found)
        below = _last((base for base in boundaries if base <= floor), log.first_seq)
        alone = max_bytes is None and max_age is None and max_records is None
        wanted = below if alone else min(wanted, below)
        # What one is known to have done by an agreement before, though his place may lack it, he did by then.
        known = {each.file_id: each.turn for each in log.segments.manifest.consents}
        turns = {each.header.file_id: each.place.turn for each in found}
        return wanted, tuple(
            Consent(each, wanted, max(turn, known.get(each, 0))) for each, turn in turns.items()
        )
    return wanted, ()


def _within_bytes(
    log: Log, listing: list[tuple[int, int, str]], boundaries: list[int], max_bytes: int
) -> int:
    left = 0
    newest = boundaries[-1] if boundaries else log.first_seq
    for base, _, name in reversed(listing):
        left += _os.file_usage(log.segments.directory, name)
        if left > max_bytes:
            # This one is too much; so the log begins with the one after it, or with the last.
            return next((boundary for boundary in boundaries if boundary > base), newest)
    return log.first_seq


def _within_age(log: Log, listing: list[tuple[int, int, str]], boundaries: list[int], max_age: float) -> int:
    # What was made before a segment in front of it, or in the future, was made by a clock that was wrong: of
    # its age nobody knows.
    now, made, wanted = time.time_ns(), 0, log.first_seq
    for base in sorted({entry[0] for entry in listing}):
        found = log.segments.at(base)
        if found is None or not made <= found.base_time <= now:
            continue
        made = found.base_time
        if base in boundaries:
            if (now - made) / 1e9 <= max_age:
                break
            wanted = base
    return wanted


def _last(bases: Iterable[int], otherwise: int) -> int:
    return max(bases, default=otherwise)
