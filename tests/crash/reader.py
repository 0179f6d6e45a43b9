"""A process that reads the store while writers come, are killed, and are replaced."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from mmapkv import KVStore
from tests.crash.child import Child
from tests.crash.operations import belongs

# Between two looks at its orders the reader rests: it shares the machine with the writer.
REST_SECONDS = 0.001
WALK_STEPS = 200
# A follower of the log begins a little before where it had come to: what a killed writer leaves is there.
OVERLAP_RECORDS = 10
REPLY_SECONDS_MAX = 60


class ReaderFailed(Exception):
    """The reader died or raised, or read something that cannot be."""


class Reader:
    """A store opened for reading in a process of its own."""

    def __init__(self, path: Path, caches: bool = False) -> None:
        """Start it. With `caches`, the planted defect, it never looks at a key twice."""
        self._orders, orders = Pipe()

        def body(started: Callable[[], None]) -> None:
            self._orders.close()
            _serve(path, orders, caches, started)

        self._child = Child(body)
        orders.close()
        self._child.wait_started()

    def watch(self, keys: list[bytes]) -> None:
        """Have it read these keys, and walk over the store, until it is asked for something."""
        self._orders.send(("watch", keys))

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
            self._orders.send((order, keys))
            if not self._orders.poll(REPLY_SECONDS_MAX):
                raise ReaderFailed(f"no answer in {REPLY_SECONDS_MAX} s")
            return self._orders.recv()
        except (EOFError, OSError) as error:
            raise ReaderFailed(self.close() or "it died without a word") from error


def _serve(path: Path, orders: Connection, caches: bool, started: Callable[[], None]) -> None:
    store = KVStore.open(path, "r")
    seen: dict[bytes, bytes | None] = {}
    watched: list[bytes] = []
    followed = store.stats()["committed"]
    started()
    while True:
        if watched and not orders.poll(REST_SECONDS):
            _browse(store, watched)
            followed = _follow(store, followed)
            continue
        try:
            order, keys = orders.recv()
        except EOFError:
            return
        watched = keys if order == "watch" else []
        followed = _follow(store, followed)
        if order == "get":
            if caches:
                orders.send((len(store), [seen.setdefault(key, store.get(key)) for key in keys]))
            else:
                orders.send((len(store), [store.get(key) for key in keys]))
        elif order == "keys":
            orders.send([_checked(key, value) for key, value in store.items()])


def _browse(store: KVStore, keys: list[bytes]) -> None:
    # What is read meanwhile may be old or new, but never another key's or half of something.
    pairs = [(key, store.get(key)) for key in keys]
    pairs += itertools.islice(store.items(), WALK_STEPS)
    for key, value in pairs:
        if value is not None:
            _checked(key, value)


def _checked(key: bytes, value: bytes) -> bytes:
    if not belongs(key, value):
        raise ReaderFailed(f"{key[:40]!r} was read as {value[:40]!r} ({len(value)} bytes), never its value")
    return key


def _follow(store: KVStore, followed: int) -> int:
    # The records that came since are all there, whatever was killed, removed and begun again behind them.
    log = store._parts()[0]
    stop = log.committed
    start = max(0, followed - OVERLAP_RECORDS)
    found = [entry.seq for entry in log.replay(start, stop)]
    if found != list(range(start, stop)):
        raise ReaderFailed(f"records {start} to {stop - 1} were read as {found}")
    return int(stop)
