"""LMDB through py-lmdb, as a log: integer keys in order, each appended."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lmdb

from .lmdb_store import LmdbStore
from .log_peer import (
    LAST_WORDS,
    ONE_DURABLE,
    LogPeer,
    LogStage,
    is_durable,
    is_filled,
    records_of,
    size_note,
)
from .other_process import killed
from .peer import Statements, Task

KEY = struct.Struct("@N")
MAP_SIZE = 4 << 30

UNSYNCED: dict[str, Any] = {"writemap": True, "map_async": True, "sync": False, "metasync": False}


class LmdbLog(LogPeer):
    """One database with `integerkey=True`, to which every `put` is told `append=True`, its append mode.

    Settings as py-lmdb documents them under `lmdb.Environment` (https://lmdb.readthedocs.io/en/release/).
    Where nothing waits for the device, as the store's rival is set up. Where something does, the defaults,
    with which a commit syncs. It keeps no checksums.
    """

    name = "lmdb"
    settings = (
        "integerkey=True, append=True; writemap=True, map_async=True, sync=False, metasync=False, "
        "the defaults where durable; no checksums"
    )
    statements: ClassVar[Statements] = {
        "append": (
            "with write() as txn: [txn.put(pack(n), r, append=True) for n, r in enumerate(records)]",
            "for r in records: put(r)",
        ),
        "append-many": ("with write() as txn: txn.cursor(db).putmulti(pairs, append=True)",),
        "replay": ("for key, record in txn.cursor(db): pass",),
        "look-up": ("for n in numbers: txn.get(pack(n))",),
        **dict.fromkeys(
            ONE_DURABLE, ("with write() as txn: txn.put(pack(next(number)), next(record), append=True)",)
        ),
        "group": ("with write() as txn: [txn.put(pack(next(number)), r, append=True) for r in next(group)]",),
        "threads": tuple(f"in_threads({count}, put)" for count in (8, 1)),
        "reopen": ("opened.append(connect(path))",),
    }

    @classmethod
    def version(cls) -> str:
        return LmdbStore.version()

    @contextmanager
    def scene(self, task: Task) -> Iterator[LogStage]:
        env = _connect(task.path, **({} if is_durable(task) else UNSYNCED))
        db = _database(env)
        write = partial(env.begin, db, write=True)

        def put(record: bytes) -> None:
            with write() as txn:
                # The key is drawn inside, where no other thread is.
                txn.put(KEY.pack(txn.stat(db)["entries"]), record, append=True)

        names: dict[str, Any] = {
            "db": db,
            "write": write,
            "put": put,
            "pack": KEY.pack,
            "number": itertools.count(),
            "connect": partial(_connect, **UNSYNCED),
            "path": task.path,
        }
        if "records" in task.operands:
            names["pairs"] = pairs = [(KEY.pack(n), r) for n, r in enumerate(records_of(task))]
            if is_filled(task):
                with write() as txn:
                    txn.cursor(db).putmulti(pairs, append=True)
        reads = task.workload in ("replay", "look-up")
        if reads:
            names["txn"] = env.begin(db)
        if task.workload == "reopen":
            # A process may not have an environment open twice.
            env.close()

        def read_back() -> Iterator[bytes]:
            with env.begin(db) as txn:
                yield from (bytes(record) for _, record in txn.cursor(db))

        payload: Callable[[Any], bytes] = _last_and_close if task.workload == "reopen" else _second
        try:
            yield LogStage(
                names,
                read_back=read_back,
                payload=payload,
                crash=partial(killed, _append_and_die, task.path),
                note=partial(size_note, task, task.path / "data.mdb"),
            )
        finally:
            if reads:
                names["txn"].abort()
            env.close()


def _connect(path: Path, **settings: Any) -> lmdb.Environment:
    return lmdb.open(str(path), map_size=MAP_SIZE, max_dbs=1, **settings)


def _database(env: lmdb.Environment) -> Any:
    return env.open_db(b"log", integerkey=True)


def _second(pair: tuple[bytes, bytes]) -> bytes:
    return pair[1]


def _last_and_close(env: lmdb.Environment) -> bytes:
    with env, env.begin(_database(env)) as txn, txn.cursor() as cursor:
        return bytes(cursor.value()) if cursor.last() else b""


def _append_and_die(ready: Callable[[], None], path: Path) -> None:
    """What the process does that is killed."""
    with _connect(path, **UNSYNCED) as env:
        db = _database(env)
        with env.begin(db, write=True) as txn:
            txn.put(KEY.pack(txn.stat(db)["entries"]), LAST_WORDS, append=True)
        ready()
