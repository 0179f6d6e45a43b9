"""The keys of a store in order: in memory, and brought up from the log when somebody asks for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING
from weakref import ref

from sortedcontainers import SortedList  # type: ignore[import-untyped]

from mmapkv.decode import note_presence
from mmapkv.past import value_at
from mmapkv.sorting import sorted_keys
from mmaplog.errors import TooOld

if TYPE_CHECKING:
    from mmapkv.store import KVStore
    from mmaplog.log import Log

# Keys that a scan takes at once: few at first, for whoever wants but one.
BLOCK_MIN = 16
BLOCK_MAX = 1024
# Records that are read at a stretch, before other threads get a turn.
RECORDS_AT_ONCE = 4096
# With more changes than one key in so many, membership is asked of a set made for it.
MANY = 8


class Era:
    """Lives as long as one of the scans that were begun during it. Until then no key is forgotten."""

    __slots__ = ("__weakref__",)


class Moment:
    """When a scan began: `stop` is what the log ended at."""

    __slots__ = ("era", "stop")

    def __init__(self, stop: int, era: Era) -> None:
        self.stop = stop
        self.era = era


class OrderedKeys:
    """All keys of a store, sorted. Nothing is done for it when the store is written to.

    Who asks brings it up first, by reading what the log has got since, whoever wrote that. The keys are a
    superset of those of any moment that lives: deleted ones stay until no scan needs them, and a scan looks
    up each key as of its own moment, unless the two are known to agree.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys = SortedList()
        self._gone: set[bytes] = set()
        # Every record below is in it; None: not yet built, or not to be trusted any more.
        self._position: int | None = None
        self._epoch = 0
        self._era: ref[Era] = ref(Era())

    def lag(self, store: KVStore) -> int:
        """How many records must be read before a scan can begin. Raises Closed."""
        _, visible = store._visible()
        return visible - (self._position or 0)

    def begin(self, store: KVStore) -> Moment:
        """Bring the keys up, and make it the moment of a scan. Costs reading the records since the last time.

        Raises CorruptionError, Closed.
        """
        with self._lock:
            visible = self._bring_up(store)
            era = self._era()
            if era is None:
                era = Era()
                self._era = ref(era)
            return Moment(visible, era)

    def block(
        self,
        store: KVStore,
        moment: Moment,
        low: bytes | None,
        high: bytes | None,
        beyond_low: bool,
        reverse: bool,
        count: int,
    ) -> tuple[list[bytes], bool]:
        """The first, or in reverse the last, `count` keys in [low, high); and whether they are the moment's.

        With `beyond_low` without `low` itself.
        """
        with self._lock:
            if self._position is None:
                self._bring_up(store)
            found = list(islice(self._keys.irange(low, high, (not beyond_low, False), reverse), count))
            return found, self._position == moment.stop and not self._gone

    def _bring_up(self, store: KVStore) -> int:
        log, visible = store._visible()
        position, self._position = self._position, None
        epoch = log.epoch
        if position is None or epoch != self._epoch or not self._advance(log, position, visible):
            self._build(log, visible)
        if self._gone and self._era() is None:
            self._forget()
        # Last, so that whatever interrupted this finds it to be built anew.
        self._epoch = epoch
        self._position = visible
        return visible

    def _advance(self, log: Log, position: int, visible: int) -> bool:
        # False when the log does not have all records from there on: those removed may have been deletions.
        if position > visible:
            return False
        try:
            present, records = _presence(log, position, visible)
        except (TooOld, IndexError):
            return False
        if records != visible - position:
            return False
        known = set(self._keys) if MANY * len(present) > len(self._keys) else self._keys
        self._keys.update([key for key, there in present.items() if there and key not in known])
        for key, there in present.items():
            if there:
                self._gone.discard(key)
            elif key in known:
                self._gone.add(key)
        return True

    def _build(self, log: Log, visible: int) -> None:
        present, _ = _presence(log, 0, visible)
        # With those that are deleted by now: a scan may have begun before.
        self._keys = SortedList(sorted_keys(present))
        self._gone = {key for key, there in present.items() if not there}

    def _forget(self) -> None:
        if MANY * len(self._gone) > len(self._keys):
            self._keys = SortedList(key for key in self._keys if key not in self._gone)
        else:
            for key in self._gone:
                self._keys.remove(key)
        self._gone = set()


def _presence(log: Log, start: int, stop: int) -> tuple[dict[bytes, bool], int]:
    # Of each key in these records, whether it is there after them; and how many records they are.
    present: dict[bytes, bool] = {}
    replay = log.replay(start, stop)
    records = 0
    while done := note_presence(replay, present, RECORDS_AT_ONCE):
        records += done
    return present, records


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


def pairs(
    store: KVStore, keys: OrderedKeys, moment: Moment, low: bytes | None, high: bytes | None, reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    """The items in [low, high) as of a moment. Costs a look-up for each."""
    for block, _ in _blocks(store, keys, moment, low, high, reverse):
        for key in block:
            value = value_at(store, key, moment.stop, True)
            if value is not None:
                yield key, value


def only_keys(
    store: KVStore, keys: OrderedKeys, moment: Moment, low: bytes | None, high: bytes | None, reverse: bool
) -> Iterator[bytes]:
    """The keys in [low, high) as of a moment. Costs a look-up for each if the store was changed meanwhile."""
    log = store._log
    for block, exact in _blocks(store, keys, moment, low, high, reverse):
        for key in block:
            if exact:
                if log.closed:
                    store._open_parts()
                yield key
            elif value_at(store, key, moment.stop, False) is not None:
                yield key


def _blocks(
    store: KVStore, keys: OrderedKeys, moment: Moment, low: bytes | None, high: bytes | None, reverse: bool
) -> Iterator[tuple[list[bytes], bool]]:
    count, beyond_low = BLOCK_MIN, False
    while True:
        block, exact = keys.block(store, moment, low, high, beyond_low, reverse, count)
        if not block:
            return
        yield block, exact
        if reverse:
            high = block[-1]
        else:
            low, beyond_low = block[-1], True
        count = min(2 * count, BLOCK_MAX)
