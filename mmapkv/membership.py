"""Being one of several writers of a store: joining the others, and leaving them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, cast

from mmapio import _fork
from mmapio.errors import Closed
from mmapkv import attach, index_file

if TYPE_CHECKING:
    from mmapkv.index import Index
    from mmapkv.slots import SlotMap
    from mmapkv.store import KVStore
    from mmaplog.log import Log


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
            found = attach.provide(log, finishing=alone)
            if alone:
                log.drop_strays()
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


class Member:
    """The part of a store that leaves the other writers; no use without the rest."""

    _index_lock: _fork.Lock

    def _leave(self, log: Log) -> None:
        # The last one to go says that the index may be trusted. Nobody comes meanwhile, and nobody who opens
        # the store waits for what is held here but the one who goes.
        store = cast("KVStore", self)
        log.refuse_within_tail("a close")
        with self._index_lock:
            try:
                log.begin_exclusive()
            except Closed:
                # Another thread was faster.
                return
            try:
                if not log.others_write():
                    with joined(log) as (index, _):
                        log.flush()
                        if index_file.read_mark(index) is None:
                            index_file.mark_clean(index, log.committed, *log.end_of_tail)
                        log.close()
            finally:
                try:
                    log.close()
                finally:
                    if log.closed:
                        store._forget()
                    else:
                        with suppress(Closed):
                            log.end_exclusive()


def provide_by_writing(place: str) -> None:
    """Have an index provided by opening the store in `place` as one more writer, if the others allow it.

    For a reader who finds none: where one was killed who was about to put a new index in the place of the
    old, the others may not come to write for long.
    """
    from mmapio.options import FlushPolicy
    from mmapkv.store import KVStore

    with suppress(OSError):
        KVStore.open(place, "w", shared=True, flush_policy=FlushPolicy.NEVER).close()
