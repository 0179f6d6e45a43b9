"""Saving what verifies of a damaged log.

What is kept is written anew where it must change, in new files beside the old; what is not kept is set aside
under names ending in ``.bad``. All steps are written down, in place of the manifest, before the first of them
is taken, so that a repair that is cut short is taken up again where it stopped, and nobody opens the log in
between. Nothing that is in the log's files is ever overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from mmapio import _os
from mmaplog import control as control_file
from mmaplog import manifest as manifest_file
from mmaplog import page, recovery, remains
from mmaplog.errors import CorruptionError, Locked
from mmaplog.lock import NAME as LOCK_NAME
from mmaplog.lock import LockFile
from mmaplog.manifest import TEMPORARY_SUFFIX, Began, Compacted, Consent, Manifest, with_begun
from mmaplog.remains import Progress, Remains, Wreck
from mmaplog.scan import Run, place, scan
from mmaplog.segment import is_segment, name_of
from mmaplog.segment_set import SegmentSet
from mmaplog.verify import verify

_Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

# So much is written at a time.
_PIECE = 4 << 20
# Numbers in a segment are counted in 32 bits.
_SPAN_MAX = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Lost:
    """Records [start, stop) that were in the log and are not any more.

    `stop` is None when nobody knows how many there were.
    """

    start: int
    stop: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did, or with `dry_run` would do.

    The log now holds the records of [first_seq, committed) but for those that are lost. `lost` says which it
    held before and does not hold now. `set_aside` names the files that now end in ``.bad``, `problems` says
    of each file what was wrong. `torn` is the number of an append at the very end that was not finished, or
    not written by the device, which may or may not have been committed; None when there is none. Nothing was
    done when not `changed`.
    """

    path: str
    log_uuid: uuid.UUID
    first_seq: int
    committed: int
    lost: tuple[Lost, ...]
    torn: int | None
    problems: tuple[tuple[str, str], ...]
    set_aside: tuple[str, ...]
    changed: bool
    dry_run: bool


@dataclass(frozen=True, slots=True)
class _Kept:
    """Records that stay, and the numbers [start, stop) that they stand for: in their file, or `rewritten`."""

    source: Remains
    run: Run
    start: int
    stop: int
    rewritten: bool
    sparse: bool


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What is to become of a log: what stays, what is lost, where it begins and where it goes on.

    `is_cut` when it goes on in a new segment, of a higher epoch.
    """

    kept: list[_Kept]
    lost: list[Lost]
    torn: int | None
    first: int
    end: int
    is_cut: bool


@dataclass(frozen=True, slots=True)
class _Steps:
    """What is to be done, in this order; each can be done again. The last is to write the manifest."""

    publish: list[tuple[str, str]]
    aside: list[tuple[str, str]]
    manifest: Manifest
    report: Repaired


def repair(path: _Path, *, dry_run: bool = False, progress: Progress | None = None) -> Repaired:
    """Mend the log in the directory `path`, keeping what verifies, and say which records are lost.

    For a log that does not open, or whose `verify` finds damage. The manifest and CONTROL are made anew from
    the segments. Records keep their numbers, and a batch is kept whole or not at all: where some are lost,
    the log has a gap, as after a compaction. Nothing is overwritten or removed but CONTROL and unfinished
    files: what is left out is set aside in files ending in ``.bad``. A repair that is cut short at any point
    is run again and goes on.

    With `dry_run` all of that is done on private copies in memory and nothing is written. `progress` is
    called with (bytes looked at, bytes in all). Costs two passes over the bytes, and a copy of each segment
    that is damaged. Whoever opens the log meanwhile waits.

    Raises Locked while any handle has the log open, FormatError for what a newer version wrote,
    FileNotFoundError where there is no log, MappingFault, OSError as the system reports it.
    """
    place_of_log = os.fsdecode(path)
    directory = _os.open_directory(place_of_log)
    with _alone(directory, place_of_log, dry_run):
        written = _steps_on_disk(directory)
        if written is not None:
            if not dry_run:
                _finish(directory, place_of_log, written)
            return replace(written.report, dry_run=dry_run)
        wreck = remains.survey(directory, place_of_log, progress)
        outcome = _decide(wreck)
        if not _is_damaged(wreck):
            return _report(wreck, outcome, (), changed=False, dry_run=dry_run)
        return _carry_out(wreck, outcome, dry_run)


@contextlib.contextmanager
def _alone(directory: _os.Descriptor, path: str, dry_run: bool) -> Iterator[None]:
    # With nobody else in the log, and nobody let in.
    kind = _os.kind_of(directory, LOCK_NAME)
    if dry_run and kind != "file":
        # Nobody can hold a lock on what is not there; and none can be made.
        yield
        return
    if not _is_log(directory):
        raise FileNotFoundError(errno.ENOENT, "holds no log", path)
    if kind not in ("file", "nothing"):
        _os.replace_file(directory, LOCK_NAME, _name_for(directory, LOCK_NAME))
    locks = LockFile(directory, path, create=not dry_run)
    try:
        locks.begin()
        if not locks.alone():
            raise Locked("it is open, so it cannot be repaired; close every handle first", path)
        yield
    finally:
        locks.close()


def _is_log(directory: _os.Descriptor) -> bool:
    names = _os.list_directory(directory)
    return manifest_file.NAME in names or any(is_segment(name) for name in names)


def _name_for(directory: _os.Descriptor, name: str) -> str:
    # The name under which a file is set aside.
    taken = _os.list_directory(directory)
    free = f"{name}{recovery.BAD_SUFFIX}"
    number = 1
    while free in taken:
        free = f"{name}.{number}{recovery.BAD_SUFFIX}"
        number += 1
    return free


def _decide(wreck: Wreck) -> _Outcome:
    kept = list(_what_stays(wreck))
    lost: list[Lost] = []
    at = wreck.first_seq
    if wreck.manifest is None and kept and at:
        lost.append(
            Lost(0, at, "not known: the log may have begun later, which only the manifest could tell")
        )
    for each in kept:
        if at < each.start:
            lost.append(Lost(at, each.start, "damaged or missing"))
        at = max(at, each.stop)
    end = max(at, wreck.evidence)
    if at < end:
        lost.append(Lost(at, end, "damaged or missing"))
    last = wreck.segments[-1] if wreck.segments else None
    torn = None
    if wreck.cut is not None:
        # It is finished: the log goes on there.
        pass
    elif last is None or last.page.footers or last.sparse:
        lost.append(Lost(end, None, "the last segment is missing"))
    elif last.problem and not last.found.runs and not last.page.marks and wreck.control is None:
        lost.append(Lost(end, None, "nothing in the last segment says how many there were"))
    if last is not None and last.found.leftover is not None and wreck.control is None:
        torn = end
    # Or records behind that end were lost, of which nothing tells.
    unsure = wreck.control is None and last is not None and not wreck.ends_cleanly
    # There was one of a newer epoch, which somebody has read.
    unsure = unsure or (last is not None and wreck.epoch > last.page.epoch)
    missing = at < end or not kept or any(each.stop is None for each in lost)
    is_cut = unsure or missing or torn is not None or wreck.cut is not None
    first = max(wreck.first_seq, kept[0].start) if kept else end
    return _Outcome(_with_gaps(wreck, kept, end, is_cut), lost, torn, first, end, is_cut)


def _what_stays(wreck: Wreck) -> Iterator[_Kept]:
    # What a failed sync did not write, the kernel holds for written: only a copy can be synced.
    durable = remains.SEQ_END
    if wreck.control is not None and wreck.control.poison:
        durable = wreck.control.durable
    for each in wreck.segments:
        whole = each.whole
        if whole is None:
            for run in each.found.runs:
                if run.stop > wreck.first_seq:
                    yield _Kept(each, run, run.start, run.stop, True, each.sparse)
            continue
        stop = each.boundary if each.boundary < remains.SEQ_END else whole.stop
        if stop > max(each.base_seq, wreck.first_seq):
            yield _Kept(each, whole, each.base_seq, stop, bool(each.problem) or stop > durable, each.sparse)


def _with_gaps(wreck: Wreck, kept: list[_Kept], end: int, is_cut: bool) -> list[_Kept]:
    # Where numbers are missing, the segment before them stands for them, too.
    made = []
    for at, each in enumerate(kept):
        is_last = at + 1 == len(kept)
        stop = end if is_last else kept[at + 1].start
        if each.stop < stop or (each.sparse and each.rewritten):
            if stop - each.start >= _SPAN_MAX:
                raise CorruptionError(
                    f"more numbers are missing from {each.stop} to {stop} than a log can leave out; move the "
                    "segments behind them away, and repair both parts",
                    wreck.path,
                )
            each = replace(each, stop=stop, rewritten=True, sparse=True)
        made.append(each)
    # When segments change, the last one becomes a new file, with a new id: whatever was derived from the log
    # as it was, an index of its keys for one, names the old id and is not taken to fit.
    if made and made[-1].source is wreck.segments[-1] and (is_cut or _is_changed(wreck, made)):
        made[-1] = replace(made[-1], rewritten=True)
    return made


def _is_changed(wreck: Wreck, kept: list[_Kept]) -> bool:
    return [each.source.name for each in kept if not each.rewritten] != [each.name for each in wreck.segments]


def _is_damaged(wreck: Wreck) -> bool:
    # Whether anything is wrong that opening does not settle by itself.
    segments = wreck.segments
    bounds = itertools.pairwise(segments)
    listed = set(wreck.listed) - {each.segment_id for each in segments}
    return bool(
        not segments
        or wreck.manifest_problem
        or wreck.control_problem
        or listed
        or segments[0].base_seq > wreck.first_seq
        or (wreck.manifest is None and segments[0].base_seq != wreck.first_seq)
        or any(each.problem for each in (*segments, *wreck.strays))
        or any(each.boundary != following.base_seq for each, following in bounds)
        or wreck.evidence > (segments[-1].whole or Run(0, 0, 0, 0, 0)).stop
    )


def _report(
    wreck: Wreck, outcome: _Outcome, aside: tuple[str, ...], *, changed: bool, dry_run: bool
) -> Repaired:
    problems = [(each.name, each.problem) for each in (*wreck.segments, *wreck.strays) if each.problem]
    if wreck.manifest is None:
        problems.append((manifest_file.NAME, wreck.manifest_problem or "is missing"))
    if wreck.control_problem:
        problems.append((control_file.NAME, wreck.control_problem))
    return Repaired(
        wreck.path,
        wreck.log_uuid,
        outcome.first,
        outcome.end,
        tuple(outcome.lost),
        outcome.torn,
        tuple(problems),
        aside,
        changed,
        dry_run,
    )


def _carry_out(wreck: Wreck, outcome: _Outcome, dry_run: bool) -> Repaired:
    directory = wreck.directory
    if not dry_run:
        # Of a repair, or a writer, that was killed before anything counted.
        for name in _os.list_directory(directory):
            if name.endswith(TEMPORARY_SUFFIX) and is_segment(name):
                _os.remove_file(directory, name)
    names, compacted = _rewrite(wreck, outcome, dry_run)
    staying = {each.source.name for each in outcome.kept if not each.rewritten}
    going = [each.name for each in wreck.segments if each.name not in staying]
    going += [each.name for each in wreck.strays]
    if wreck.control_problem:
        going.append(control_file.NAME)
    report = _report(wreck, outcome, tuple(going), changed=True, dry_run=dry_run)
    if dry_run:
        return report
    publish = [(name + TEMPORARY_SUFFIX, name) for name in names]
    aside = [(name, _name_for(directory, name)) for name in going]
    swept, sweeps = _swept(wreck, outcome, compacted)
    made = Manifest(
        wreck.log_uuid,
        wreck.segment_bytes,
        outcome.first,
        compacted=compacted,
        swept=swept,
        sweeps=sweeps,
        consents=_still_agreed(wreck, outcome),
        began=_begun(wreck, outcome),
        epoch=_new_epoch(wreck, outcome),
    )
    steps = _Steps(publish, aside, made, report)
    _keep_manifest(directory, wreck)
    _os.sync(directory)
    manifest_file.write_steps(directory, _to_text(steps))
    _finish(directory, wreck.path, steps)
    return report


def _still_agreed(wreck: Wreck, outcome: _Outcome) -> tuple[Consent, ...]:
    # To what is gone; it may be less than was.
    known = () if wreck.manifest is None else wreck.manifest.consents
    return tuple(replace(each, seq=min(each.seq, outcome.first)) for each in known)


def _new_epoch(wreck: Wreck, outcome: _Outcome) -> int:
    # Of the segment in which the log goes on. What is lost may have been of newer epochs than what is left.
    return wreck.epoch + (remains.EPOCHS_LOST if outcome.is_cut else 0)


def _begun(wreck: Wreck, outcome: _Outcome) -> tuple[Began, ...]:
    # Of what is lost at the beginning nobody knows: the epoch of what is left may have begun anywhere there.
    known = wreck.manifest
    began, first = ((), 0) if known is None else (known.began, known.first_seq)
    left = outcome.kept[0].source.page.epoch if outcome.kept else _new_epoch(wreck, outcome)
    return with_begun(began, [(first, left)] if first < outcome.first else [])


def _swept(wreck: Wreck, outcome: _Outcome, compacted: tuple[Compacted, ...]) -> tuple[int, int]:
    # What is lost may be missed. So may, where the manifest is gone, whatever is not there.
    known = wreck.manifest
    missed = [each.stop for each in outcome.lost if each.stop is not None]
    if known is None:
        swept = max([outcome.first, *missed, *(each.stop for each in compacted)])
        return min(swept, outcome.end), swept
    swept = max([known.swept, *missed])
    return min(swept, outcome.end), known.sweeps + bool(missed)


def _rewrite(wreck: Wreck, outcome: _Outcome, dry_run: bool) -> tuple[list[str], tuple[Compacted, ...]]:
    # The names of the new segments, which wait under temporary ones; and those that are to be listed.
    names: list[str] = []
    compacted: list[Compacted] = []
    for each in outcome.kept:
        segment_id = each.source.segment_id
        if each.rewritten:
            is_last = each is outcome.kept[-1] and not outcome.is_cut
            segment_id = control_file.random_word()
            names.append(_rewrite_one(wreck, each, segment_id, is_last, dry_run))
        if each.sparse:
            compacted.append(Compacted(segment_id, each.start, each.stop, each.run.records))
    last = wreck.segments[-1] if wreck.segments else None
    was_empty = (
        last is not None and last.whole is not None and last.base_seq == outcome.end and not last.sparse
    )
    if outcome.is_cut or was_empty:
        # Numbers from here on may be used again, which only a higher epoch allows.
        epoch = _new_epoch(wreck, outcome)
        segment_id = control_file.random_word()
        front = page.make(wreck.log_uuid.bytes, segment_id, outcome.end, 0, wreck.segment_bytes, epoch)
        names.append(name_of(outcome.end, segment_id, False))
        if not dry_run:
            _write_file(wreck.directory, names[-1], memoryview(front))
    return names, tuple(compacted)


def _rewrite_one(wreck: Wreck, kept: _Kept, segment_id: int, is_last: bool, dry_run: bool) -> str:
    run, source, about = kept.run, kept.source, kept.source.page
    name = name_of(kept.start, segment_id, kept.sparse)
    with _bytes_of(wreck, kept) as data:
        end = place(data, run, source.base_seq, segment_id, kept.start)
        capacity = end if kept.sparse else max(source.capacity, wreck.segment_bytes, end)
        replaces = (about.replaces or source.segment_id) if kept.sparse else 0
        front = page.make(
            wreck.log_uuid.bytes, segment_id, kept.start, about.base_time, capacity, about.epoch, replaces
        )
        if is_last:
            front = page.mark(front, segment_id, run.stop, end)
        else:
            front = page.seal(front, segment_id, kept.stop, end, run.records)
        data[: page.SIZE] = front
        found = scan(data[:end], segment_id, kept.start, 0, remains.SEQ_END, kept.sparse)
        expected = (Run(run.start, run.stop, page.SIZE, end, run.records),) if run.records else ()
        if found.runs != expected:
            raise CorruptionError(f"the bytes of {source.name} change while they are read", wreck.path)
        if not dry_run:
            _write_file(wreck.directory, name, data[:end])
    return name


@contextlib.contextmanager
def _bytes_of(wreck: Wreck, kept: _Kept) -> Iterator[memoryview]:
    if kept.run.records:
        with remains.private_copy(wreck.directory, wreck.path, kept.source) as data:
            yield data
    else:
        yield memoryview(bytearray(page.SIZE))


def _write_file(directory: _os.Descriptor, name: str, data: memoryview) -> None:
    made = _os.open_file(
        name + TEMPORARY_SUFFIX, True, create=True, exclusive=True, follow=False, directory=directory
    )
    _os.grow(made, len(data))
    for offset in range(0, len(data), _PIECE):
        _os.write_at(made, bytes(data[offset : offset + _PIECE]), offset)
    _os.sync(made, metadata=True)


def _keep_manifest(directory: _os.Descriptor, wreck: Wreck) -> None:
    # What stands in the manifest's place is about to be replaced.
    kind = _os.kind_of(directory, manifest_file.NAME)
    if not wreck.manifest_problem or kind == "nothing":
        return
    name = _name_for(directory, manifest_file.NAME)
    if kind != "file":
        _os.replace_file(directory, manifest_file.NAME, name)
        return
    opened = _os.open_file(manifest_file.NAME, False, follow=False, directory=directory)
    made = _os.open_file(name, True, create=True, exclusive=True, follow=False, directory=directory)
    _os.copy_content(opened, made)
    _os.sync(made, metadata=True)


def _steps_on_disk(directory: _os.Descriptor) -> _Steps | None:
    if _os.kind_of(directory, manifest_file.NAME) != "file":
        return None
    text = manifest_file.read_steps(directory)
    return None if text is None else _from_text(text)


def _to_text(steps: _Steps) -> str:
    # asdict goes down into the manifest and the report.
    return json.dumps(asdict(steps), default=str)


def _from_text(text: bytes) -> _Steps:
    told: dict[str, Any] = json.loads(text)
    about, report = told["manifest"], told["report"]
    about["log_uuid"] = report["log_uuid"] = uuid.UUID(about["log_uuid"])
    report["lost"] = tuple(Lost(**each) for each in report["lost"])
    report["problems"] = tuple((name, problem) for name, problem in report["problems"])
    report["set_aside"] = tuple(report["set_aside"])
    publish = [(temporary, name) for temporary, name in told["publish"]]
    aside = [(name, to) for name, to in told["aside"]]
    about["compacted"] = tuple(Compacted(**each) for each in about["compacted"])
    about["consents"] = tuple(Consent(**each) for each in about["consents"])
    about["began"] = tuple(Began(**each) for each in about["began"])
    return _Steps(publish, aside, Manifest(**about), Repaired(**report))


def _finish(directory: _os.Descriptor, path: str, steps: _Steps) -> None:
    names = set(_os.list_directory(directory))
    for source, name in (*steps.publish, *steps.aside):
        if source in names:
            _os.replace_file(directory, source, name)
    if control_file.NAME in names and _os.kind_of(directory, control_file.NAME) == "file":
        _os.remove_file(directory, control_file.NAME)
    for name in _os.list_directory(directory):
        # It may be a copy that nobody has synced yet.
        if is_segment(name) and not name.endswith(TEMPORARY_SUFFIX):
            _os.sync(_os.open_file(name, True, follow=False, directory=directory))
    _os.sync(directory)
    manifest_file.write(directory, steps.manifest)
    segments = SegmentSet(directory, path, steps.manifest, False)
    end = recovery.find_tail(segments, steps.report.committed).seq
    damages = verify(segments, steps.manifest.first_seq, end).damages
    if damages or end != steps.report.committed:
        raise CorruptionError(
            f"{damages[0].reason if damages else f'the log ends at {end}'} after the repair", path
        )
