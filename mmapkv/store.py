"""The store: a mapping from bytes to bytes that outlives the process."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import ItemsView, Iterable, Iterator, MutableMapping, ValuesView
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, SupportsIndex

from mmapio.errors import Closed
from mmapio.options import FlushPolicy
from mmapkv import attach, compaction, index_file
from mmapkv.errors import SnapshotTooOld, StoreError
from mmapkv.index import Index
from mmapkv.pins import Pin, Pins
from mmapkv.slots import SlotMap
from mmapkv.walk import ITEMS, KEYS, VALUES, Walk
from mmapkv.writer import StoreWriter
from mmaplog.compaction import Compaction
from mmaplog.errors import CorruptionError, Locked
from mmaplog.log import DEFAULT_POLICY, DEFAULT_SEGMENT_BYTES, Log, open_log

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Keyed(Protocol):
    """A mapping, as far as `update` uses it. `Mapping` itself is bound to one type of keys."""

    def keys(self) -> Iterable[str | Buffer]: ...
    def __getitem__(self, key: Any, /) -> str | Buffer: ...


# How long a reader waits for a writer that is just opening the store, or rebuilding its index.
WAIT_SECONDS_MAX = 10.0
WAIT_STEP_SECONDS = 0.005


class KVStore(StoreWriter, MutableMapping[bytes, bytes]):
    """A persistent mapping of bytes keys to bytes values; a store is a directory.

    Make one with :meth:`open`. Look-ups cost a constant number of cache misses whatever the size. A write is
    committed when the call returns: seen by every process, surviving ``kill -9``; it is durable as the flush
    policy says. One handle writes, any number of handles read in any process, live and without locks. A
    handle serves any number of threads. Keys and values may be any buffer or str (as UTF-8); they come back
    as bytes.

    Iteration is over the store as it was when the iteration began, in the order of the last change.

    >>> import tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "cities")
    >>> with KVStore.open(path) as kv:
    ...     kv["Oslo"] = "59.9"
    ...     kv["Oslo"], len(kv), kv.get("Rome")
    (b'59.9', 1, None)
    """

    _log: Log
    _oldest: Iterator[bytes] | None
    _index_lock: threading.RLock
    # Held by the thread that compacts or closes; `_caring` says that it is in the middle of that.
    _care: threading.RLock
    _caring: bool
    _pins: Pins

    if TYPE_CHECKING:
        # MutableMapping's own. It works through the operators of this class, so it takes what those take.

        def update(
            self,
            other: _Keyed | Iterable[tuple[str | Buffer, str | Buffer]] = (),
            /,
            **named: str | Buffer,
        ) -> None: ...

    @classmethod
    def open(
        cls,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        mode: Literal["r", "w", "c", "n"] = "c",
        *,
        flush_policy: FlushPolicy = DEFAULT_POLICY,
        segment_bytes: SupportsIndex = DEFAULT_SEGMENT_BYTES,
        verify: bool = True,
    ) -> Self:
        """Open or create the store in the directory `path`.

        `mode` is as in dbm: "r" reads, "w" writes an existing store, "c" creates it if missing, "n" starts a
        new one. `flush_policy` says when writes become durable by themselves; `segment_bytes` (of a new
        store) is how large its log's files grow; `verify=False` skips the checksum of each record read. Costs
        O(1) after a clean close or a killed process; after a power cut the index is rebuilt from the log.

        Raises FileNotFoundError, NotADirectoryError, PermissionError, ValueError for another mode, Locked
        (naming the process that writes), FormatError, CorruptionError.
        """
        log = open_log(Log, path, mode, flush_policy, False, segment_bytes, (attach.NAME,))
        store = cls.__new__(cls)
        store._log = log
        store._oldest = None
        store._index_lock = threading.RLock()
        store._care = threading.RLock()
        store._caring = False
        store._pins = Pins(log)
        try:
            index, slots = _write_index(log) if log.writable else _read_index(log)
        except BaseException:
            log.close()
            raise
        store._open(log, verify)
        store._use(index, slots)
        return store

    @property
    def path(self) -> str:
        """The directory, as it was given."""
        return self._log.path

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._log.closed

    def __init__(self) -> None:
        raise TypeError("use KVStore.open")

    def __iter__(self) -> Iterator[bytes]:
        return self._walk(KEYS)

    def items(self) -> ItemsView[bytes, bytes]:
        """A view of the (key, value) pairs; iterating it reads each record once."""
        return _Items(self)

    def values(self) -> ValuesView[bytes]:
        """A view of the values; iterating it reads each record once."""
        return _Values(self)

    def setdefault(self, key: str | bytes | Buffer, default: str | bytes | Buffer | None = None, /) -> bytes:
        """The value of `key`, which is set to `default` first when it is absent.

        TypeError when that is None then.
        """
        value = self.get(key)
        if value is None:
            if default is None:
                raise TypeError("a store cannot hold None; give setdefault a value")
            self.put(key, default)
            value = self[key]
        return value

    def popitem(self) -> tuple[bytes, bytes]:
        """Remove and return a pair, roughly the one that was changed longest ago. KeyError when empty.

        Emptying a store this way reads its log once.
        """
        while True:
            oldest = self._oldest
            if oldest is None:
                # Nothing before the point that an exhausted walk reached can come to life again.
                if not len(self):
                    raise KeyError("popitem: the store is empty")
                # What compaction removes meanwhile has come later in the log by then.
                oldest = self._oldest = self._walk(KEYS, pinned=False)
            with suppress(SnapshotTooOld):
                for key in oldest:
                    value = self.pop(key, None)
                    if value is not None:
                        return key, value
            self._oldest = None

    def clear(self) -> None:
        """Delete every key. Costs one deletion for each."""
        for key in self:
            try:
                del self[key]
            except KeyError:
                # Deleted by another thread meanwhile.
                continue

    def flush(self) -> None:
        """Make every write that is committed now durable: on the device when it returns.

        Runs without the GIL.
        Raises FlushFailed once and Poisoned from then on when a sync fails, InvalidMode on a reader, Closed.
        """
        self._log.flush()

    def compact(self) -> Compaction:
        """Rewrite the log without superseded values and deletions: a :class:`Compaction` says what that did.

        What a walk or snapshot may still need stays, in whichever process it is. Reads and writes go on
        meanwhile; writes wait for a millisecond now and then. Flushes first. Costs a pass over the segments
        with something to remove, and room on the disk for one segment, which :exc:`OSError` says is not
        there; what was not reached is then as it was, as after a crash. Raises CorruptionError, Poisoned,
        FlushFailed, InvalidMode on a reader, Closed.

        >>> import tempfile
        >>> with KVStore.open(tempfile.mkdtemp()) as kv:
        ...     for number in range(1000):
        ...         kv["counter"] = str(number)
        ...     kv.compact().records_removed, kv["counter"]
        (999, b'999')
        """
        compaction.require_writer(self)
        with self._careful("a compaction"):
            self._open_parts()
            return compaction.compact(self, self._pins)

    @contextmanager
    def _careful(self, what: str) -> Iterator[None]:
        # Another thread is waited for; a destructor or signal handler that interrupted one must not wait.
        with self._care:
            if self._caring:
                raise StoreError(
                    errno.EDEADLK,
                    f"{what} from a destructor or signal handler that interrupted a compaction or close of "
                    "the same store; let the handler leave a note instead, and act on it later",
                    self.path,
                )
            self._caring = True
            try:
                yield
            finally:
                self._caring = False

    def sync(self) -> None:
        """The same as :meth:`flush`, under the name that dbm and shelve use."""
        self.flush()

    def stats(self) -> dict[str, int]:
        """Counts and sizes.

        Keys, records of the log, how many are durable, segments, bytes on disk, the index's figures.
        """
        _, index = self._open_parts()
        figures = {
            "keys": len(self),
            "records": len(self._log),
            "committed": self._log.committed,
            "durable": self._log.durable,
            "segments": len(self._log.segments.listing()),
            "bytes_on_disk": self._log.disk_usage(),
        }
        return {**figures, **index.figures()}

    def close(self) -> None:
        """Close the handle, flushing first unless the policy is NEVER; the second time does nothing.

        Bytes handed out stay valid. Raises FlushFailed when the last flush fails; the handle is closed all
        the same.
        """
        log, index = self._parts()
        if index is None:
            return
        if not log.flushes_on_close:
            log.close()
            self._forget()
            return
        with self._careful("a close"):
            self._close_writer(log)

    def _close_writer(self, log: Log) -> None:
        # Held to the end, so that no other thread's put comes between the mark and the farewell.
        try:
            log.pause()
        except Closed:
            # Another thread was faster.
            return
        try:
            _, index = self._open_parts()
            log.flush()
            if index_file.read_mark(index) is None:
                index_file.mark_clean(index, log.committed, *log.end_of_tail)
        finally:
            try:
                log.close()
            finally:
                # Refused, it was not closed: a destructor may have interrupted a sync of this very thread.
                if log.closed:
                    self._forget()
                log.unpause()

    def __enter__(self) -> Self:
        self._open_parts()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return f"<KVStore {self.path!r} closed>"
        return f"<KVStore {self.path!r} {'writing' if self._log.writable else 'reading'}, {len(self)} keys>"

    def _walk(self, what: int, *, pinned: bool = True) -> Walk[Any]:
        while True:
            log, index = self._open_parts()
            if index.retired:
                self._reload_index(index)
                continue
            # A record above what the index holds is not yet visible: its entry may be a moment away.
            visible, _ = index.progress()
            pin = self._pin(visible) if pinned else None
            if pin is None or (index.horizon <= visible and not index.retired):
                return Walk(self, log.replay(stop=min(visible, log.committed)), what, pin)
            # Compaction had asked before; what it goes by is newer.
            pin.release()

    def _pin(self, seq: int) -> Pin | None:
        try:
            return self._pins.hold(seq)
        except Closed:
            # A forked child has no locks.
            return None

    def _open_parts(self) -> tuple[Log, Index]:
        log, index = self._parts()
        if index is None:
            raise Closed(errno.EBADF, "the store is closed; open it again", log.path)
        return log, index

    # What the native half asks for when `stale`, the index that it was working with, is not what it was.
    # One thread replaces it; those who asked for the same find it done.

    def _reload_index(self, stale: Index) -> None:
        with self._index_lock:
            log, index = self._open_parts()
            if index is not stale:
                return
            if log.writable:
                # Nobody else replaces the writer's index: the mark that it was is damage.
                self._rebuild_index(stale)
            else:
                self._use(*_read_index(log))

    def _mend_index(self, stale: Index) -> None:
        log, _ = self._open_parts()
        if not log.writable:
            raise CorruptionError(
                "the index is damaged; open the store for writing once, which rebuilds it", log.path
            )
        self._rebuild_index(stale)

    def _rebuild_index(self, stale: Index) -> None:
        with self._index_lock:
            log, index = self._open_parts()
            if index is not stale:
                return
            log.pause()
            try:
                self._use(*attach.rebuild(log, index))
            finally:
                log.unpause()

    def _begin_writing(self, index: Index) -> None:
        try:
            index_file.clear_mark(index)
        except CorruptionError:
            self._rebuild_index(index)


class _Items(ItemsView[bytes, bytes]):
    _mapping: KVStore

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self._mapping._walk(ITEMS)


class _Values(ValuesView[bytes]):
    _mapping: KVStore

    def __iter__(self) -> Iterator[bytes]:
        return self._mapping._walk(VALUES)


def _write_index(log: Log) -> tuple[Index, SlotMap]:
    log.begin_exclusive()
    try:
        found = attach.provide(log)
        log.drop_strays()
        return found
    finally:
        log.end_exclusive()


def _read_index(log: Log) -> tuple[Index, SlotMap]:
    if log.control.private:
        # The log is seen as it was found; an index that others keep writing would not go with it.
        return attach.build_private(log)
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while True:
        found = None
        log.begin_exclusive()
        try:
            found = attach.load(log, writing=False)
            if found is not None and found[0].progress()[0] == log.committed:
                return found
            # To bring it up is a writer's work; done in its place where there is none and it is allowed.
            log.claim()
            try:
                attach.provide(log)
            finally:
                log.unclaim()
        except Locked:
            # The writer is between two stores, or about to provide an index.
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise StoreError(
                    f"waited {WAIT_SECONDS_MAX} s for the writer to provide an index", log.path
                ) from None
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            # What an index that is a little behind lacks was never acknowledged; and it is live, which a
            # private one is not.
            return found or attach.build_private(log)
        finally:
            log.end_exclusive()
        time.sleep(WAIT_STEP_SECONDS)
