"""What becomes of an index that is not the one any more, or not sound: another one is taken up, or made."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from mmapkv import attach, index_file
from mmapkv.errors import StoreError
from mmapkv.pins import Pins
from mmaplog.errors import CorruptionError
from mmaplog.log import DEFAULT_SEGMENT_BYTES, Log, open_log

if TYPE_CHECKING:
    from mmapio import _fork
    from mmapio.options import FlushPolicy
    from mmapkv.index import Index
    from mmapkv.slots import SlotMap


class Successor:
    """The part of a store that replaces its index; no use without the rest."""

    _log: Log
    _pins: Pins
    _flush_policy: FlushPolicy
    _index_lock: _fork.Lock
    _reopened: tuple[str, dict[str, Any]]

    if TYPE_CHECKING:

        def _open_parts(self) -> tuple[Log, Index]: ...
        def _open(self, log: Log, verify: bool) -> None: ...
        def _use(self, index: Index, slots: SlotMap) -> None: ...

    # What the native half asks for when `stale`, the index that it was working with, is not what it was.
    # One thread replaces it; those who asked for the same find it done.

    def _reload_index(self, stale: Index) -> None:
        with self._index_lock:
            log, index = self._open_parts()
            if index is not stale:
                return
            if log.writable and not log.shared:
                # Nobody else replaces the writer's index: the mark that it was is damage.
                self._rebuild_index(stale)
                return
            if log.control.private:
                log = self._attach_again(log)
            self._use(*attach.provide_for(log, self._reopened[0]))

    def _attach_again(self, known: Log) -> Log:
        # Where nothing may be written, the end of the log is what was found when it was opened. Walks and
        # snapshots keep the one that they began with.
        place, arguments = self._reopened
        log = open_log(Log, place, "r", self._flush_policy, False, DEFAULT_SEGMENT_BYTES, (attach.NAME,))
        if log.segments.log_uuid != known.segments.log_uuid:
            log.close()
            raise StoreError(errno.ESTALE, "another store is in its place by now; open it again", known.path)
        self._log = log
        self._pins = Pins(log)
        self._open(log, arguments["verify"])
        return log

    def _mend_index(self, stale: Index) -> None:
        log, _ = self._open_parts()
        if log.control.private:
            with self._index_lock:
                self._use(*attach.build_private(log))
            return
        if not log.writable:
            raise CorruptionError(
                "the index is damaged; open the store for writing once, which rebuilds it", log.path
            )
        self._rebuild_index(stale)

    def _rebuild_index(self, stale: Index, *, sound: bool = False) -> None:
        with self._index_lock:
            log, index = self._open_parts()
            if index is not stale:
                return
            log.pause()
            try:
                if log.shared and index.retired:
                    # Another process was faster.
                    self._use(*attach.provide(log, finishing=False))
                else:
                    self._use(*attach.rebuild(log, index, sound=sound))
            finally:
                log.unpause()

    def _begin_writing(self, index: Index) -> None:
        try:
            index_file.clear_mark(index)
        except CorruptionError:
            self._rebuild_index(index)
