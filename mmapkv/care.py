"""Keeping a store: what is in it, whether it is sound, copies of it, and its size."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, cast, overload

from mmapio import _fork
from mmapio.errors import Closed, MappingFault
from mmapio.options import FlushPolicy
from mmapkv import compaction, hints, index_file
from mmapkv.compactor import Compactor
from mmapkv.errors import StoreError
from mmapkv.remover import Remover
from mmapkv.verify import StoreVerified, verify_open
from mmaplog.backup import Backup
from mmaplog.compaction import Compaction
from mmaplog.errors import Poisoned
from mmaplog.reserve import is_full

if TYPE_CHECKING:
    from mmapkv.store import KVStore
    from mmaplog.log import Log


class Cared:
    """The part of a store that is for its keeper; no use without the rest."""

    # Held by the thread that compacts or closes; `_caring` is that thread, or 0.
    _care: _fork.Lock
    _caring: int
    # None on a reader, and where the store is compacted only when asked for.
    _compactor: Compactor | None
    # None but in a cache.
    _remover: Remover | None

    @property
    def _store(self) -> KVStore:
        return cast("KVStore", self)

    @overload
    def compact(
        self, *, background: Literal[False] = False, progress: Callable[[int, int], object] | None = None
    ) -> Compaction: ...
    @overload
    def compact(self, *, background: Literal[True]) -> None: ...
    def compact(
        self, *, background: bool = False, progress: Callable[[int, int], object] | None = None
    ) -> Compaction | None:
        """Rewrite the log without superseded values and deletions: a :class:`Compaction` says what that did.

        What a walk or snapshot may still need stays, in whichever process it is. Reads and writes go on
        meanwhile; writes wait for a millisecond now and then, and half a microsecond for each key that is
        left where most were deleted: then the index is built anew, as small as it can be. Flushes first.
        Costs a pass over the segments with something to remove, and room on the disk for one segment, which
        :exc:`OSError` says is not there; what was not reached is then as it was, as after a crash. `progress`
        is called with (records looked at, records in all), and what it raises ends it as that does. With
        `background` it is done by a thread: the call returns None at once, and :meth:`stats` and the log
        named ``mmapkv`` tell what went wrong. Raises ValueError for `progress` of that, CorruptionError,
        Poisoned, FlushFailed, InvalidMode on a reader, Closed.

        >>> import tempfile; from mmapkv import KVStore
        >>> with KVStore.open(tempfile.mkdtemp()) as kv:
        ...     for number in range(1000):
        ...         kv["counter"] = str(number)
        ...     kv.compact().records_removed, kv["counter"]
        (999, b'999')
        """
        compaction.require_writer(self._store)
        if background:
            if progress is not None:
                raise ValueError("nobody waits for a compaction in the background: stats() tells of it")
            if self._compactor is None:
                self._compactor = Compactor(self._store, 0.0)
            self._compactor.compact_all()
            return None
        with self._careful("a compaction"):
            log, _ = self._store._open_parts()
            done = compaction.compact(self._store, self._store._pins, progress=progress)
            hints.sweep(log)
            self._store._segment_filled()
            _, index = self._store._open_parts()
            if index_file.is_sparse(index, len(self._store)):
                try:
                    self._store._rebuild_index(index, sound=True)
                except OSError as error:
                    # It serves as it is.
                    if not is_full(error):
                        raise
            return done

    def _stop_threads(self, log: Log) -> None:
        # Before a close, which would be waited for with what they want in hand.
        threads = [each for each in (self._compactor, self._remover) if each is not None]
        if not threads:
            return
        if self._caring == threading.get_ident():
            raise self._reentered("a close")
        try:
            # Refused where this thread was interrupted in a write, for that would be waited for.
            control = log.control
            if not (control and control.poison):
                log.pause()
                log.unpause()
        except Poisoned:
            log._nobody_heard()
        except (Closed, MappingFault):
            pass
        for each in threads:
            each.stop()

    def _go_on(self) -> None:
        # After a close that came to nothing.
        for each in (self._compactor, self._remover, self._store._hinter):
            if each is not None:
                each.go_on()

    def _make_way(self, size: int) -> None:
        # For a cache.
        eviction = self._store._eviction
        if eviction is not None:
            eviction.make_way(self._store, size)

    def _rolled(self) -> None:
        if self._compactor is not None:
            self._compactor.rolled(self._store)

    def _reentered(self, what: str) -> StoreError:
        return StoreError(
            errno.EDEADLK,
            f"{what} from a destructor or signal handler that interrupted a compaction, eviction or close of "
            "the same store; let the handler leave a note instead, and act on it later",
            self._store.path,
        )

    @contextmanager
    def _careful(self, what: str) -> Iterator[None]:
        # Another thread is waited for; a destructor or signal handler that interrupted one must not wait.
        with self._care:
            if self._caring == threading.get_ident():
                raise self._reentered(what)
            self._caring = threading.get_ident()
            try:
                yield
            finally:
                self._caring = 0

    def stats(self) -> dict[str, int]:
        """Figures about the store, which cost a look at the directory.

        `keys`; of the log, `records`, the numbers `first_seq`, `committed` and `durable`, `segments`, the
        `segment_bytes` that each may have, how often its end was dropped, `epoch`; `bytes_on_disk` of all
        files, and `reserve_bytes` of these, which are kept back; open `snapshots`, those of transactions and
        scans too; of the index, its depth, segments, and bytes in use and allocated. `live_bytes` and
        `dead_bytes` of records: these are superseded, cleared, say that a key is absent, or lead to the
        version before. `compactions` that this handle did in the background, each of some segments, and
        `compaction_error`, the errno of what keeps it from the next one, or 0. Of a cache, look-ups by this
        handle, `hits` and `misses`; by the one that writes `max_bytes`, and its `evictions`.
        Raises Closed.
        """
        log, index = self._store._open_parts()
        size, dead, _ = compaction.usage(self._store, {})
        told = log.stats()
        names = (
            *("records", "first_seq", "committed", "durable", "segments", "segment_bytes", "epoch"),
            *("bytes_on_disk", "reserve_bytes"),
        )
        ours = {"keys": len(self._store), "snapshots": len(self._store._views)}
        compactor = self._compactor
        theirs = {
            "live_bytes": size - min(size, dead),
            "dead_bytes": dead,
            "compactions": compactor.done if compactor else 0,
            "compaction_error": compactor.error if compactor else 0,
        }
        counted = self._store._counted()
        if counted is not None:
            theirs |= {"hits": counted[0], "misses": counted[1]}
        eviction = self._store._eviction
        if eviction is not None:
            theirs |= eviction.figures(self._store)
        return {**ours, **{name: int(told[name]) for name in names}, **theirs, **index_file.figures(index)}

    def verify(
        self, *, full: bool = True, progress: Callable[[int, int], object] | None = None
    ) -> StoreVerified:
        """Check all that the store's files hold, and change nothing: what is wrong, and how much there is.

        All of the index: its directory, each entry, the record that it leads to. With `full` all of the log
        too: each record's checksum, what it says of the version before it, that the index leads to the newest
        of its key, and the number of keys. The store can be used meanwhile, by this handle and by others.
        `progress` is called with (records looked at, records in all). Costs about what building the index
        does, twice; memory for a bit for each record's number, 128 MiB at most (beyond 2^30 numbers the log
        is read again for each 2^30), and a bit for each page of the index.

        Raises Closed, MappingFault where a file was cut.

        >>> import tempfile, os; from mmapkv import KVStore
        >>> with KVStore.open(os.path.join(tempfile.mkdtemp(), "kv")) as kv:
        ...     kv["key"] = "value"
        ...     report = kv.verify()
        >>> report.keys, report.damages
        (1, ())
        """
        return verify_open(self._store, full, progress)

    def backup(
        self,
        target: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        verify: bool = True,
        progress: Callable[[int, int], object] | None = None,
    ) -> Backup:
        """Copy the store, while it is in use by whomever, into the new directory `target`.

        The copy is a store of its own, equal to this one at the moment the call began, with every record
        checked unless `verify` is false, and durable when this returns; until then there is nothing of that
        name. The index of the copy is not copied but built. `progress` is called with (bytes done, bytes in
        all). Costs what :meth:`mmaplog.Log.backup` does, and a microsecond a record.

        Raises FileExistsError for a target that is there, CorruptionError when the log is damaged, Closed,
        OSError as the system reports it.
        """
        log, _ = self._store._open_parts()
        made = log.backup(target, verify=verify, progress=progress)
        # It is complete without: this spares whoever opens it first the wait.
        with type(self._store).open(made.path, "w", flush_policy=FlushPolicy.MANUAL):
            return made
