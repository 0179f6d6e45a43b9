"""Saving what verifies of a damaged log.

What is kept is written anew where it must change, in new files beside the old; what is not kept is set aside
under names ending in ``.bad``. All steps are written down, in place of the manifest, before the first of them
is taken, so that a repair that is cut short is taken up again where it stopped, and nobody opens the log in
between. Nothing that is in the log's files is ever overwritten.
"""

from __future__ import annotations

import contextlib
import errno
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
from mmaplog.manifest import Manifest
from mmaplog.remains import Progress, Remains, Wreck
from mmaplog.scan import Run, place, scan
from mmaplog.segment import TEMPORARY_SUFFIX, is_segment
from mmaplog.segment_set import SegmentSet
from mmaplog.verify import verify

_Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

# So much is written at a time.
_PIECE = 4 << 20


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

    The log now holds the records [first_seq, committed). `lost` says which it held before and does not hold
    now. `set_aside` names the files that now end in ``.bad``, `problems` says of each file what was wrong.
    `torn` is the number of an append at the very end that was not finished, or not written by the device,
    which may or may not have been committed; None when there is none. Nothing was done when not `changed`.
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
    """Records that stay in the log: in the file that they are in, or `rewritten`."""

    source: Remains
    run: Run
    rewritten: bool


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
    the segments. Records keep their numbers, and a batch is kept whole or not at all. A log has no gaps, so
    of several stretches between damage the one with the most records is kept. Nothing is overwritten or
    removed but CONTROL and unfinished files: what is left out is set aside in files ending in ``.bad``. A
    repair that is cut short at any point is run again and goes on.

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
        kept, lost, torn = _choose(wreck)
        if not _is_damaged(wreck):
            return _report(wreck, kept, lost, torn, (), changed=False, dry_run=dry_run)
        return _carry_out(wreck, kept, lost, torn, dry_run)


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


def _choose(wreck: Wreck) -> tuple[list[_Kept], list[Lost], int | None]:
    # Which records stay, which are lost, and the number that stands torn at the end.
    stretches: list[list[tuple[Remains, Run]]] = []
    for each in wreck.segments:
        for run in each.found.runs:
            if stretches and stretches[-1][-1][1].stop == run.start:
                stretches[-1].append((each, run))
            else:
                stretches.append([(each, run)])
    # A log has no gaps. Of stretches of one length the newest.
    best = max(
        stretches, key=lambda each: (each[-1][1].stop - each[0][1].start, each[-1][1].stop), default=[]
    )
    # What a failed sync did not write, the kernel holds for written: only a copy can be synced.
    durable = remains.SEQ_END
    if wreck.control is not None and wreck.control.poison:
        durable = wreck.control.durable
    kept = [
        _Kept(each, run, bool(each.problem) or each.whole != run or run.stop > durable) for each, run in best
    ]
    start = best[0][1].start if best else wreck.evidence
    stop = best[-1][1].stop if best else start
    lost = list(_lost_before(wreck, stretches, start, stop))
    last = wreck.segments[-1] if wreck.segments else None
    torn = None
    if last is None or last.page.footers:
        lost.append(Lost(wreck.evidence, None, "the last segment is missing"))
    elif last.problem and not last.found.runs and not last.page.marks and wreck.control is None:
        lost.append(Lost(wreck.evidence, None, "nothing in the last segment says how many there were"))
    if last is not None and last.found.leftover is not None and wreck.control is None:
        torn = max(last.found.runs[-1].stop if last.found.runs else last.base_seq, wreck.evidence)
    return kept, lost, torn


def _lost_before(
    wreck: Wreck, stretches: list[list[tuple[Remains, Run]]], start: int, stop: int
) -> Iterator[Lost]:
    at = wreck.first_seq
    if wreck.manifest is None and at:
        yield Lost(0, at, "not known: the log may have begun later, which only the manifest could tell")
    for stretch in stretches:
        begin, end = stretch[0][1].start, stretch[-1][1].stop
        if at < begin:
            yield Lost(at, begin, "damaged or missing")
        if begin != start:
            yield Lost(begin, end, "whole, but beyond damage: kept in the files that were set aside")
        at = end
    if at < wreck.evidence:
        yield Lost(at, wreck.evidence, "damaged or missing")


def _is_damaged(wreck: Wreck) -> bool:
    # Whether anything is wrong that opening does not settle by itself.
    segments = wreck.segments
    follows = [each.base_seq for each in segments[1:]]
    return bool(
        not segments
        or wreck.manifest_problem
        or wreck.control_problem
        or segments[0].base_seq != wreck.first_seq
        or any(each.problem for each in (*segments, *wreck.strays))
        or [each.boundary for each in segments[:-1]] != follows
        or wreck.evidence > (segments[-1].whole or Run(0, 0, 0, 0)).stop
    )


def _report(
    wreck: Wreck,
    kept: list[_Kept],
    lost: list[Lost],
    torn: int | None,
    aside: tuple[str, ...],
    *,
    changed: bool,
    dry_run: bool,
) -> Repaired:
    problems = [(each.name, each.problem) for each in (*wreck.segments, *wreck.strays) if each.problem]
    if wreck.manifest is None:
        problems.append((manifest_file.NAME, wreck.manifest_problem or "is missing"))
    if wreck.control_problem:
        problems.append((control_file.NAME, wreck.control_problem))
    start = kept[0].run.start if kept else wreck.evidence
    stop = kept[-1].run.stop if kept else start
    return Repaired(
        wreck.path, wreck.log_uuid, start, stop, tuple(lost), torn, tuple(problems), aside, changed, dry_run
    )


def _carry_out(
    wreck: Wreck, kept: list[_Kept], lost: list[Lost], torn: int | None, dry_run: bool
) -> Repaired:
    directory = wreck.directory
    if not dry_run:
        # Of a repair, or a writer, that was killed before anything counted.
        for name in _os.list_directory(directory):
            if name.endswith(TEMPORARY_SUFFIX) and is_segment(name):
                _os.remove_file(directory, name)
    stop = kept[-1].run.stop if kept else wreck.evidence
    is_cut = torn is not None or wreck.evidence > stop or not kept
    is_cut = is_cut or any(each.stop is None for each in lost)
    kept = _with_a_new_end(wreck, kept, is_cut)
    publish = [(name + TEMPORARY_SUFFIX, name) for name in _rewrite(wreck, kept, is_cut, dry_run)]
    staying = {each.source.name for each in kept if not each.rewritten}
    going = [each.name for each in wreck.segments if each.name not in staying]
    going += [each.name for each in wreck.strays]
    if wreck.control_problem:
        going.append(control_file.NAME)
    start = kept[0].run.start if kept else stop
    made = wreck.manifest or Manifest(wreck.log_uuid, wreck.segment_bytes, start)
    report = _report(wreck, kept, lost, torn, tuple(going), changed=True, dry_run=dry_run)
    if dry_run:
        return report
    aside = [(name, _name_for(directory, name)) for name in going]
    steps = _Steps(publish, aside, replace(made, log_uuid=wreck.log_uuid, first_seq=start), report)
    _keep_manifest(directory, wreck)
    _os.sync(directory)
    manifest_file.write_steps(directory, _to_text(steps))
    _finish(directory, wreck.path, steps)
    return report


def _with_a_new_end(wreck: Wreck, kept: list[_Kept], is_cut: bool) -> list[_Kept]:
    # When segments change, the last one becomes a new file, with a new id: whatever was derived from the log
    # as it was, an index of its keys for one, names the old id and is not taken to fit.
    unchanged = [each.source.name for each in kept if not each.rewritten]
    if not kept or kept[-1].source is not wreck.segments[-1]:
        return kept
    if not is_cut and unchanged == [each.name for each in wreck.segments]:
        return kept
    return [*kept[:-1], replace(kept[-1], rewritten=True)]


def _rewrite(wreck: Wreck, kept: list[_Kept], is_cut: bool, dry_run: bool) -> list[str]:
    # The names of the new segments, which wait under temporary ones.
    names = []
    stop = kept[-1].run.stop if kept else wreck.evidence
    for each in kept:
        if each.rewritten:
            is_last = each is kept[-1] and not is_cut
            names.append(_rewrite_one(wreck, each, is_last, dry_run))
    last = wreck.segments[-1] if wreck.segments else None
    was_empty = last is not None and not last.found.runs and not last.problem and last.base_seq == stop
    if is_cut or (was_empty and last is not None):
        # Numbers from here on may be used again, which only a higher epoch allows.
        epochs = [found.page.epoch for found in (*wreck.segments, *wreck.strays) if found.trusted]
        epoch = max(epochs, default=0) + is_cut
        front = page.make(
            wreck.log_uuid.bytes,
            segment_id := control_file.random_word(),
            stop,
            0,
            wreck.segment_bytes,
            epoch,
        )
        name = f"{stop:020}-{segment_id:016x}.seg"
        if not dry_run:
            _write_file(wreck.directory, name, memoryview(front))
        names.append(name)
    return names


def _rewrite_one(wreck: Wreck, kept: _Kept, is_last: bool, dry_run: bool) -> str:
    run, source = kept.run, kept.source
    segment_id = control_file.random_word()
    with remains.private_copy(wreck.directory, wreck.path, source) as data:
        end = place(data, run, segment_id, run.start)
        capacity = max(source.capacity, wreck.segment_bytes, end)
        front = page.make(
            wreck.log_uuid.bytes, segment_id, run.start, source.page.base_time, capacity, source.page.epoch
        )
        if is_last:
            front = page.mark(front, segment_id, run.stop, end)
        else:
            front = page.seal(front, segment_id, run.start, run.stop, end)
        data[: page.SIZE] = front
        expected = (Run(run.start, run.stop, page.SIZE, end),)
        if scan(data[:end], segment_id, run.start, run.start, remains.SEQ_END).runs != expected:
            raise CorruptionError(f"the bytes of {source.name} change while they are read", wreck.path)
        name = f"{run.start:020}-{segment_id:016x}.seg"
        if not dry_run:
            _write_file(wreck.directory, name, data[:end])
    return name


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
    segments = SegmentSet(directory, path, steps.manifest.log_uuid, False)
    end = recovery.find_tail(segments, steps.report.committed).seq
    damages = verify(segments, steps.manifest.first_seq, end).damages
    if damages or end != steps.report.committed:
        raise CorruptionError(
            f"{damages[0].reason if damages else f'the log ends at {end}'} after the repair", path
        )
    manifest_file.write(directory, steps.manifest)
