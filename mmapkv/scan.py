"""Reading a store, or a snapshot of one, in the order of its keys."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

from mmapkv.frozen import encoded

if TYPE_CHECKING:
    from typing import TypeAlias

    from typing_extensions import Buffer

    from mmapkv.snapshot import Snapshot

    _Bytes: TypeAlias = str | bytes | Buffer

# Keys that a scan takes at once: few at first, for whoever wants but one.
BLOCK_MIN = 16
BLOCK_MAX = 1024


class Scanned:
    """The part of a store, its snapshots and transactions that reads in order; no use without the rest."""

    __slots__ = ()

    @overload
    def scan(
        self,
        prefix: _Bytes | None = None,
        *,
        start: _Bytes | None = None,
        stop: _Bytes | None = None,
        reverse: bool = False,
        values: Literal[True] = True,
    ) -> Iterator[tuple[bytes, bytes]]: ...
    @overload
    def scan(
        self,
        prefix: _Bytes | None = None,
        *,
        start: _Bytes | None = None,
        stop: _Bytes | None = None,
        reverse: bool = False,
        values: Literal[False],
    ) -> Iterator[bytes]: ...
    def scan(
        self,
        prefix: _Bytes | None = None,
        *,
        start: _Bytes | None = None,
        stop: _Bytes | None = None,
        reverse: bool = False,
        values: bool = True,
    ) -> Iterator[Any]:
        """Iterate over the pairs in the order of their keys, or with ``values=False`` over the keys alone.

        Those that begin with `prefix`, from `start` on, below `stop`, each where given; with `reverse` from
        the last to the first. What there was when `scan` was called, whatever is changed meanwhile.

        The first scan of a handle reads the whole log and sorts the keys, which stay in memory from then on;
        each later one reads what was written since. Then it costs a look-up for each pair. Raises what
        :meth:`get` does, while iterating too.

        >>> import tempfile; from mmapkv import KVStore
        >>> with KVStore.open(tempfile.mkdtemp()) as kv:
        ...     kv.update({"no/Oslo": "59.9", "no/Bergen": "60.4", "se/Lund": "55.7"})
        ...     list(kv.scan("no/"))
        ...     next(kv.scan(start="no/C", values=False))
        ...     next(kv.scan(reverse=True, values=False))
        [(b'no/Bergen', b'60.4'), (b'no/Oslo', b'59.9')]
        b'no/Oslo'
        b'se/Lund'
        """
        limits = [None if each is None else encoded(each, "key") for each in (prefix, start, stop)]
        return self._scan_within(*bounds(*limits), reverse, values)

    def _scan_within(
        self, low: bytes | None, high: bytes | None, reverse: bool, values: bool
    ) -> Iterator[Any]:
        return scan_snapshot(self._snapshot_for_scan(), low, high, reverse, values)

    @abstractmethod
    def _snapshot_for_scan(self) -> Snapshot:
        """The moment that a scan is of."""


def scan_snapshot(
    snapshot: Snapshot, low: bytes | None, high: bytes | None, reverse: bool, values: bool
) -> Iterator[Any]:
    """The pairs, or keys, of a snapshot in [low, high), in order."""
    store = snapshot._store
    store._ordered.bring_up(store, snapshot.stop)
    return (_pairs if values else _keys)(snapshot, low, high, reverse)


def bounds(
    prefix: bytes | None, start: bytes | None, stop: bytes | None
) -> tuple[bytes | None, bytes | None]:
    """The lowest key that may be in all of these ranges, and the first that is above one of them."""
    after = None
    if prefix is not None:
        start = prefix if start is None else max(start, prefix)
        # Behind all that begins with b"a\xff" comes b"b"; behind all that begins with b"\xff", nothing.
        stem = prefix.rstrip(b"\xff")
        if stem:
            after = stem[:-1] + bytes([stem[-1] + 1])
    if after is not None:
        stop = after if stop is None else min(stop, after)
    return start, stop


def _pairs(
    snapshot: Snapshot, low: bytes | None, high: bytes | None, reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    for block, _ in _blocks(snapshot, low, high, reverse):
        for key in block:
            value = snapshot.get(key)
            if value is not None:
                yield key, value


def _keys(snapshot: Snapshot, low: bytes | None, high: bytes | None, reverse: bool) -> Iterator[bytes]:
    for block, exact in _blocks(snapshot, low, high, reverse):
        if exact:
            for key in block:
                snapshot._check()
                yield key
        else:
            for key in block:
                if key in snapshot:
                    yield key


def _blocks(
    snapshot: Snapshot, low: bytes | None, high: bytes | None, reverse: bool
) -> Iterator[tuple[list[bytes], bool]]:
    store = snapshot._store
    count, beyond_low = BLOCK_MIN, False
    while True:
        block, exact = store._ordered.block(store, snapshot.stop, low, high, beyond_low, reverse, count)
        if not block:
            return
        yield block, exact
        if reverse:
            high = block[-1]
        else:
            low, beyond_low = block[-1], True
        count = min(2 * count, BLOCK_MAX)
