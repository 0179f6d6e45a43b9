"""A table of sqlite3, from the standard library."""

from __future__ import annotations

import platform
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

from .rival import Commits, Form, Pair, Rival, Session, Spellings, mixes

CREATE = "create table if not exists kv (k blob primary key, v blob not null) without rowid"
PUT = "replace into kv values (?, ?)"
GET = "select v from kv where k = ?"
DELETE = "delete from kv where k = ?"
ITEMS = "select k, v from kv"
SCAN = "select k, v from kv where k >= ? order by k limit ?"
COUNT = "select count(*) from kv"

CACHE_KIB = 256 << 10


class SqliteStore(Rival):
    """One table, whose primary key is the key, with `isolation_level=None`, so that each transaction is ours.

    - `WITHOUT ROWID`: one B-tree instead of two, at best half the space and half the time
      (https://sqlite.org/withoutrowid.html).
    - `journal_mode=WAL`: "significantly faster in most scenarios" (https://sqlite.org/wal.html).
    - `synchronous=OFF` where nothing waits for the device; `FULL` where commits must be durable: in WAL mode
      `NORMAL` "might roll back following a power loss" (https://sqlite.org/pragma.html#pragma_synchronous).
    - `mmap_size` with room for all (https://sqlite.org/mmap.html), `cache_size` 256 MiB.
    - It keeps no checksums.
    """

    name = "sqlite"
    settings = (
        "WITHOUT ROWID, journal_mode=WAL, synchronous=OFF, FULL where durable, mmap_size for all, "
        "cache_size 256 MiB; one transaction; no checksums"
    )
    spellings: ClassVar[Spellings] = {
        "get": {Form.CALL: "db.execute(get, (k,)).fetchone()"},
        "get-many": {Form.CALL: "db.execute(get_many, keys).fetchall()"},
        "miss": {Form.CALL: "db.execute(get, (k,)).fetchone()"},
        "processes": {Form.TWO: "two processes: db.execute()", Form.ONE: "one process: db.execute()"},
        "scan": {Form.CALL: "db.execute(items)"},
        "open": {Form.CALL: "sqlite3.connect()"},
        "disk": {Form.CALL: "all files"},
        "reopen": {Form.CALL: "sqlite3.connect()"},
        "put": {Form.CALL: "db.execute(put, (k, v))"},
        "overwrite": {Form.CALL: "db.execute(put, (k, v))"},
        "delete": {Form.CALL: "db.execute(delete, (k,))"},
        "put-many": {Form.CALL: "begin; db.executemany(put, pairs); commit"},
        "put-all": {Form.CALL: "begin; db.executemany(put, pairs); commit"},
        "durable": {Form.CALL: "db.execute(put, (k, v))"},
        "commit": {Form.CALL: "begin; db.executemany(put, pairs); commit"},
        **mixes("db.execute(get, ...), db.execute(put, ...)"),
        "ycsb-e": {Form.CALL: "db.execute(scan, ...), db.execute(put, ...)"},
    }

    def __init__(self, keys_expected: int, bytes_expected: int, *, durable: bool = False) -> None:
        super().__init__(keys_expected, bytes_expected, durable=durable)
        self._db: sqlite3.Connection | None = None

    @classmethod
    def version(cls) -> str:
        python = f"{platform.python_implementation()} {platform.python_version()}"
        return f"{python}, SQLite {sqlite3.sqlite_version}"

    def open(self, directory: Path) -> None:
        self._db = sqlite3.connect(directory / "store.db", isolation_level=None)
        self._db.execute("pragma journal_mode=wal").fetchone()
        self._db.execute(f"pragma synchronous={'full' if self.durable else 'off'}")
        self._db.execute(f"pragma mmap_size={8 * self.bytes_expected}").fetchone()
        self._db.execute(f"pragma cache_size={-CACHE_KIB}")
        self._db.execute(CREATE)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def flush(self) -> None:
        self._opened().execute("pragma wal_checkpoint(truncate)").fetchone()

    def count(self) -> int:
        return int(self._opened().execute(COUNT).fetchone()[0])

    @contextmanager
    def reading(self) -> Iterator[Session]:
        execute = self._opened().execute
        execute("begin")
        yield self._session()
        execute("commit")

    def writing(self) -> AbstractContextManager[Session]:
        return self.reading()

    def commits(self) -> Commits:
        db = self._opened()
        execute, executemany = db.execute, db.executemany

        def put(key: bytes, value: bytes) -> None:
            execute(PUT, (key, value))

        def put_many(pairs: Sequence[Pair]) -> None:
            execute("begin")
            executemany(PUT, pairs)
            execute("commit")

        return Commits(put, put_many)

    def found(self, keys: Sequence[bytes], answer: object) -> Mapping[bytes, object]:
        assert isinstance(answer, list)
        return dict(answer)

    def _session(self) -> Session:
        execute = self._opened().execute
        select_many: dict[int, str] = {}

        def get(key: bytes) -> object:
            row = execute(GET, (key,)).fetchone()
            return row and row[0]

        def put(key: bytes, value: bytes) -> object:
            return execute(PUT, (key, value))

        def delete(key: bytes) -> object:
            return execute(DELETE, (key,))

        def items() -> Iterable[Pair]:
            return execute(ITEMS)

        def get_many(keys: Sequence[bytes]) -> object:
            count = len(keys)
            if count not in select_many:
                select_many[count] = f"{ITEMS} where k in ({','.join('?' * count)})"
            return execute(select_many[count], keys).fetchall()

        def scan_from(key: bytes, count: int) -> Iterable[object]:
            return execute(SCAN, (key, count))

        return Session(get, put, delete, items, get_many=get_many, scan_from=scan_from)

    def _opened(self) -> sqlite3.Connection:
        assert self._db is not None, "open() comes first"
        return self._db
