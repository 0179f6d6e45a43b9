"""Opening the index of a store: believing it, bringing it up to the log, or building it anew."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mmapio import _os
from mmapio.options import FlushPolicy
from mmapkv import hints, index_file, relocation
from mmapkv.building import build
from mmapkv.catch_up import catch_up
from mmapkv.errors import StoreError
from mmapkv.index import Index, Reseed
from mmapkv.slots import SlotMap
from mmaplog import control as control_file
from mmaplog import manifest as manifest_file
from mmaplog.attach import INDEX_NAME
from mmaplog.errors import CorruptionError, Locked
from mmaplog.log import DEFAULT_SEGMENT_BYTES, Log, open_log

logger = logging.getLogger("mmapkv")

NAME = INDEX_NAME
TEMPORARY = f"{NAME}.tmp"
# How long a reader waits for a writer that is just opening the store, or rebuilding its index.
WAIT_SECONDS_MAX = 10.0
WAIT_STEP_SECONDS = 0.005
# What stands in the way of a writer's work.
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def provide_for(log: Log, place: str) -> tuple[Index, SlotMap]:
    """The index for a handle just opened in `place`, whatever that takes and whatever the handle may do.

    Costs nothing after a clean close. Raises StoreError when a writer does not come to provide it, LogError
    in who has interrupted a write of his own.
    """
    return _write_index(log) if log.writable else _read_index(log, place)


@contextmanager
def joined(log: Log) -> Iterator[tuple[Index, SlotMap]]:
    """The index, brought up to the log or built anew; nobody else writes before the block ends.

    Whatever a writer left half done who was killed is finished, but for a compaction while another one is
    under way. Costs nothing when nothing is.
    """
    alone = log.try_care()
    try:
        log.pause()
        try:
            if alone:
                # The others may have compacted since this handle looked.
                log.segments.relist()
            found = provide(log, finishing=alone)
            if alone:
                log.drop_strays()
                hints.sweep(log, opening=True)
        except BaseException:
            log.unpause()
            raise
    finally:
        if alone:
            log.leave_care()
    try:
        yield found
    finally:
        log.unpause()


def is_outdated(log: Log, index: Index) -> bool:
    """Whether somebody has written who does not keep this index up, nor the end of the log that goes with it.

    That is so only where a reader may write neither. To be asked after a Pin was taken: when not, whoever
    compacts later knows of that.
    """
    basis = index.basis
    if basis is None:
        return False
    if log.has_writer() or index.progress()[0] != log.committed:
        return True
    return manifest_file.read(log.segments.directory, log.path) != basis


def load(log: Log, *, writing: bool) -> tuple[Index, SlotMap] | None:
    """The index on disk, if it agrees with the log.

    None when it must be rebuilt, or a reader must have that done. Raises FormatError for an index of a newer
    version.
    """
    try:
        found, _ = consider(log, writing=writing)
    except CorruptionError as error:
        logger.warning("%s: the index is not usable: %s", log.path, error)
        return None
    if found is not None:
        _attend(log, found[0], found[0].number)
    return found


def consider(log: Log, *, writing: bool) -> tuple[tuple[Index, SlotMap] | None, str | None]:
    """The index on disk, or why it is not to be believed though it is not damaged. Changes nothing.

    Raises CorruptionError for a damaged one, FormatError for one of a newer version.
    """
    slots = SlotMap(log.segments)
    try:
        opened = _os.open_file(NAME, writing, follow=False, directory=log.segments.directory)
    except FileNotFoundError:
        return None, "there is no index"
    found = index_file.load(opened, log.segments.log_uuid, slots, writing)
    if found.retired:
        return None, "the index was being replaced"
    named = log.control.index
    if named & ~index_file.CLOSED not in (0, found.number):
        return None, "it is not the index that was written to, though it has its name"
    if not index_file.is_plausible(found):
        raise CorruptionError("the state or the directory of the index makes no sense", opened.path)
    clean = index_file.read_mark(found)
    if named == found.number and found.incarnation == log.control.incarnation:
        # The same page cache as the log's CONTROL: whatever was stored is there, up to the last instruction.
        seq, _ = found.progress()
        if seq > log.committed:
            raise CorruptionError(f"the index holds {seq} records, the log {log.committed}", opened.path)
        return (found, slots), None
    if clean is None:
        return None, "the index was not closed, and the log is not as it was left"
    seq, segment_id, _ = clean
    listed = any(segment_id == each for _, each, _ in log.segments.listing())
    if not listed or not (seq <= log.committed if writing else seq == log.committed):
        return None, "the index was closed with another state of the log"
    return (found, slots), None


def provide(log: Log, *, finishing: bool = True) -> tuple[Index, SlotMap]:
    """The index, brought up to the log or built anew; for who keeps others from writing.

    With `finishing` a compaction that was cut short is carried out; not while another process may be at one.
    Costs nothing after a clean close.
    """
    found = load(log, writing=True)
    if found is None:
        return rebuild(log, None)
    index, _ = found
    # What a killed writer left half done: a split, the entries of its last records.
    index.resume()
    # And entries that a compaction was leading elsewhere.
    if finishing and not relocation.finish(index, log):
        return rebuild(log, index)
    seq, _ = index.progress()
    if seq < log.committed:
        try:
            # Somebody may have appended to the log alone.
            index_file.clear_mark(index)
        except CorruptionError:
            return rebuild(log, index)
        try:
            catch_up(index, log.replay(seq))
        except Reseed:
            # Its keys lie as those of no index do, whatever its checksums say.
            return rebuild(log, index)
    _keep_up(log, index)
    return found


def rebuild(log: Log, old: Index | None, *, sound: bool = False) -> tuple[Index, SlotMap]:
    """Build the index from the log alone, put it in place of the old one and tell those who have that mapped.

    `sound` says that nothing is wrong with the old one. Costs what `build` does. Nothing may be appended
    meanwhile.
    """
    directory = log.segments.directory
    if len(log):
        # That there is none was meant to be: it was removed, or never made, as in a copy.
        expected = sound or _os.kind_of(directory, NAME) == "nothing"
        level = logging.INFO if expected else logging.WARNING
        logger.log(level, "%s: rebuilding the index from %d records", log.path, len(log))
    with suppress(FileNotFoundError):
        _os.remove_file(directory, TEMPORARY)
    opened = _os.open_file(TEMPORARY, True, create=True, exclusive=True, follow=False, directory=directory)
    # One that will not do may be so for its seed, which the hints have too.
    try:
        made, slots = build(log, opened, by_hints=sound or old is None)
    except BaseException:
        # A full disk, say: what was taken of it goes back at once.
        with suppress(FileNotFoundError):
            _os.remove_file(directory, TEMPORARY)
        raise
    old = old or _open(log, SlotMap(log.segments), writable=True)
    if old is not None:
        # What compaction has removed is missing here, too. A damaged one may say anything.
        made.raise_horizon(min(old.horizon, log.committed))
        old.retire()
    _os.replace_file(directory, TEMPORARY, NAME)
    # One that is damaged, or has no name any more, was not marked: who has that mapped is told by the log.
    # Killed before that, it goes with no log, and the next one to come builds it once more.
    _keep_up(log, made)
    _attend(log, made, made.number)
    return made, slots


def conclude(log: Log, index: Index) -> None:
    """Close the index of a writer cleanly: whoever opens the store next believes this file, and closed.

    Costs a pass over the index and two syncs, nothing when it was not written to. While no other writes.
    """
    if index_file.read_mark(index) is None:
        index_file.mark_clean(index, log.committed, *log.end_of_tail)
    control_file.name_index(log.segments.directory, log.control, index.number | index_file.CLOSED)


def resume(log: Log, index: Index) -> None:
    """Take back :func:`conclude`, for a writer who was not closed after all. While no other writes."""
    _keep_up(log, index)
    index_file.clear_mark(index)


def build_private(log: Log) -> tuple[Index, SlotMap]:
    """Build an index in memory, for a reader who may not write beside the log.

    Nobody keeps it up: once a writer comes, his own takes its place.
    """
    named = log.control.index
    log.segments.relist()
    basis = log.segments.manifest
    made, slots = build(log, _os.anonymous_file(NAME), by_hints=True)
    made.adopt(log.control.incarnation)
    made.private = True
    made.basis = basis
    _attend(log, made, named)
    return made, slots


def _keep_up(log: Log, index: Index) -> None:
    # Once it has all that the log has. What is stored to it from here on counts, whoever is killed, and no
    # other file does that has its name.
    if index.incarnation != log.control.incarnation:
        index.adopt(log.control.incarnation)
    if log.control.index != index.number:
        control_file.name_index(log.segments.directory, log.control, index.number)


def _attend(log: Log, index: Index, named: int) -> None:
    # Who writes alone is who replaces it, but a forked child of his may live on. Who may not write CONTROL
    # has one of his own.
    if not log.control.private:
        index_file.attend(index, log.control, named)


def _write_index(log: Log) -> tuple[Index, SlotMap]:
    # What this would wait for, others hold who wait for the tail.
    log.refuse_within_tail("opening an index")
    log.begin_exclusive()
    try:
        if log.shared:
            with joined(log) as joint:
                return joint
        found = provide(log)
        log.drop_strays()
        hints.sweep(log, opening=True)
        return found
    finally:
        log.end_exclusive()


def _read_index(log: Log, place: str) -> tuple[Index, SlotMap]:
    if log.control.private:
        return _read_picture(log)
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        found, provided = None, False
        log.begin_exclusive()
        try:
            found = load(log, writing=False)
            if found and relocation.is_settled(found[0]) and found[0].progress()[0] == log.committed:
                return found
            # To bring it up is a writer's work; done in its place where there is none and it is allowed.
            log.claim()
            try:
                provide(log)
                provided = True
            finally:
                log.unclaim()
        except Locked:
            # The writer is between two stores, or about to provide an index.
            if found is not None:
                return found
        except OSError as error:
            if error.errno not in FORBIDDEN:
                raise
            # What an index that is a little behind lacks was never acknowledged; and it is live, which a
            # private one is not.
            return found or build_private(log)
        finally:
            log.end_exclusive()
        if time.monotonic() > deadline:
            raise StoreError(
                errno.ETIMEDOUT,
                f"waited {WAIT_SECONDS_MAX} s for an index of the log as this reader found it: "
                f"{_reason(log)}; open it again, once who has it open for writing was closed",
                log.path,
            )
        if not provided:
            _have_it_provided(place)
            time.sleep(WAIT_STEP_SECONDS)


def _reason(log: Log) -> str:
    # Why a reader cannot do with what is there.
    try:
        _, why = consider(log, writing=False)
    except CorruptionError as error:
        return str(error)
    return why or "it lags behind the log"


def _have_it_provided(place: str) -> None:
    # By being one more writer for a moment, where those that there are allow it. One may have been killed who
    # was about to put a new index in the place of the old, and the others not come to write for long.
    with suppress(OSError):
        log = open_log(Log, place, "w", FlushPolicy.NEVER, False, DEFAULT_SEGMENT_BYTES, (NAME,), True)
        try:
            provide_for(log, place)
        finally:
            log.close()


def _read_picture(log: Log) -> tuple[Index, SlotMap]:
    # The log is seen as it was found. An index that was closed just there is as good as one built from it.
    basis = log.segments.manifest
    log.begin_exclusive()
    try:
        found = load(log, writing=False)
    except PermissionError:
        found = None
    finally:
        log.end_exclusive()
    if found is None:
        return build_private(log)
    found[0].basis = basis
    return found


def _open(log: Log, slots: SlotMap, *, writable: bool) -> Index | None:
    try:
        opened = _os.open_file(NAME, writable, follow=False, directory=log.segments.directory)
    except FileNotFoundError:
        return None
    try:
        return index_file.load(opened, log.segments.log_uuid, slots, writable)
    except CorruptionError as error:
        logger.warning("%s: the index is not usable: %s", log.path, error)
        return None
