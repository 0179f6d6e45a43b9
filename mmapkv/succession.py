"""What becomes of an index that is not the one any more, or not sound: another one is taken up, or made."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

from mmapkv import attach, index_file
from mmapkv.errors import StoreError
from mmapkv.pins import Pins
from mmaplog.errors import CorruptionError
from mmaplog.log import DEFAULT_SEGMENT_BYTES, Log, open_log

if TYPE_CHECKING:
    from mmapkv.index import Index
    from mmapkv.store import KVStore


class Successor:
    """The part of a store that replaces its index; no use without the rest.

    The native half asks for it when `stale`, the index that it was working with, is not what it was. One
    thread replaces it; those who asked for the same find it done.
    """

    def _reload_index(self, stale: Index) -> None:
        store = cast("KVStore", self)
        with store._index_lock:
            log, index = store._open_parts()
            if index is not stale:
                return
            if log.writable and not log.shared:
                # Nobody else replaces the writer's index: the mark that it was is damage.
                self._rebuild_index(stale)
                return
            if log.control.private:
                log = self._attach_again(log)
            store._use(*attach.provide_for(log, store._reopened[0]))

    def _attach_again(self, known: Log) -> Log:
        # Where nothing may be written, the end of the log is what was found when it was opened. Walks and
        # snapshots keep the one that they began with.
        store = cast("KVStore", self)
        place, arguments = store._reopened
        log = open_log(Log, place, "r", store._flush_policy, False, DEFAULT_SEGMENT_BYTES, (attach.NAME,))
        if log.segments.log_uuid != known.segments.log_uuid:
            log.close()
            raise StoreError(errno.ESTALE, "another store is in its place by now; open it again", known.path)
        store._log = log
        store._pins = Pins(log)
        store._open(log, arguments["verify"])
        return log

    def _mend_index(self, stale: Index) -> None:
        store = cast("KVStore", self)
        log, _ = store._open_parts()
        if log.control.private:
            with store._index_lock:
                store._use(*attach.build_private(log))
            return
        if not log.writable:
            raise CorruptionError(
                "the index is damaged; open the store for writing once, which rebuilds it", log.path
            )
        self._rebuild_index(stale)

    def _rebuild_index(self, stale: Index, *, sound: bool = False) -> None:
        store = cast("KVStore", self)
        with store._index_lock:
            log, index = store._open_parts()
            if index is not stale:
                return
            log.pause()
            try:
                if log.shared and index.retired:
                    # Another process was faster.
                    store._use(*attach.provide(log, finishing=False))
                else:
                    store._use(*attach.rebuild(log, index, sound=sound))
            finally:
                log.unpause()

    def _begin_writing(self, index: Index) -> None:
        try:
            index_file.clear_mark(index)
        except CorruptionError:
            self._rebuild_index(index)
