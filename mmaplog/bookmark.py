"""The file in which a consumer or group keeps its place: found or made, locked, read, stored to.

A place is kept in checked copies. Of those that verify the newest counts, and each store replaces the older
of a pair, so that one which is cut short, by a kill or by a power cut, leaves the place before it. There are
two pairs: one for every commit, one for commits that are then synced, so that what is stored to after a sync
is never what the sync was for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

from mmapio import MemoryMappedFile, _fork, _os
from mmapio.errors import Closed
from mmapio.options import FlushPolicy
from mmaplog import bookmark_format as layout
from mmaplog.bookmark_format import Header, Place
from mmaplog.control import random_word
from mmaplog.errors import CorruptionError, FormatError, Locked, LogError

if TYPE_CHECKING:
    from mmaplog.control import Control
    from mmaplog.log import Log
    from mmaplog.manifest import Consent

KINDS = {layout.KIND_CONSUMER: "consumer", layout.KIND_GROUP: "group"}
# How often somebody who holds no lock looks again before he takes an older copy.
_LOOKS = 8


class Held:
    """The descriptor that the locks on the file of a consumer are of. A forked child has none of it."""

    def __init__(self, opened: _os.Descriptor) -> None:
        self.opened: _os.Descriptor | None = opened
        _fork.register(self)

    def drop(self) -> None:
        """Give up all locks, whatever copies of the descriptor there are. The second time does nothing."""
        opened = self.opened
        if opened is not None:
            # First: whatever ends this early, it is done again.
            _os.unlock_byte(opened, 0, 0)
            self.opened = None

    def _after_fork_in_child(self) -> None:
        # Closing the copy leaves the parent's locks alone; unlocking would take them away.
        opened, self.opened = self.opened, None
        if opened is not None:
            opened.close_in_child()


class Bookmark:
    """The open file of one consumer or group, locked for as long as it is open.

    Made by :func:`open_bookmark`. `lock` is the descriptor that the locks are of.
    """

    def __init__(self, name: str, opened: _os.Descriptor, held: Held, header: Header) -> None:
        self.name = name
        self.path = opened.path
        self._held = held
        self._header = header
        # Of a description of its own: a forked child drops the one that is locked, and keeps this.
        own = _os.reopen(opened)
        size = layout.file_size(header.kind)
        self.file = MemoryMappedFile.from_file(
            own.fd, path=opened.path, flush_policy=FlushPolicy.NEVER, reserve=size
        )
        # Whether all that stands in the file was synced, but for live copies.
        self._settled = False
        self._turns = [-1] * layout.COPIES

    @property
    def file_id(self) -> int:
        """What tells this file from one of the same name before."""
        return self._header.file_id

    @property
    def lock(self) -> _os.Descriptor:
        """The descriptor whose locks say who holds it. Raises Closed."""
        opened = self._held.opened
        if opened is None:
            raise Closed(
                errno.EBADF,
                f"{self.name!r} is closed, or belongs to the parent of a fork; open it again",
                self.path,
            )
        return opened

    def load(self) -> Place:
        """The place. Nobody else may store meanwhile. Raises CorruptionError, MappingFault, Closed."""
        starts = [self.file.read_bytes(self._offset(at), 8) for at in range(layout.COPIES)]
        self._turns = [int.from_bytes(each, "little") for each in starts]
        for at in sorted(range(layout.COPIES), key=lambda each: self._turns[each], reverse=True):
            place = self._copy(at)
            if place is not None:
                return place
            self._turns[at] = -1
        raise _damaged(self.path)

    def store(self, place: Place) -> None:
        """Replace the place. It survives the end of this process. Raises MappingFault, Closed."""
        self._write(min(range(layout.LIVE_COPIES), key=lambda each: self._turns[each]), place)

    def store_durably(self, place: Place) -> None:
        """Replace the place, and sync it.

        Costs a sync, the first time two. Raises FlushFailed, MappingFault, Closed.
        """
        if not self._settled:
            # What somebody who died stored may not be on the disk, and must be before the copy beside it
            # goes.
            self.settle()
        for each in range(layout.LIVE_COPIES, layout.COPIES):
            if self._copy(each) is None:
                self._turns[each] = -1
        at = min(range(layout.LIVE_COPIES, layout.COPIES), key=lambda each: self._turns[each])
        try:
            self._write(at, place)
            self.file.flush()
        except BaseException:
            # The kernel may hold it for written. It must not stand beside the good one as if it were.
            self._settled = False
            self._turns[at] = -1
            self.file.update_region(self._offset(at), bytes(8))
            raise

    def settle(self) -> None:
        """Sync what is there: somebody died who may have been about to.

        Raises FlushFailed, MappingFault, Closed.
        """
        self.file.flush()
        self._settled = True

    def sign(self, owner: str) -> None:
        """Leave the holder's name, for messages."""
        data = owner.encode()[: layout.OWNER_SIZE]
        self.file.update_region(layout.OWNER_OFFSET, data.ljust(layout.OWNER_SIZE, b"\0"))

    def close(self) -> None:
        """Let go of the file and its locks. The second time does nothing."""
        try:
            self._held.drop()
        finally:
            self.file.close()

    def _offset(self, at: int) -> int:
        return layout.COPIES_OFFSET + at * layout.copy_size(self._header.kind)

    def _copy(self, at: int) -> Place | None:
        data = self.file.read_bytes(self._offset(at), layout.copy_size(self._header.kind))
        return layout.unpack_copy(data, self._header.file_id ^ at)

    def _write(self, at: int, place: Place) -> None:
        # Whatever cuts this short leaves a copy that is taken for torn, and is the next to be stored to.
        self._turns[at] = -1
        self.file.update_region(self._offset(at), layout.pack_copy(place, self._header.file_id ^ at))
        self._turns[at] = place.turn


def open_bookmark(log: Log, name: str, kind: int, start: int | None, *, shared: bool) -> Bookmark:
    """Open the file of a consumer or group of a log, making it if there is none, and hold it.

    A new one begins at `start`. `shared` lets others hold it too. Raises Locked, LogError when the name is
    one of the other kind, FormatError, CorruptionError, IndexError for a start that is not in the log, the
    OSError that fits where nothing may be written.
    """
    file_name = layout.checked_name(name) + layout.SUFFIX
    directory = log.segments.directory
    log.committed  # noqa: B018 - raises what stands in the way
    if _control(log).private:
        raise LogError(
            errno.EACCES,
            "this reader may not write, and found the end of the log by itself: it sees nothing that is "
            "appended later, so no place in it means anything to others; open it again once a writer was "
            "at work",
            log.path,
        )
    while True:
        try:
            opened = _os.open_file(file_name, True, follow=False, directory=directory)
        except FileNotFoundError:
            _make(log, file_name, kind, start)
            continue
        header = read_header(log, opened)
        if header.kind != kind:
            raise LogError(
                errno.EEXIST,
                f"{name!r} is a {KINDS[header.kind]} of this log, not a {KINDS[kind]}; use another name",
                opened.path,
            )
        # Before there is a lock that a child could get a copy of.
        held = Held(opened)
        try:
            hold(log, name, opened, shared=shared)
            # Who removed it held it until it was gone.
            if is_named(directory, file_name, opened):
                return Bookmark(name, opened, held, header)
        except BaseException:
            held.drop()
            raise
        held.drop()


def hold(log: Log, name: str, opened: _os.Descriptor, *, shared: bool) -> None:
    """Hold the file of a consumer, or raise Locked naming who does."""
    if not _os.lock_byte(opened, layout.HOLDER, not shared):
        raise Locked(
            f"{name!r} is {holder(opened) or 'being opened or removed'}; close it there first", log.path
        )


def read_header(log: Log, opened: _os.Descriptor) -> Header:
    """What the file of a consumer is. Raises FormatError, CorruptionError."""
    size = _os.file_size(opened)
    header = layout.unpack_header(_os.read_at(opened, layout.SECTOR, 0), opened.path)
    if header.log_uuid != log.segments.log_uuid:
        raise FormatError(
            f"a consumer of the log {header.log_uuid}, and this is {log.segments.log_uuid}: its place means "
            "nothing here",
            opened.path,
        )
    if size < layout.file_size(header.kind):
        raise CorruptionError(
            f"the file of a consumer has {size} bytes instead of {layout.file_size(header.kind)}: it was cut",
            opened.path,
        )
    return header


def read_place(opened: _os.Descriptor, header: Header) -> Place:
    """The place in a file that others may store to meanwhile, or an older one. Raises CorruptionError."""
    size = layout.copy_size(header.kind)
    best = None
    for _ in range(_LOOKS):
        data = _os.read_at(opened, layout.COPIES * size, layout.COPIES_OFFSET)
        if len(data) < layout.COPIES * size:
            break
        copies = [data[at * size : (at + 1) * size] for at in range(layout.COPIES)]
        found = [layout.unpack_copy(each, header.file_id ^ at) for at, each in enumerate(copies)]
        best = max([best, *found], key=lambda each: -1 if each is None else each.turn)
        if None not in found:
            break
    if best is None:
        raise _damaged(opened.path)
    return best


def holder(opened: _os.Descriptor) -> str | None:
    """Who holds the file of a consumer, in words; None when nobody does."""
    if not _os.byte_is_locked(opened, layout.HOLDER):
        return None
    members = range(layout.FIRST_MEMBER, layout.FIRST_MEMBER + layout.MEMBERS_MAX)
    count = sum(_os.byte_is_locked(opened, each) for each in members)
    if count:
        return f"held by {count} member{'s' * (count != 1)} of the group"
    raw = _os.read_at(opened, layout.OWNER_SIZE, layout.OWNER_OFFSET).rstrip(b"\0").decode("ascii", "replace")
    return f"held by {raw or 'another process'}"


def is_named(directory: _os.Descriptor, name: str, opened: _os.Descriptor) -> bool:
    """Whether an open file still has this name."""
    try:
        found = _os.open_file(name, False, follow=False, directory=directory)
    except FileNotFoundError:
        return False
    return _os.file_number(found.fd) == _os.file_number(opened.fd)


def _make(log: Log, file_name: str, kind: int, start: int | None) -> None:
    directory = log.segments.directory
    temporary = file_name.removesuffix(layout.SUFFIX) + layout.TEMPORARY_SUFFIX
    place = _first_place(log, start)
    opened = _os.open_file(temporary, True, create=True, follow=False, directory=directory)
    # Who has this byte of the file that has this name makes the consumer.
    _os.lock_byte(opened, layout.CREATING, True, wait=True)
    try:
        if not is_named(directory, temporary, opened):
            return
        with contextlib.suppress(FileNotFoundError):
            _os.open_file(file_name, False, follow=False, directory=directory)
            _os.remove_file(directory, temporary)
            return
        try:
            _fill(opened, Header(kind, log.segments.log_uuid, random_word(), time.time_ns()), place)
        except BaseException:
            # A full disk, perhaps: it is not to be fuller for that.
            with contextlib.suppress(OSError):
                _os.remove_file(directory, temporary)
            raise
        _os.replace_file(directory, temporary, file_name)
        _os.sync(directory)
    finally:
        _os.unlock_byte(opened, layout.CREATING)


def _fill(opened: _os.Descriptor, header: Header, place: Place) -> None:
    _os.set_size(opened, 0)
    _os.grow(opened, layout.file_size(header.kind))
    _os.write_at(opened, layout.pack_header(header), 0)
    for at in (0, layout.LIVE_COPIES):
        offset = layout.COPIES_OFFSET + at * layout.copy_size(header.kind)
        _os.write_at(opened, layout.pack_copy(place, header.file_id ^ at), offset)
    _os.sync(opened)


def _first_place(log: Log, start: int | None) -> Place:
    first, committed = log.first_seq, log.committed
    start = first if start is None else start
    if not first <= start <= committed:
        raise IndexError(f"record {start} is not in the log, which holds [{first}, {committed})")
    return Place(1, start, start, log.durable, incarnation_of(log), log.epoch, [])


def _damaged(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> CorruptionError:
    return CorruptionError(
        "no copy of the consumer's place verifies, so it is not known; remove the consumer, or restore the "
        "file from a backup",
        path,
    )


def recalled(log: Log, place: Place, agreed: Consent | None, seq: int) -> int:
    """Where somebody must go on who had done everything below `seq` when this place was stored.

    `seq` itself, or less when numbers below it were given out again; less than the log has where those were
    dropped. Or more: what a power cut took of his place is made good for what was dropped because he had done
    it, his :func:`agreement`. Raises Closed.
    """
    committed = log.committed
    if place.incarnation != incarnation_of(log):
        # The log was recovered since. What was not durable may have been lost, and its numbers used again;
        # but whatever was dropped since was durable then.
        seq = min(seq, max(place.durable, log.first_seq))
    seq = min(log.resume(place.epoch, seq), committed)
    # Whatever was given out again since his place was stored, he had done that too.
    return seq if agreed is None else max(seq, agreed.seq)


def agreement(log: Log, file_id: int, place: Place) -> Consent | None:
    """What is known to have been done by whoever has this place in his file, though the place may lack it.

    None where the place is newer than that by which he agreed that it be dropped.
    """
    if place.incarnation != incarnation_of(log):
        for each in log.segments.manifest.consents:
            if each.file_id == file_id and place.turn <= each.turn:
                return each
    return None


def incarnation_of(log: Log) -> int:
    """What changes whenever the end of the log was found anew. Raises Closed."""
    return _control(log).incarnation


def _control(log: Log) -> Control:
    control = log.control
    if control is None:
        log.committed  # noqa: B018 - raises Closed
    return control
