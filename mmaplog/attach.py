"""Opening a log's directory: locks first, then identity, then where the log ends.

Everything is checked before anything is written, and whoever opens or closes excludes the others meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

from mmapio import _os
from mmapio.errors import FlushFailed
from mmaplog import bookmark_format, recovery
from mmaplog import control as control_file
from mmaplog import manifest as manifest_file
from mmaplog.control import Control
from mmaplog.derive import derive_manifest
from mmaplog.errors import CorruptionError, FormatError, Locked, Poisoned
from mmaplog.lock import NAME as LOCK_NAME
from mmaplog.lock import LockFile
from mmaplog.manifest import SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, TEMPORARY_SUFFIX, Manifest
from mmaplog.reserve import NAME as RESERVE_NAME
from mmaplog.reserve import spend_if_full
from mmaplog.segment import RECORDS_START, create_segment, is_segment, list_segments
from mmaplog.segment_set import SegmentSet
from mmaplog.truncation import FIRST_ALLOCATION, finish_cut

MODES = ("r", "w", "c", "n")

#: What a layer above finds its records by. The log beside it is written to by that layer alone.
INDEX_NAME = "INDEX"


@dataclass
class Attachment:
    """What opening a log found; the handle takes it apart."""

    directory: _os.Descriptor
    locks: LockFile
    manifest: Manifest
    segments: SegmentSet
    control: Control
    recovered: bool


def attach(
    path: str,
    mode: str,
    segment_bytes: SupportsIndex,
    derived: tuple[str, ...] = (),
    *,
    shared: bool = False,
) -> Attachment:
    """Open the log in `path` with one of the modes r, w, c, n; `derived` names files of an upper layer.

    With `shared`, others who say so may write too.

    Raises ValueError for another mode, FileNotFoundError, NotADirectoryError, PermissionError, Locked,
    FormatError, CorruptionError.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)} as in dbm, not {mode!r}")
    if shared and mode in "rn":
        raise ValueError(f"shared is for writers of a log that others may have open, not for mode {mode!r}")
    segment_bytes = operator.index(segment_bytes)
    if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX:
        raise ValueError(
            f"segment_bytes must be from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}, not {segment_bytes}"
        )
    directory = _open_directory(path, mode)
    if not manifest_file.exists(directory, path) and not list_segments(directory):
        _refuse_unless_empty(path, mode, _os.list_directory(directory), derived)
    locks = LockFile(directory, path, create=mode != "r")
    try:
        # In this order for everybody: who waits to open holds nothing that could keep another from opening.
        locks.begin()
        try:
            if mode != "r":
                locks.claim_writer(shared=shared)
            return _attach_locked(path, mode, segment_bytes, derived, shared, directory, locks)
        finally:
            locks.end()
    except BaseException:
        locks.close()
        raise


def _attach_locked(
    path: str,
    mode: str,
    segment_bytes: int,
    derived: tuple[str, ...],
    shared: bool,
    directory: _os.Descriptor,
    locks: LockFile,
) -> Attachment:
    alone = locks.attach()
    if mode == "n":
        if not alone:
            raise Locked("others have it open for reading, so it cannot be replaced; close them first", path)
        if INDEX_NAME not in derived and _os.kind_of(directory, INDEX_NAME) != "nothing":
            raise FormatError("holds a store, which KVStore.open replaces; use another path", path)
        if manifest_file.exists(directory, path) or list_segments(directory):
            manifest_file.write(directory, Manifest(uuid.uuid4(), segment_bytes, 0, erasing=True))
    writing = mode != "r"
    # A writer at work vouches for CONTROL, and moves on while we look; nobody else can begin to write before
    # we are done, nor close. Asked before MANIFEST is read, which who is killed after that may have replaced:
    # all else he leaves as if he had been killed once we are done.
    vouched = locks.has_writer()
    manifest = _identify(path, directory, segment_bytes, derived, writing=writing, may_create=mode in "cn")
    control = control_file.load(directory, manifest.log_uuid, writing, not alone)
    segments = SegmentSet(directory, path, manifest, writing, control if vouched else None, not vouched)
    # Whoever has the log open may have dropped its first segments since it was read.
    manifest = segments.manifest
    if not segments.bases() or segments.bases()[0] > manifest.first_seq:
        raise CorruptionError(
            f"records from {segments.manifest.first_seq} on are missing: "
            f"the first segment begins with {segments.bases()[:1]}; restore the files from a backup",
            path,
        )
    recovered = False
    if writing and vouched and control is None:
        raise Locked(
            "other processes write it, and CONTROL, by which they know of each other, is missing or damaged; "
            "close it there, then open it again",
            path,
        )
    if manifest.cut is not None and not vouched:
        control = _finish_cut(path, directory, locks, segments, control, writing, alone)
        # A reader did so by a set of its own.
        segments.relist()
        manifest = segments.manifest
    # The segment that it names counts, also where a roll that was not finished begins where the log does.
    segments.watch(control)
    if control is None or not (vouched or recovery.confirm(segments, control)):
        segments.watch(None)
        # CONTROL that goes with this page cache knows how much there was, even where it cannot say more.
        floor = 0 if control is None else control.tail[0]
        # Nor is every page what it seems to be, where it says that syncs failed, or may have.
        again = control is not None and bool(control.poison or control.sync_inflight)
        control = _recover(path, directory, locks, manifest, segments, writing, floor, again)
        segments.watch(control)
        recovered = True
    elif writing and not vouched and control.sync_inflight and not control.poison:
        _repeat_sync(segments, control)
    if not recovered and control.poison and writing:
        if not alone:
            raise Poisoned(
                control.poison,
                f"a sync failed earlier ({os.strerror(control.poison)}); what it covered is saved by the "
                "next writer that opens alone, so close every other handle first",
                path,
            )
        segments.watch(None)
        control = _salvage(directory, manifest, segments, control)
        segments.watch(control)
        recovered = True
    if writing and not vouched:
        _clean_up(directory, segments, control, manifest, derived)
    segments.sole = writing and not shared
    return Attachment(directory, locks, manifest, segments, control, recovered)


def _clean_up(
    directory: _os.Descriptor,
    segments: SegmentSet,
    control: Control,
    manifest: Manifest,
    derived: tuple[str, ...],
) -> None:
    # After somebody who was killed, for who is about to write.
    strays = segments.strays()
    if strays:
        # MANIFEST says that they do not count; who wrote it may have been killed before it was durable.
        manifest_file.sync(directory)
        _os.sync(directory)
    if strays or control.first_seq != manifest.first_seq:
        # A writer was killed after MANIFEST said what counts, and before he had told those who read.
        control.change(manifest.first_seq)
    # What a layer above keeps may still lead there.
    doomed = [] if derived else strays
    recovery.cleanse(segments, control, [*_temporaries(segments.beside(), derived), *doomed])
    control.unseal()


def _finish_cut(
    path: str,
    directory: _os.Descriptor,
    locks: LockFile,
    segments: SegmentSet,
    control: Control | None,
    writing: bool,
    alone: bool,
) -> Control:
    # Somebody was killed while he dropped the end of the log. It counts since MANIFEST says so.
    cut = segments.manifest.cut
    assert cut is not None
    if not writing:
        if not locks.writable or not os.access(path, os.W_OK):
            raise PermissionError(
                errno.EACCES,
                f"dropping the records from {cut.seq} on was interrupted, and this reader may not write; "
                "open it once for writing, which finishes that",
                path,
            )
        locks.claim_writer()
        segments = SegmentSet(directory, path, segments.manifest, True)
        if control is not None:
            # What a reader has mapped cannot be stored to.
            control = control_file.load(directory, segments.log_uuid, True, not alone)
    _, control = finish_cut(segments, segments.manifest, control)
    if not writing:
        locks.release_writer()
    return control


def _repeat_sync(segments: SegmentSet, control: Control) -> None:
    # Somebody was killed while he synced.
    try:
        recovery.repeat_sync(segments, control, control.sync_inflight)
    except FlushFailed as error:
        control.fail_sync(error.errno or errno.EIO)
    except CorruptionError:
        # It had failed: the kernel has not even kept what was committed.
        control.fail_sync(errno.EIO)


def _salvage(
    directory: _os.Descriptor, manifest: Manifest, segments: SegmentSet, poisoned: Control
) -> Control:
    tail = recovery.find_tail(segments, poisoned.durable)
    tail = recovery.salvage(segments, tail, poisoned.durable, manifest.segment_bytes)
    return control_file.create(
        directory,
        manifest.log_uuid,
        manifest.first_seq,
        tail.seq,
        tail.segment.id,
        tail.end,
        tail.last,
        tail.seq,
    )


def _recover(
    path: str,
    directory: _os.Descriptor,
    locks: LockFile,
    manifest: Manifest,
    segments: SegmentSet,
    writing: bool,
    floor: int,
    again: bool,
) -> Control:
    tail = recovery.find_tail(segments, floor)
    if not writing:
        if not locks.writable or not os.access(path, os.W_OK):
            # Who may not write keeps what it found to itself, and sees nothing that is written later. It is
            # not counted as attached: a writer that comes must not take the old CONTROL for one in use.
            locks.detach()
            return control_file.create(
                None,
                manifest.log_uuid,
                manifest.first_seq,
                tail.seq,
                tail.segment.id,
                tail.end,
                tail.last,
                tail.known_durable,
            )
        locks.claim_writer()
        segments = SegmentSet(directory, path, manifest, True)
        tail = recovery.find_tail(segments, floor)
    manifest_file.sync(directory)
    recovery.announce(directory, manifest, tail)
    segment, end = recovery.settle(segments, tail, manifest.segment_bytes, FIRST_ALLOCATION, again)
    last = tail.last if segment.id == tail.segment.id else 0
    words = (manifest.log_uuid, manifest.first_seq, tail.seq, segment.id, end, last, tail.seq)
    made = spend_if_full(directory, lambda: control_file.create(directory, *words))
    if not writing:
        locks.release_writer()
    return made


def _open_directory(path: str, mode: str) -> _os.Descriptor:
    try:
        return _os.open_directory(path)
    except FileNotFoundError:
        if mode in "rw":
            raise FileNotFoundError(
                errno.ENOENT,
                f"does not exist; mode {mode!r} opens only what is there, use 'c' to create",
                path,
            ) from None
    except NotADirectoryError:
        raise NotADirectoryError(errno.ENOTDIR, "is a file; a log or store is a directory", path) from None
    # Another process may be creating it too; which of them makes the log is settled by the locks.
    with contextlib.suppress(FileExistsError):
        _os.make_directory(path)
    return _os.open_directory(path)


def _sync_parent(path: str) -> None:
    # The name of the log's own directory, whoever made it: who did may have been killed before he came to
    # this.
    with contextlib.suppress(PermissionError):
        _os.sync(_os.open_directory(os.fspath(Path(path).absolute().parent)))


def _refuse_unless_empty(path: str, mode: str, names: list[str], derived: tuple[str, ...]) -> None:
    if mode in "rw":
        raise FileNotFoundError(
            errno.ENOENT, f"holds no {_noun(derived)}; mode {mode!r} opens only what is there, use 'c'", path
        )
    ours = {LOCK_NAME, manifest_file.NAME, control_file.NAME, RESERVE_NAME, *derived}
    foreign = sorted(
        name for name in names if name.removesuffix(TEMPORARY_SUFFIX) not in ours and not is_segment(name)
    )
    if foreign:
        raise FormatError(
            f"the directory holds no {_noun(derived)} but other files ({foreign[0]!r}, ...); use an empty "
            "one",
            path,
        )


def _noun(derived: tuple[str, ...]) -> str:
    # What it is called by whoever asked for it: with files beside the log it is a store.
    return "store" if derived else "log"


def _identify(
    path: str,
    directory: _os.Descriptor,
    segment_bytes: int,
    derived: tuple[str, ...],
    *,
    writing: bool,
    may_create: bool,
) -> Manifest:
    try:
        manifest = manifest_file.read(directory, path)
    except FileNotFoundError:
        names = list_segments(directory)
        if not names and not may_create:
            raise
    else:
        if not manifest.erasing:
            return manifest
        if not may_create:
            raise FileNotFoundError(
                errno.ENOENT,
                f"the {_noun(derived)} was being replaced by an empty one; open it with mode 'c' or 'n'",
                path,
            )
        _erase(directory, derived)
        names = []
    if names:
        # Creation was cut short, or the file was lost; the segments know the same.
        manifest = derive_manifest(directory, names)
    else:
        manifest = Manifest(uuid.uuid4(), segment_bytes, 0)
        first = create_segment(directory, manifest.log_uuid, 0, 0, segment_bytes, FIRST_ALLOCATION)
        # Known to be empty: nothing is recovered, and no number can have been given out.
        control_file.create(directory, manifest.log_uuid, 0, 0, first.id, RECORDS_START, 0, 0)
    if writing:
        # A manifest that is durable implies a first segment that is, whoever made it.
        _os.sync(directory)
        _sync_parent(path)
        manifest_file.write(directory, manifest)
    return manifest


def _erase(directory: _os.Descriptor, derived: tuple[str, ...]) -> None:
    # The manifest stays, saying that this is under way, until that of the new log replaces it.
    names = _os.list_directory(directory)
    doomed = {name for name in names if name in (control_file.NAME, RESERVE_NAME, *derived)}
    doomed.update(name for name in names if bookmark_format.is_ours(name))
    doomed.update(name for name in names if is_segment(name.removesuffix(recovery.BAD_SUFFIX)))
    for name in doomed.union(_temporaries(names, derived)):
        _os.remove_file(directory, name)
    _os.sync(directory)


def _temporaries(names: list[str], derived: tuple[str, ...]) -> list[str]:
    # What a killed writer may have left half made.
    ours = (manifest_file.NAME, control_file.NAME, *derived)
    return [
        name
        for name in names
        if name.endswith(TEMPORARY_SUFFIX)
        and (name.removesuffix(TEMPORARY_SUFFIX) in ours or is_segment(name))
    ]
