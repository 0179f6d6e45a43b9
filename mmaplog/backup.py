"""Copying a log while it is in use, into a log of its own."""

from __future__ import annotations

import bisect
import contextlib
import errno
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from mmapio import _os
from mmaplog import manifest as manifest_file
from mmaplog import page
from mmaplog.errors import CorruptionError, LogError
from mmaplog.lock import NAME as LOCK_NAME
from mmaplog.manifest import Manifest
from mmaplog.segment import list_segments
from mmaplog.segment_set import SegmentSet
from mmaplog.verify import verify as verify_segments

if TYPE_CHECKING:
    from mmaplog.log import Log

_Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Progress: TypeAlias = Callable[[int, int], object]

TEMPORARY_SUFFIX = ".tmp"
# Each time, somebody removed a segment that was about to be copied, which he does not do without end.
ATTEMPTS = 100
_PAUSE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup made: a log of its own in `path`, with the records [first_seq, committed)."""

    path: str
    log_uuid: uuid.UUID
    first_seq: int
    committed: int
    segments: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """A segment that is to be copied: all of it when `end` is None, else as far as its records reached."""

    base_seq: int
    segment_id: int
    name: str
    end: int | None


@dataclass(frozen=True, slots=True)
class _Plan:
    """A moment of the log: its manifest, its next number, the segments that hold what is before that."""

    manifest: Manifest
    committed: int
    pieces: list[_Piece]


def backup(log: Log, target: _Path, *, verify: bool = True, progress: Progress | None = None) -> Backup:
    """Copy `log` into the new directory `target`; :meth:`mmaplog.Log.backup` says what that means."""
    place = Path(os.fsdecode(target)).absolute()
    origin = Path(log.path).absolute()
    if os.path.lexists(place):
        raise FileExistsError(errno.EEXIST, "is there already; a backup makes a new directory", str(place))
    if origin.resolve() in (place.parent.resolve(), *place.parent.resolve().parents):
        raise LogError(
            errno.EINVAL, "a backup cannot be made within the directory of the log itself", str(place)
        )
    parent = _os.open_directory(str(place.parent))
    temporary = f"{place.name}.{os.urandom(8).hex()}{TEMPORARY_SUFFIX}"
    try:
        _os.make_directory(temporary, parent)
    except OSError as error:
        error.filename = str(place)
        raise
    directory = _os.open_directory(temporary, parent)
    named = temporary
    try:
        made = _fill(log, directory, str(place), verify, progress)
        _os.sync(directory, metadata=True)
        _os.rename_new(parent, temporary, place.name)
        named = place.name
        _os.sync(parent)
        return made
    except BaseException:
        _discard(parent, directory, named)
        raise


def _fill(log: Log, directory: _os.Descriptor, place: str, verify: bool, progress: Progress | None) -> Backup:
    # A log of its own: both may be written to from now on, and whoever knows numbers of one, consumers above
    # all, must never take the other for it.
    own = uuid.uuid4()
    copied: dict[int, int] = {}
    for attempt in range(ATTEMPTS):
        plan = _plan(log, last=attempt == ATTEMPTS - 1)
        if plan is None:
            time.sleep(_PAUSE_SECONDS)
            continue
        # Until all is there it is a log that was being emptied, which nobody opens for reading.
        unfinished = replace(plan.manifest, log_uuid=own, erasing=True)
        manifest_file.write(directory, unfinished)
        if _copy_pieces(log, plan, directory, own, copied, progress):
            break
    else:
        raise LogError(errno.EAGAIN, "segments went faster than they could be copied; try again", log.path)
    for _, segment_id, name in list_segments(directory):
        if segment_id not in {piece.segment_id for piece in plan.pieces}:
            _os.remove_file(directory, name)
            del copied[segment_id]
    if verify:
        _verify(log, plan, directory, place, own)
    _os.sync(_os.open_file(LOCK_NAME, True, create=True, exclusive=True, follow=False, directory=directory))
    manifest_file.write(directory, replace(unfinished, erasing=False))
    total = sum(copied.values())
    return Backup(place, own, plan.manifest.first_seq, plan.committed, len(plan.pieces), total)


def _plan(log: Log, *, last: bool) -> _Plan | None:
    # The end first, then the names and the manifest: what is removed in between is known to be gone. None
    # when what was listed does not go together, which is damage if it is never any better.
    log.committed  # noqa: B018  raises Closed, and MappingFault where CONTROL was cut
    committed, tail_id, end, _ = log.control.tail
    log.segments.relist()
    names, manifest = log.segments.listing(), log.segments.manifest
    if manifest.cut is not None or manifest.first_seq > committed:
        # The end is being dropped: what is beyond it goes any moment. Or all of it was dropped since.
        return None
    tails = [entry for entry in names if entry[1] == tail_id]
    before = [entry for entry in names if tails and entry[0] < tails[0][0]]
    bases = sorted({base for base, _, _ in before + tails})
    begin = bisect.bisect_right(bases, manifest.first_seq) - 1
    if not tails or begin < 0:
        if last:
            missing = f"{tail_id:016x}" if not tails else f"that holds record {manifest.first_seq}"
            raise CorruptionError(f"the segment {missing} is missing; repair the log first", log.path)
        return None
    pieces = []
    for base in bases[begin:-1]:
        twins = [entry for entry in before if entry[0] == base]
        chosen = twins[0] if len(twins) == 1 else _the_one_that_counts(log, twins)
        pieces.append(_Piece(*chosen, None))
    return _Plan(manifest, committed, [*pieces, _Piece(*tails[0], end)])


def _the_one_that_counts(log: Log, twins: list[tuple[int, int, str]]) -> tuple[int, int, str]:
    # Of segments with one base number: the newest epoch, and not an empty one if there is a choice.
    def rank(entry: tuple[int, int, str]) -> tuple[int, bool, int]:
        segment = log.segments.get(entry[1])
        opened = _os.open_file(entry[2], False, follow=False, directory=log.segments.directory)
        return segment.epoch, any(_os.read_at(opened, 8, page.SIZE)), -segment.id

    return max(twins, key=rank)


def _copy_pieces(
    log: Log,
    plan: _Plan,
    directory: _os.Descriptor,
    own: uuid.UUID,
    copied: dict[int, int],
    progress: Progress | None,
) -> bool:
    # False when a segment went meanwhile: those before it may be gone from the log, too.
    source = log.segments.directory
    total = sum(_size(source, piece) for piece in plan.pieces)
    done = 0
    for piece in plan.pieces:
        if piece.segment_id not in copied:
            try:
                opened = _os.open_file(piece.name, False, follow=False, directory=source)
            except FileNotFoundError:
                return False
            copied[piece.segment_id] = _copy(log, piece, plan.committed, opened, directory, own)
        done += copied[piece.segment_id]
        if progress is not None:
            progress(done, max(total, done))
    return True


def _size(directory: _os.Descriptor, piece: _Piece) -> int:
    if piece.end is not None:
        return piece.end
    with contextlib.suppress(FileNotFoundError):
        return _os.file_size(_os.open_file(piece.name, False, follow=False, directory=directory))
    return 0


def _copy(
    log: Log,
    piece: _Piece,
    committed: int,
    opened: _os.Descriptor,
    directory: _os.Descriptor,
    own: uuid.UUID,
) -> int:
    made = _os.open_file(piece.name, True, create=True, exclusive=True, follow=False, directory=directory)
    front = _os.read_at(opened, page.SIZE, 0)
    about = page.read(front)
    if (
        not about.sealed
        or about.segment_id != piece.segment_id
        or about.log_uuid != log.segments.log_uuid.bytes
    ):
        raise CorruptionError("the segment's header is damaged; repair the log first", opened.path)
    front = page.rehome(front, own.bytes)
    if piece.end is None:
        _os.copy_content(opened, made)
        size = _os.file_size(made)
    else:
        size, _ = _os.copy_start(opened, made, piece.end)
        if size < piece.end:
            raise CorruptionError(
                f"the records reach to offset {piece.end}, but the file ends at {size}; repair the log first",
                opened.path,
            )
        _os.set_size(made, size)
        # Marks and footers that were written meanwhile speak of more than was copied. What was copied is
        # durable when the backup is done.
        front = page.mark(front, piece.segment_id, committed, piece.end)
    _os.write_at(made, front, 0)
    _os.sync(made, metadata=True)
    return size


def _verify(log: Log, plan: _Plan, directory: _os.Descriptor, place: str, own: uuid.UUID) -> None:
    segments = SegmentSet(directory, place, replace(plan.manifest, log_uuid=own), False)
    for damage in verify_segments(segments, plan.manifest.first_seq, plan.committed).damages:
        where = Path(log.path) / Path(damage.path).name
        raise CorruptionError(
            f"record {damage.seq} at offset {damage.offset} cannot be copied: {damage.reason}; "
            "repair the log first, or copy it without verifying",
            str(where),
        )


def _discard(parent: _os.Descriptor, directory: _os.Descriptor, name: str) -> None:
    with contextlib.suppress(OSError):
        # The manifest last: without it, the segments that are left would pass for a log.
        for each in sorted(_os.list_directory(directory), key=lambda each: each == manifest_file.NAME):
            _os.remove_file(directory, each)
        _os.remove_directory(parent, name)
