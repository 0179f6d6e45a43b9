"""The store: a mapping from bytes to bytes that outlives the process."""

from __future__ import annotations

import errno
import os
import random
import time
import weakref
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, MutableMapping, ValuesView
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, Self, SupportsIndex, TypeVar, overload

from mmapio import _fork
from mmapio.errors import Closed
from mmapio.options import FlushPolicy, Trigger
from mmapkv import attach, cache, marks, victims
from mmapkv.bulk import BulkWriter
from mmapkv.cache import checked_bound, segment_bytes_of
from mmapkv.care import Cared
from mmapkv.changes import Changes
from mmapkv.clearing import clear
from mmapkv.codecs import Bytes, Codec, checked
from mmapkv.compactor import Compactor
from mmapkv.errors import Conflict, StoreError
from mmapkv.eviction import Eviction
from mmapkv.foreign import refuse_plain_log, refuse_to_replace
from mmapkv.hinter import Hinter
from mmapkv.index import Index
from mmapkv.membership import Member
from mmapkv.namespace import Namespace
from mmapkv.oldest import Oldest
from mmapkv.ordered import OrderedKeys
from mmapkv.pins import Pin, Pins
from mmapkv.scan import Scanned
from mmapkv.snapshot import Snapshot
from mmapkv.succession import Successor
from mmapkv.transaction import Transaction
from mmapkv.typed import TypedStore
from mmapkv.views import Items, Keys, Values
from mmapkv.walk import EXPIRED, KEYS, Walk
from mmaplog.log import DEFAULT_POLICY, DEFAULT_SEGMENT_BYTES, Log, open_log

if TYPE_CHECKING:
    from typing_extensions import Buffer

_T = TypeVar("_T")


class _Keyed(Protocol):
    """A mapping, as far as `update` uses it. `Mapping` itself is bound to one type of keys."""

    def keys(self) -> Iterable[str | Buffer]: ...
    def __getitem__(self, key: Any, /) -> str | Buffer: ...


# Between two attempts of a transaction at most; a random part of it, twice as much each time.
BACKOFF_SECONDS_FIRST = 0.001
BACKOFF_SECONDS_MAX = 0.1


class KVStore(BulkWriter, Scanned, Cared, Member, Successor, MutableMapping[bytes, bytes]):
    """A persistent mapping of bytes keys to bytes values; a store is a directory.

    Make one with :meth:`open`. Look-ups cost a constant number of cache misses whatever the size. A write is
    committed when the call returns: seen by every process, surviving ``kill -9``; it is durable as the flush
    policy says. One handle writes, or several that say so (`shared`), any number of handles read in any
    process, live and without locks. A handle serves any number of threads. Keys and values may be any buffer
    or str (as UTF-8); they come back as bytes.

    Iteration is over the store as it was when the iteration began, in the order of the last change.

    >>> import tempfile
    >>> with KVStore.open(tempfile.mkdtemp() + "/cities") as kv:
    ...     kv["Oslo"] = "59.9"
    ...     kv["Oslo"], len(kv), kv.get("Rome")
    (b'59.9', 1, None)
    """

    _log: Log
    # Where popitem is.
    _oldest: Oldest
    _pins: Pins
    _eviction: Eviction | None
    _flush_policy: FlushPolicy
    _ordered: OrderedKeys
    _hinter: Hinter
    # Whether the keys are sorted from the beginning.
    _in_order: bool
    _views: weakref.WeakValueDictionary[int, Snapshot]
    _index_lock: _fork.Lock
    # How a pickled handle is opened again: where, and with which arguments of `open`.
    _reopened: tuple[str, dict[str, Any]]

    if TYPE_CHECKING:
        # MutableMapping's own. It works through the operators of this class, so it takes what those take.

        def update(
            self,
            other: _Keyed | Iterable[tuple[str | Buffer, str | Buffer]] = (),
            /,
            **named: str | Buffer,
        ) -> None: ...

    @overload
    @classmethod
    def open(
        cls,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        mode: Literal["r", "w", "c", "n"] = "c",
        *,
        shared: bool = ...,
        flush_policy: FlushPolicy = ...,
        segment_bytes: SupportsIndex = ...,
        verify: bool = ...,
        ordered: bool = ...,
        compaction: bool | float = ...,
        max_bytes: SupportsIndex | None = ...,
        eviction: Literal["clock", "fifo"] | None = ...,
        reserve_bytes: SupportsIndex | None = ...,
        codec: None = None,
    ) -> Self: ...
    @overload
    @classmethod
    def open(
        cls,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        mode: Literal["r", "w", "c", "n"] = "c",
        *,
        shared: bool = ...,
        flush_policy: FlushPolicy = ...,
        segment_bytes: SupportsIndex = ...,
        verify: bool = ...,
        ordered: bool = ...,
        compaction: bool | float = ...,
        max_bytes: SupportsIndex | None = ...,
        eviction: Literal["clock", "fifo"] | None = ...,
        reserve_bytes: SupportsIndex | None = ...,
        codec: Codec[_T],
    ) -> TypedStore[bytes, _T]: ...
    @classmethod
    def open(
        cls,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        mode: Literal["r", "w", "c", "n"] = "c",
        *,
        shared: bool = False,
        flush_policy: FlushPolicy = DEFAULT_POLICY,
        segment_bytes: SupportsIndex = DEFAULT_SEGMENT_BYTES,
        verify: bool = True,
        ordered: bool = False,
        compaction: bool | float = True,
        max_bytes: SupportsIndex | None = None,
        eviction: Literal["clock", "fifo"] | None = None,
        reserve_bytes: SupportsIndex | None = None,
        codec: Codec[Any] | None = None,
    ) -> Self | TypedStore[bytes, Any]:
        """Open or create the store in the directory `path`.

        `mode` is as in dbm: "r" reads, "w" writes an existing store, "c" creates it if missing, "n" starts a
        new one. With `shared` other handles, of this process and others, that say so too may write at the
        same time; each write then takes a mutex between processes. `flush_policy` says when writes become
        durable by themselves; `segment_bytes` (of a new store) is how large its log's files grow; a reader
        uses neither. `verify=False` skips the checksum of each record read; with `ordered` the keys are
        sorted now, not by the first :meth:`scan`. What is superseded or deleted is removed in the background
        by whoever writes, unless `compaction` is false: then :meth:`compact` does that. A number says how
        many dead bytes are borne as a part of the live ones: 0.065 by default, 0.5 makes overwrites cheaper.
        With `max_bytes` it is a cache with one writer: what is oldest and, unless `eviction` is "fifo", was
        not read since, makes way for what is put (docs/cache.md). `reserve_bytes` of the disk are kept back,
        so that on a full one keys can be deleted and :meth:`compact` works (docs/store.md); 0 gives them
        back, None leaves what there is. With a `codec` the result is a :class:`TypedStore`. Costs O(1) after
        a clean close or a kill; after a power cut building the index: 120 ns a record by hints, 350 without.

        Raises FileNotFoundError, NotADirectoryError, PermissionError, ValueError for another mode or
        `eviction`, or that without `max_bytes`, for `shared` with "r", "n" or `max_bytes`, for `max_bytes`
        or `reserve_bytes` that are too small or a reader's, for a `compaction` not above 0, or where there is
        none; Locked (naming who writes), FormatError (a plain log, too), CorruptionError; Unsupported for
        `shared` without robust mutexes.
        """
        if codec is not None:
            checked(codec)
        bound = checked_bound(max_bytes, eviction, mode, shared=shared)
        borne = victims.checked(compaction, compactable=not (mode == "r" or bound))
        # Before anything can change the current directory.
        place = os.path.realpath(os.fsdecode(path))
        size = segment_bytes_of(bound, segment_bytes)
        refuse_to_replace(path, mode)
        derived = (attach.NAME, marks.NAME)
        log = open_log(Log, path, mode, flush_policy, False, size, derived, shared, reserve_bytes)
        store = cls.__new__(cls)
        store._log = log
        store._oldest = Oldest()
        store._care = _fork.Lock()
        store._caring = 0
        store._pins = Pins(log)
        store._compactor = Compactor(store, borne) if borne else None
        store._remover = None
        store._eviction = None
        store._views = weakref.WeakValueDictionary()
        store._index_lock = _fork.Lock()
        # Whatever this handle may: one process writes, unless all say otherwise.
        store._reopened = place, {"mode": "r", "verify": verify, "ordered": ordered}
        if shared:
            store._reopened[1].update(mode="w", shared=True, flush_policy=flush_policy)
        try:
            refuse_plain_log(log)
            index, slots = attach.provide_for(log, place)
        except BaseException:
            log.close()
            raise
        store._open(log, verify)
        store._use(index, slots)
        store._ordered = OrderedKeys()
        store._in_order = ordered
        store._flush_policy = flush_policy
        # Who asked for no syncs of its own accord asked for no thread; nor is one started in a turn.
        patient = flush_policy.trigger in (Trigger.NEVER, Trigger.MANUAL)
        store._hinter = Hinter(store, threaded=not (patient or log.shared))
        try:
            store._eviction = cache.begin(store, bound, eviction)
            if ordered:
                store._ordered.prepare(store)
        except BaseException:
            store.close()
            raise
        return store if codec is None else store.typed(codec)

    @property
    def path(self) -> str:
        """The directory, as it was given."""
        return self._log.path

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._log.closed

    @property
    def shared(self) -> bool:
        """Whether other handles may write too."""
        return self._log.shared

    @property
    def flush_policy(self) -> FlushPolicy:
        """When writes become durable by themselves, as it was given."""
        return self._flush_policy

    def __init__(self) -> None:
        raise TypeError("use KVStore.open")

    def __iter__(self) -> Iterator[bytes]:
        return self._walk(KEYS)

    def keys(self) -> KeysView[bytes]:
        """A view of the keys; iterating it goes through the log once, and copies no value."""
        return Keys(self)

    def items(self) -> ItemsView[bytes, bytes]:
        """A view of the (key, value) pairs; iterating it reads each record once."""
        return Items(self)

    def values(self) -> ValuesView[bytes]:
        """A view of the values; iterating it reads each record once."""
        return Values(self)

    def popitem(self) -> tuple[bytes, bytes]:
        """Remove and return a pair, roughly the one that was changed longest ago. KeyError when empty.

        Emptying a store this way reads its log once. Raises what :meth:`pop` does.
        """
        found = self._oldest.take(self, self)
        if found is None:
            raise KeyError("popitem: the store is empty")
        return found

    def clear(self, *, durable: bool = False) -> None:
        """Delete every key, in one step for every thread and process. Costs one record.

        Snapshots, walks and transactions that began before see what there was. What the log has of it takes
        its room until :meth:`compact`. Raises what `put` does.
        """
        clear(self, durable)
        self._was_cleared()

    def _was_cleared(self) -> None:
        if self._compactor is not None:
            self._compactor.cleared(self)
        self._make_way(0)

    def sweep(self) -> int:
        """Delete the keys whose time to live is over, and return how many there were.

        No read shows them before either, but `len` counts them. Costs a pass over the log, and a deletion for
        each. Raises InvalidMode on a reader, and what :meth:`put` does.
        """
        self._require_writer()
        return sum(self._drop_expired(key) for key in self._walk(EXPIRED))

    def snapshot(self) -> Snapshot:
        """The store as it is now, as a read-only mapping that stays so. Costs O(1). Raises Closed.

        While it is open, compaction keeps what it shows.
        """
        era = self._ordered.era()
        snapshot = Snapshot(self, *self._pinned(), era)
        self._views[id(snapshot)] = snapshot
        return snapshot

    def _snapshot_for_scan(self) -> Snapshot:
        # Of a reader who may not write, what he goes by may be replaced first.
        self._pinned()
        self._ordered.prepare(self)
        return self.snapshot()

    def changes(
        self,
        since: SupportsIndex | None = 0,
        *,
        follow: bool = False,
        timeout: float | None = None,
        too_old: Literal["raise", "skip"] = "raise",
    ) -> Changes:
        """Iterate over the changes from number `since` on, as they were made: :class:`Changes`.

        0 begins with the first that there is, None with the next one. It ends with those that were made
        before the call; with `follow` it waits for more, until there was none for `timeout` seconds, if
        given. What it hands out is to be seen in the store. Costs reading the log from there on.

        Values that were superseded and compacted away do not come. Where a deletion was, which a copy kept by
        these changes may need, or a clear, or a value that had expired, the iteration raises TooOld; with
        `too_old` "skip" it passes that over. Who begins with 0 needs none from before.
        Raises IndexError for a number that the log has not come to, TooOld (which is one) for one that it
        has no more, ValueError for another `too_old`, Closed.

        >>> import tempfile
        >>> with KVStore.open(tempfile.mkdtemp()) as kv:
        ...     kv["Oslo"] = "59.9"
        ...     del kv["Oslo"]
        ...     [(change.seq, change.kind, change.key, change.value) for change in kv.changes()]
        [(0, 'put', b'Oslo', b'59.9'), (1, 'delete', b'Oslo', None)]
        """
        return Changes(self, since, follow, timeout, too_old)

    def _end_view(self, view: Snapshot) -> None:
        self._views.pop(id(view), None)

    def transaction(self, *, durable: bool = False) -> Transaction:
        """A mapping that reads the store as it is now, and commits its changes when a ``with`` block ends.

        The commit raises Conflict when others changed what it had read or changes; :meth:`retry` tries again.
        `durable` makes the changes so, by one sync. To begin costs O(1), and the end a look-up for each key
        that was read and what :meth:`put_many` does. Raises InvalidMode on a reader, Closed.
        """
        self._require_writer()
        return Transaction(self, durable)

    def retry(
        self, function: Callable[[Transaction], _T], /, *, attempts: int = 10, durable: bool = False
    ) -> _T:
        """Call `function` with a transaction, again while that conflicts, and return what it returned.

        Between attempts it sleeps, longer each time. Raises Conflict after the last one, ValueError for less
        than one, and what `function` raises.

        >>> import tempfile
        >>> with KVStore.open(tempfile.mkdtemp()) as kv:
        ...     kv.retry(lambda tx: tx.setdefault("owner", b"me"))
        b'me'
        """
        if attempts < 1:
            raise ValueError(f"a transaction is attempted once or more often, not {attempts} times")
        backoff = BACKOFF_SECONDS_FIRST
        while True:
            attempts -= 1
            try:
                with self.transaction(durable=durable) as transaction:
                    result = function(transaction)
            except Conflict:
                if not attempts:
                    raise
            else:
                return result
            time.sleep(random.uniform(0, backoff))
            backoff = min(2 * backoff, BACKOFF_SECONDS_MAX)

    def namespace(self, prefix: str | Buffer) -> Namespace[bytes, bytes]:
        """The keys that begin with `prefix`, without it, as a mapping of its own. Costs nothing.

        Raises TypeError for a prefix that is neither buffer nor str.
        """
        return Namespace(self, prefix, Bytes(), bytes)

    @overload
    def typed(self, codec: Codec[_T], keys: type[bytes] = ...) -> TypedStore[bytes, _T]: ...
    @overload
    def typed(self, codec: Codec[_T], keys: type[str]) -> TypedStore[str, _T]: ...
    def typed(self, codec: Codec[_T], keys: type[Any] = bytes) -> TypedStore[Any, _T]:
        """This store with values that `codec` makes bytes of, such as ``mmapkv.codecs.Json()``.

        Keys come back as `keys`, bytes or str. Costs nothing; both are one handle. Raises TypeError for an
        object without `encode` and `decode`, and for other `keys`.
        """
        return TypedStore(self, codec, keys)

    def flush(self) -> None:
        """Make every write that is committed now durable: on the device when it returns.

        Costs one sync, and after a segment became full a hint of it. Runs without the GIL.
        Raises FlushFailed once and Poisoned from then on when a sync fails, InvalidMode on a reader, Closed.
        """
        self._log.flush()
        log, index = self._parts()
        if index is not None:
            self._hinter.flushed(log, index)

    def sync(self) -> None:
        """Flush, under the name that dbm and shelve use; on a reader, which they ask too, it does nothing.

        Costs and raises what :meth:`flush` does.
        """
        log, _ = self._open_parts()
        if log.writable:
            self.flush()

    def close(self) -> None:
        """Close the handle, flushing first unless the policy is NEVER; the second time does nothing.

        Bytes handed out stay valid. Costs that sync and, of a writer that changed it, one of the index, some
        20 MB for a million keys. Raises FlushFailed when the last flush fails, Poisoned when an earlier one
        did and no call has said so; it is closed all the same.
        """
        log, index = self._parts()
        if index is None:
            return
        try:
            self._stop_threads(log)
            if not log.flushes_on_close:
                self._leave_unflushed(log)
                return
            with self._careful("a close"):
                if log.shared:
                    self._hinter.close(log, index)
                    self._leave(log)
                else:
                    self._leave_alone(log)
        finally:
            if not log.closed:
                self._go_on()

    def __enter__(self) -> Self:
        self._open_parts()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        self._open_parts()
        return _reopen, (type(self), *self._reopened)

    def __copy__(self) -> NoReturn:
        raise TypeError(
            "a store is not copied, for two handles of it are not two stores: dict(kv) copies what it "
            "holds, and KVStore.open(kv.path, 'r') is another handle"
        )

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __repr__(self) -> str:
        if self.closed:
            return f"<KVStore {self.path!r} closed>"
        return f"<KVStore {self.path!r} {'writing' if self._log.writable else 'reading'}, {len(self)} keys>"

    def _walk(self, what: int) -> Walk[Any]:
        stop, _, cleared, pin = self._pinned()
        return self._walk_until(stop, cleared, what, 0, pin)

    def _walk_until(self, stop: int, cleared: int, what: int, now: int, pin: Pin | None) -> Walk[Any]:
        log, _ = self._open_parts()
        stop = min(stop, log.committed)
        start = cleared if log.first_seq < cleared <= stop else 0
        return Walk(self, log.replay(start, stop), what, now, pin)

    def _visible(self) -> tuple[int, int]:
        return self._present()[:2]

    def _present(self) -> tuple[int, int, int]:
        # (number after the last record that reads show, keys present then, number below which a clear deleted
        # all). What is above is not yet in the index: the entries of a commit may be a moment away.
        while (index := self._open_parts()[1]).retired:
            self._reload_index(index)
        return index.present()

    def _pinned(self) -> tuple[int, int, int, Pin | None]:
        # The same, and what keeps compaction from removing what was current; a forked child has no locks.
        deadline = time.monotonic() + attach.WAIT_SECONDS_MAX
        while True:
            seq, count, cleared = self._present()
            _, index = self._open_parts()
            try:
                pin = self._pins.hold(seq)
            except Closed:
                return seq, count, cleared, None
            if index.horizon <= seq and not index.retired:
                if not attach.is_outdated(*self._open_parts()):
                    return seq, count, cleared, pin
                if time.monotonic() > deadline:
                    raise StoreError(
                        errno.ETIMEDOUT, "waited for the writer to provide an index; open it again", self.path
                    )
                self._reload_index(index)
            # Compaction had asked before; what it goes by is newer.
            pin.release()

    def _open_parts(self) -> tuple[Log, Index]:
        log, index = self._parts()
        if index is None:
            raise Closed(errno.EBADF, "the store is closed; open it again", log.path)
        return log, index

    def _forget(self) -> None:
        super()._forget()
        # It keeps files mapped.
        self._eviction = None

    def _segment_filled(self) -> None:
        # The one being written is no concern of his.
        if len(self._log.segments.listing()) > 1:
            self._hinter.segment_filled()


def _reopen(cls: type[KVStore], path: str, arguments: dict[str, Any]) -> KVStore:
    # What unpickling a handle comes to.
    try:
        store: KVStore = cls.open(path, **arguments)
        return store
    except OSError as error:
        error.add_note(
            f"A pickled handle is opened again by its path, which was {path!r}: the store must be there, "
            "on the same machine, and allow what the handle did."
        )
        raise
