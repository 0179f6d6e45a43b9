"""The keys of a store in order: in memory, and brought up from the log when somebody asks for them."""

from __future__ import annotations

import threading
from itertools import islice
from typing import TYPE_CHECKING
from weakref import ref

from sortedcontainers import SortedList  # type: ignore[import-untyped]

from mmapio import _fork
from mmapkv.decode import note_presence
from mmapkv.sorting import sorted_keys
from mmaplog.errors import TooOld

if TYPE_CHECKING:
    from mmapkv.store import KVStore
    from mmaplog.log import Log

# Records that are read at a stretch, before other threads get a turn.
RECORDS_AT_ONCE = 4096
# With so many times as many keys as the store counts, and some more, it is found out which are still there.
SUPERFLUOUS = 2
SUPERFLUOUS_LEAST = 1000
# With more changes than one key in so many, membership is asked of a set made for it.
MANY = 8


class Era:
    """Lives as long as a snapshot that was taken during it; until then no key is forgotten."""

    __slots__ = ("__weakref__",)


class OrderedKeys:
    """All keys of a store, sorted. Nothing is done for it when the store is written to.

    Who asks brings it up first, by reading what the log has got since, whoever wrote that. The keys are a
    superset of those of any snapshot: deleted ones stay until no snapshot that lives can need them. So who
    scans looks up each key in his snapshot, unless the two are known to agree.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys = SortedList()
        self._gone: set[bytes] = set()
        # Whether a key may vanish without being named: by its time to live, or with others in a clear.
        self._vague = False
        # Every record below is in it; None: not yet built, or not to be trusted any more.
        self._position: int | None = None
        self._epoch = 0
        self._era_lock = threading.Lock()
        self._era: ref[Era] = ref(Era())
        _fork.register(self)

    def era(self) -> Era:
        """What a snapshot must hold. To be asked for before the snapshot's moment is fixed."""
        with self._era_lock:
            era = self._era()
            if era is None:
                era = Era()
                self._era = ref(era)
            return era

    def lag(self, store: KVStore) -> int:
        """How many records must be read before a scan can begin. Raises Closed."""
        stop, _ = store._visible()
        return stop - (self._position or 0)

    def bring_up(self, store: KVStore, stop: int) -> None:
        """Read the records below `stop` that are not in it yet.

        Raises CorruptionError, Closed.
        """
        with self._lock:
            self._bring_up(store, stop)

    def prepare(self, store: KVStore) -> None:
        """Bring it up to now, and let go of deleted keys if no snapshot can need them.

        For who takes a snapshot next, which is not older then. Raises CorruptionError, Closed.
        """
        with self._lock:
            stop, count, _ = store._present()
            self._bring_up(store, stop)
            if self._vague and len(self._keys) > SUPERFLUOUS * count + SUPERFLUOUS_LEAST:
                # Most of them were cleared.
                self._position = None
                self._bring_up(store, stop)
            if self._gone and self._era() is None:
                self._forget()

    def block(
        self,
        store: KVStore,
        stop: int,
        low: bytes | None,
        high: bytes | None,
        beyond_low: bool,
        reverse: bool,
        count: int,
    ) -> tuple[list[bytes], bool]:
        """The first, or in reverse the last, `count` keys in [low, high), with `beyond_low` without `low`.

        They are at least those that there were below number `stop`; and whether they are known to be just
        those.
        """
        with self._lock:
            self._bring_up(store, stop)
            found = list(islice(self._keys.irange(low, high, (not beyond_low, False), reverse), count))
            return found, self._position == stop and not self._gone and not self._vague

    def _after_fork_in_child(self) -> None:
        # Threads of the parent that held them are not here. What one of them was at has no position.
        self._lock = threading.Lock()
        self._era_lock = threading.Lock()

    def _bring_up(self, store: KVStore, stop: int) -> None:
        log, _ = store._open_parts()
        epoch = log.epoch
        position = self._position if epoch == self._epoch else None
        if position is not None and position >= stop:
            return
        # Whatever interrupts this finds it to be built anew.
        self._position = None
        if position is None or not self._advance(log, position, stop):
            self._build(store, log, stop)
        self._epoch = epoch
        self._position = stop

    def _advance(self, log: Log, position: int, stop: int) -> bool:
        # False when the log does not have all records from there on, and deletions may be among those that
        # went. What was superseded nobody misses: where a snapshot that is older could, it was left.
        try:
            present, records = self._presence(log, position, stop, 0)
        except (TooOld, IndexError):
            return False
        if records != stop - position and position < log.segments.manifest.swept:
            return False
        known = set(self._keys) if MANY * len(present) > len(self._keys) else self._keys
        # With those that came and went: a snapshot may be from between.
        self._keys.update([key for key in present if key not in known])
        for key, there in present.items():
            if there:
                self._gone.discard(key)
            else:
                self._gone.add(key)
        return True

    def _build(self, store: KVStore, log: Log, stop: int) -> None:
        while True:
            self._vague = False
            first = log.first_seq
            # What was cleared before, only a snapshot from before that can need.
            _, _, cleared = store._present()
            cleared = cleared if first < cleared <= stop and self._era() is None else 0
            try:
                present, _ = self._presence(log, cleared, stop, cleared) if first < stop else ({}, 0)
                break
            except IndexError:
                # What was cleared meanwhile may go; who needs it keeps it from that by his snapshot.
                if log.first_seq == first:
                    raise
        # With those that are deleted by now: a snapshot may be older.
        self._keys = SortedList(sorted_keys(present))
        self._gone = {key for key, there in present.items() if not there}

    def _forget(self) -> None:
        position, self._position = self._position, None
        if MANY * len(self._gone) > len(self._keys):
            self._keys = SortedList(key for key in self._keys if key not in self._gone)
        else:
            for key in self._gone:
                self._keys.remove(key)
        self._gone = set()
        self._position = position

    def _presence(self, log: Log, start: int, stop: int, known: int) -> tuple[dict[bytes, bool], int]:
        # Of each key in these records, whether it is there after them; and how many records they are.
        present: dict[bytes, bool] = {}
        replay = log.replay(start, stop)
        records = 0
        while True:
            done, vague = note_presence(replay, present, RECORDS_AT_ONCE, known)
            if not done:
                return present, records
            records += done
            self._vague = self._vague or vague
