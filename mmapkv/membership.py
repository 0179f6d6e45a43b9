"""Leaving a store that was written: alone, or to others that write, too."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, cast

from mmapio import _fork
from mmapio.errors import Closed, MappingFault
from mmapkv import attach
from mmaplog.errors import Poisoned

if TYPE_CHECKING:
    from mmapkv.store import KVStore
    from mmaplog.log import Log


class Member:
    """The part of a store that ends a writer; no use without the rest."""

    _index_lock: _fork.Lock

    def _leave_unflushed(self, log: Log) -> None:
        store = cast("KVStore", self)
        store._hinter.stop()
        try:
            # Which may say why nothing is flushed.
            log.close()
        finally:
            if log.closed:
                store._forget()

    def _leave_alone(self, log: Log) -> None:
        # Held to the end, so that no other thread's put comes between the mark and the farewell.
        store = cast("KVStore", self)
        try:
            log.pause()
        except Closed:
            # Another thread was faster.
            return
        except (Poisoned, MappingFault):
            # Nothing can be promised of it any more.
            self._leave_unflushed(log)
            raise
        try:
            _, index = store._open_parts()
            try:
                log.flush()
                attach.conclude(log, index)
                store._hinter.close(log, index)
            finally:
                try:
                    store._hinter.stop()
                    log.close()
                finally:
                    if log.closed:
                        store._forget()
                    else:
                        # Refused, as a destructor may have interrupted a sync of this very thread.
                        attach.resume(log, index)
        finally:
            log.unpause()

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
                if not log.has_writer():
                    with attach.joined(log) as (index, _):
                        log.flush()
                        attach.conclude(log, index)
                        try:
                            log.close()
                        finally:
                            if not log.closed:
                                attach.resume(log, index)
            finally:
                try:
                    log.close()
                finally:
                    if log.closed:
                        store._forget()
                    else:
                        with suppress(Closed):
                            log.end_exclusive()
