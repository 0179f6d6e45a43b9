"""A process that reads the store while writers come, are killed, and are replaced."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from mmapkv import KVStore
from mmaplog import TooOld
from tests.crash import defects
from tests.crash.ack_page import AckPage
from tests.crash.child import Child
from tests.crash.operations import Version, belongs, version_in

# Between two looks at its orders the reader rests: it shares the machine with the writer.
REST_SECONDS = 0.001
WALK_STEPS = 200
# A follower of the log begins a little before where it had come to: what a killed writer leaves is there.
OVERLAP_RECORDS = 10
REPLY_SECONDS_MAX = 300
# So often while it watches, and whenever it begins to, a reader takes a snapshot; it has so many at a time.
HOLD_EVERY = 3
SNAPSHOTS_MAX = 2
HELD_KEYS = 50


class ReaderFailed(Exception):
    """The reader died or raised, or read something that cannot be."""


class Reader:
    """A store opened for reading in a process of its own."""

    def __init__(self, path: Path, page: AckPage, defect: str | None = None) -> None:
        """Start it, perhaps with a planted defect. The page tells what was written."""
        self._orders, orders = Pipe()

        def body(started: Callable[[], None]) -> None:
            self._orders.close()
            server = _Server(path, page, defect)
            started()
            server.serve(orders)

        self._child = Child(body)
        orders.close()
        self._child.wait_started()

    def watch(self, keys: list[bytes], compacts: bool) -> None:
        """Have it read these keys, walk, and look at snapshots, until it is asked for something.

        It is told whether the store may be compacted meanwhile.
        """
        self._orders.send(("watch", keys, compacts))

    def get(self, keys: list[bytes]) -> tuple[int, list[bytes | None]]:
        """The number of keys in the store, and the values of these."""
        found: tuple[int, list[bytes | None]] = self._ask("get", keys)
        return found

    def keys(self) -> list[bytes]:
        """All keys of the store by iteration, each of whose values belongs to it."""
        found: list[bytes] = self._ask("keys", [])
        return found

    def close(self) -> str:
        """End it; its traceback if it had failed."""
        self._orders.close()
        return self._child.kill()

    def _ask(self, order: str, keys: list[bytes]) -> Any:
        try:
            self._orders.send((order, keys, False))
            if not self._orders.poll(REPLY_SECONDS_MAX):
                raise ReaderFailed(f"no answer in {REPLY_SECONDS_MAX} s")
            return self._orders.recv()
        except (EOFError, OSError) as error:
            raise ReaderFailed(self.close() or "it died without a word") from error


class _Server:
    # What the reader's process does, and remembers of what it saw.

    def __init__(self, path: Path, page: AckPage, defect: str | None) -> None:
        self.page = page
        self.defect = defect
        self.store = KVStore.open(path, "r")
        self.followed = self.store.stats()["committed"]
        self.cached: dict[bytes, bytes | None] = {}
        self.newest: dict[bytes, Version] = {}
        self.watched: list[bytes] = []
        # Whether compactions may have been at work since the last look. None has from `whole_from` on.
        self.has_gaps = True
        self.whole_from = 0
        self.looks = 0
        self.held: list[_Held] = []

    def serve(self, orders: Connection) -> None:
        while True:
            if self.watched and not orders.poll(REST_SECONDS):
                self.looks += 1
                self.browse()
                self.follow()
                if self.looks % HOLD_EVERY == 0:
                    self.hold()
                continue
            try:
                order, keys, compacts = orders.recv()
            except EOFError:
                return
            if order == "watch":
                # A compaction of the last round may have been at work on what is followed now.
                self.has_gaps = self.has_gaps or compacts
                self.hold()
            self.watched = keys if order == "watch" else []
            self.follow()
            if order == "watch":
                self.has_gaps = compacts
            elif order == "get":
                orders.send((len(self.store), [self.get(key) for key in keys]))
            elif order == "keys":
                self.let_go(0)
                orders.send([self.checked(key, value) for key, value in self.store.items()])

    def get(self, key: bytes) -> bytes | None:
        value = self.store.get(key)
        if self.defect == defects.CACHING_READER:
            return self.cached.setdefault(key, value)
        return value

    def browse(self) -> None:
        # What is read meanwhile may be old or new, but never another key's, half of something, or older than
        # what was read before.
        pairs = [(key, self.store.get(key)) for key in self.watched]
        pairs += itertools.islice(self.store.items(), WALK_STEPS)
        for key, value in pairs:
            if value is not None:
                self.checked(key, value)
            if self.defect == defects.BACKWARD_READER and self.looks % 2 == 0:
                # What it saw first, after what it has seen since.
                self.checked(key, self.cached.setdefault(key, value) or b"")

    def checked(self, key: bytes, value: bytes) -> bytes:
        if not belongs(key, value):
            raise ReaderFailed(f"{_shown(key, value)}, never its value")
        version = version_in(key, value)
        if version is None:
            return key
        before = self.newest.setdefault(key, version)
        if version[:2] < before[:2]:
            raise ReaderFailed(f"{_shown(key, value)}, {version}, and before that as {before}")
        if not self.page.was_submitted(version.round, version.number):
            raise ReaderFailed(f"{_shown(key, value)}, {version}, which nobody has written yet")
        self.newest[key] = version
        return key

    def follow(self) -> None:
        # The records that came since are all there, whatever was killed, removed and begun again behind them;
        # but for those that a compaction has taken out.
        log = self.store._parts()[0]
        stop = log.committed
        start = max(0, self.followed - OVERLAP_RECORDS)
        found = self.numbers(start, stop)
        if self.has_gaps:
            self.whole_from = stop
        whole = range(max(start, self.whole_from), stop)
        if found != sorted({*found} & {*range(start, stop)}) or not {*whole} <= {*found}:
            raise ReaderFailed(f"records {start} to {stop - 1} were read as {found}")
        self.followed = int(stop)

    def numbers(self, start: int, stop: int) -> list[int]:
        log = self.store._parts()[0]
        while True:
            # What was cleared, a compaction takes off the beginning.
            first = log.stats()["first_seq"] if self.has_gaps else 0
            try:
                return [entry.seq for entry in log.replay(max(start, min(first, stop)), stop)]
            except TooOld:
                if not self.has_gaps:
                    raise

    def hold(self) -> None:
        # A new snapshot, and a look at the oldest one, which some kills and compactions may have gone by.
        keys = self.watched or list(itertools.islice(self.store, HELD_KEYS))
        self.held.append(_Held(self.store, keys, self.defect))
        self.let_go(SNAPSHOTS_MAX)

    def let_go(self, most: int) -> None:
        for held in self.held:
            held.check()
        while len(self.held) > most:
            self.held.pop(0).snapshot.close()


class _Held:
    # A snapshot, and what it held when it was taken.

    def __init__(self, store: KVStore, keys: list[bytes], defect: str | None) -> None:
        self.snapshot = store.snapshot()
        self.mapping: Mapping[bytes, bytes] = store if defect == defects.MOVING_SNAPSHOT else self.snapshot
        self.keys = keys
        self.then = self.look()

    def look(self) -> tuple[int, list[bytes | None], list[tuple[bytes, bytes]]]:
        walked = list(itertools.islice(self.mapping.items(), WALK_STEPS))
        return len(self.mapping), [self.mapping.get(key) for key in self.keys], walked

    def check(self) -> None:
        now = self.look()
        if now == self.then:
            return
        names = ("its number of keys", "a value", "its walk")
        changed = [name for name, before, after in zip(names, self.then, now, strict=True) if before != after]
        raise ReaderFailed(f"a snapshot has changed: {', '.join(changed)}")


def _shown(key: bytes, value: bytes) -> str:
    return f"{key[:40]!r} was read as {value[:40]!r} ({len(value)} bytes)"
