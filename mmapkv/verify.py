"""Checking all that a store's files hold: the log byte by byte, each record, each entry of the index."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from mmapio.options import FlushPolicy
from mmapkv import attach, hints, index_file, relocation
from mmapkv.decode import note_presence
from mmapkv.foreign import refuse_plain_log
from mmapkv.index import Index
from mmapkv.index_check import IndexCheck
from mmapkv.pins import Pins
from mmapkv.record_check import RecordCheck, Replaced
from mmaplog.errors import CorruptionError, FormatError, TooOld, without_advice
from mmaplog.log import DEFAULT_SEGMENT_BYTES, Log, open_log
from mmaplog.remains import is_damage, restoring
from mmaplog.segment import is_segment

if TYPE_CHECKING:
    from mmapkv.store import KVStore

__all__ = ["StoreDamage", "StoreVerified", "verify"]

_Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
_Progress: TypeAlias = Callable[[int, int], object]

#: One damage may have as many consequences as there are records. So many are described.
DESCRIBED_MAX = 100
#: For so many record numbers account is kept at once, a bit for each: 128 MiB.
NUMBERS_MAX = 1 << 30
#: So often a store that is being compacted is looked at: what seems damaged may have been led elsewhere.
ATTEMPTS_MAX = 5

#: What to do about a record that verifies, and is none of a store's; repair leaves such a log alone.
DROP = (
    "it was appended by something else than a store, or by a newer version; restore a backup, or drop that "
    "record and what follows by mmaplog.Log.truncate_after"
)
_RESTORE = restoring("the segment", "mmapkv")
_MEND = "run mmapkv repair, which says what is lost"
_REWRITE = "copy what can be read into a new store"
_REMOVE = "remove it, or run mmapkv repair; nothing is lost"
_REBUILD = "run mmapkv repair, which builds the index anew from the log; nothing is lost"


@dataclass(frozen=True, slots=True)
class StoreDamage:
    """What is wrong at `offset` of the file `path`, and what to do about it."""

    path: str
    offset: int
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class StoreVerified:
    """What was looked at, and what is wrong: nothing, when `damages` is empty.

    `keys` are those that are present, `live_bytes` what their records take of the `record_bytes` of the log,
    without what leads to versions before;
    `entries` are those of the index, of deleted keys too. Without ``full`` nothing is known of keys and
    records, which are 0. Of more than 100 damages, `omitted` says how many are not described. `note` says why
    there is no index to look at when that is no damage: as after a power cut, which the next opening mends.
    """

    segments: int
    records: int
    record_bytes: int
    keys: int
    live_bytes: int
    index_segments: int
    entries: int
    damages: tuple[StoreDamage, ...]
    omitted: int
    note: str | None


def verify(path: _Path, *, full: bool = True, progress: _Progress | None = None) -> StoreVerified:
    """Check the store in the directory `path`, as :meth:`mmapkv.KVStore.verify` does; nothing is mended.

    Others may have it open, to write too. An index that would be built anew at the next opening is looked at
    no further: the reason is a damage, or the note. Raises FileNotFoundError where there is no store,
    FormatError for one of a newer version and for a plain log, PermissionError, Closed, MappingFault.
    """
    try:
        log = open_log(Log, path, "r", FlushPolicy.MANUAL, False, DEFAULT_SEGMENT_BYTES, (attach.NAME,))
    except OSError as error:
        report = _Report()
        report.add_unreadable(error, os.fsdecode(path))
        return report.made(note="the log cannot be opened")
    with log:
        refuse_plain_log(log)
        return _check_beside_others(lambda: _find(log), Pins(log), full, progress)


def verify_open(store: KVStore, full: bool, progress: _Progress | None) -> StoreVerified:
    """Check an open store; :meth:`mmapkv.KVStore.verify` says what that means."""
    return _check_beside_others(lambda: _find_open(store), store._pins, full, progress)


class _Report:
    """What was found so far."""

    def __init__(self) -> None:
        self.damages: list[StoreDamage] = []
        self.omitted = 0

    def add(self, path: str, offset: int, reason: str | None, remedy: str) -> None:
        if len(self.damages) < DESCRIBED_MAX:
            self.damages.append(StoreDamage(os.fsdecode(path), offset, without_advice(reason), remedy))
        else:
            self.omitted += 1

    def add_unreadable(self, error: OSError, log: str) -> None:
        """What stands in the way of reading the log in the directory `log`; raised when it is no damage."""
        if not is_damage(log, error):
            raise error
        path = os.fsdecode(error.filename or log)
        self.add(path, 0, error.strerror, _RESTORE if is_segment(Path(path).name) else _MEND)

    def made(
        self,
        log: tuple[int, int, int] = (0, 0, 0),
        store: tuple[int, int] = (0, 0),
        index: tuple[int, int] = (0, 0),
        note: str | None = None,
    ) -> StoreVerified:
        return StoreVerified(*log, *store, *index, tuple(self.damages), self.omitted, note)


@dataclass(frozen=True, slots=True)
class _Found:
    """What is to be checked; or why there is no index, where that is no damage."""

    log: Log
    index: Index | None
    report: _Report
    note: str | None

    @property
    def settled(self) -> bool:
        return self.index is None or relocation.is_settled(self.index)


def _check_beside_others(
    find: Callable[[], _Found], pins: Pins, full: bool, progress: _Progress | None
) -> StoreVerified:
    # What compaction led elsewhere meanwhile, in whichever process, is looked for anew.
    first = find()
    seq = first.log.committed if first.index is None else first.index.present()[0]
    # What expires from here on is not taken off the count by a compaction that begins from here on.
    pin = pins.hold(seq)
    attempt = 0
    try:
        while True:
            at = find()
            attempt += 1
            generation, settled = at.log.control.generation, at.settled
            try:
                found = _check(at, full, progress)
            except Replaced:
                continue
            except TooOld:
                # So had what the log's own look had come to.
                if attempt == ATTEMPTS_MAX:
                    raise
                continue
            undisturbed = settled and at.settled and at.log.control.generation == generation
            if not found.damages or undisturbed or attempt == ATTEMPTS_MAX:
                return found
    finally:
        pin.release()


def _find(log: Log) -> _Found:
    report = _Report()
    index, note = _find_index(log, report)
    return _Found(log, index, report, note)


def _find_open(store: KVStore) -> _Found:
    report = _Report()
    while True:
        log, index = store._open_parts()
        if not index.retired:
            break
        store._reload_index(index)
    try:
        index_file.read_mark(index)
    except CorruptionError as error:
        # Unless a writer has just taken it back.
        if index_file.is_clean(index):
            report.add(error.filename, 0, error.strerror, _REBUILD)
    return _Found(log, index, report, None)


def _find_index(log: Log, report: _Report) -> tuple[Index | None, str | None]:
    # The index as it is on disk; or why there is none, where that is no damage.
    path = log.segments.directory.locate(attach.NAME)
    try:
        found, reason = attach.consider(log, writing=False)
    except PermissionError:
        raise
    except OSError as error:
        # Damaged, of another version, cut, or no file.
        report.add(path, 0, error.strerror, _REBUILD)
        return None, None
    return (found[0], None) if found else (None, reason)


def _check(at: _Found, full: bool, progress: _Progress | None) -> StoreVerified:
    log, index, report, note = at.log, at.index, at.report, at.note
    # The index before the log, which is ahead of it: a count goes with its number.
    seq, count, cleared = (log.committed, 0, 0) if index is None else index.present()
    first, stop = log.first_seq, min(seq, log.committed)
    tell = _Stages(progress, (2 * full) * (stop - first))
    checked, damaged = (0, 0, 0), frozenset[str]()
    if full:
        try:
            found = log.verify(progress=tell.stage(stop - first))
        except FormatError as error:
            # Of a segment that was not looked at when the log was opened, beside a writer at work.
            report.add_unreadable(error, log.path)
            return report.made(note="the log cannot be read to its end")
        checked = (found.segments, found.records, found.record_bytes)
        for each in found.damages:
            report.add(each.path, each.offset, f"record {each.seq}: {each.reason}", _RESTORE)
        damaged = frozenset(each.path for each in found.damages)
        for path, reason in hints.damages(log):
            report.add(path, 0, reason, _REMOVE)
    if index is None:
        if not full or damaged:
            return report.made(checked, note=note)
        # The records can be checked against an index of our own.
        try:
            index, _ = attach.build_private(log)
        except FormatError:
            if _find_foreign(log, first, report):
                return report.made(checked, note=note)
            raise
        stop, count, cleared = index.present()
        keys = _check_records(log, index, (stop, count, cleared), report, tell, sound=True)
        return report.made(checked, keys, note=note)
    entries = _check_index(index, log, damaged, report)
    moment = stop, count, cleared
    keys = _check_records(log, index, moment, report, tell, sound=not damaged) if full else (0, 0)
    if full and not damaged:
        # What the index has not come to yet: of a writer at work, or one that was killed.
        _find_foreign(log, stop, report)
    return report.made(checked, keys, entries)


def _find_foreign(log: Log, start: int, report: _Report) -> bool:
    # Whether there is a record from `start` on that is none of a store's: none can be opened over it.
    try:
        note_presence(log.replay(start, log.committed), {}, log.committed, 0)
    except FormatError as error:
        report.add(error.filename, 0, error.strerror, DROP)
        return True
    return False


def _check_index(index: Index, log: Log, damaged: frozenset[str], report: _Report) -> tuple[int, int]:
    check = IndexCheck(index, log, damaged)
    check.check_directory()
    while check.step():
        pass
    for offset, reason in check.found:
        report.add(check.path, offset, reason, _REBUILD)
    return check.segments, check.entries


def _check_records(
    log: Log, index: Index, moment: tuple[int, int, int], report: _Report, tell: _Stages, *, sound: bool
) -> tuple[int, int]:
    # As often as it takes to keep account of all numbers; how many keys there are, and the bytes of them.
    stop, count, cleared = moment
    first = log.first_seq
    keys = live_bytes = 0
    for window in range(first, max(stop, first + 1), NUMBERS_MAX):
        check = RecordCheck(
            index, log, stop, window, min(stop - window, NUMBERS_MAX), window > first, cleared
        )
        stage = tell.stage(stop - first)
        while True:
            try:
                if not check.step():
                    break
            except TooOld:
                # It had been cleared: nobody needs to have it in order.
                if not check.skip_removed():
                    break
            except (CorruptionError, FormatError) as error:
                if sound:
                    report.add(error.filename, 0, error.strerror, _RESTORE)
                if not check.skip_segment():
                    break
            stage(check.seq - first, stop - first)
        stage(stop - first, stop - first)
        check.check_chains()
        for path, offset, reason, of_index in check.found:
            report.add(path, offset, reason, _REBUILD if of_index else _REWRITE)
        if window == first:
            keys, live_bytes = check.keys, check.live_bytes
            # In the middle of a compaction, be it that of a killed writer, what it left out is still counted.
            settled = relocation.is_settled(index)
            if sound and settled and not check.unseen and keys != count:
                where = log.segments.directory.locate(attach.NAME)
                report.add(where, 0, f"the index counts {count} keys, there are {keys}", _REBUILD)
    return keys, live_bytes


class _Stages:
    """Makes one progress of several."""

    def __init__(self, progress: _Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._before = 0

    def stage(self, size: int) -> _Progress:
        """What the next stage, of `size` records, is to tell how far it is."""
        before = self._before
        self._before += size

        def tell(done: int, _: int) -> None:
            if self._progress is not None:
                self._progress(before + min(done, size), max(self._total, self._before))

        return tell
