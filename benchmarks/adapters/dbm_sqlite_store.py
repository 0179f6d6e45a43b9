"""`dbm.sqlite3` of the standard library, from Python 3.13 on."""

from __future__ import annotations

import platform
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dbm import sqlite3 as dbm_sqlite3  # type: ignore[attr-defined, unused-ignore]
from pathlib import Path
from typing import Any, ClassVar

from .rival import Commits, Form, Rival, Session, Spellings


class DbmSqliteStore(Rival):
    """`dbm.sqlite3.open()`, which has no settings (https://docs.python.org/3/library/dbm.html#module-dbm.sqlite3).

    Each change is a transaction of its own that waits for the device, which it cannot be told not to do. So
    it takes part in what only reads, with few pairs, and in the durable put.
    """

    name = "dbm-sqlite"
    settings = "no settings"
    keys_max = 1_000
    spellings: ClassVar[Spellings] = {
        "get": {Form.OPERATOR: "db[k]"},
        "miss": {Form.CALL: "db.get(k)"},
        "processes": {Form.TWO: "two processes: db[k]", Form.ONE: "one process: db[k]"},
        "scan": {Form.CALL: "db.items()"},
        "open": {Form.CALL: "dbm.sqlite3.open()"},
        "disk": {Form.CALL: "all files"},
        "reopen": {Form.CALL: "dbm.sqlite3.open()"},
        "durable": {Form.CALL: "db[k] = v"},
    }

    def __init__(self, keys_expected: int, bytes_expected: int, *, durable: bool = False) -> None:
        super().__init__(keys_expected, bytes_expected, durable=durable)
        self._db: Any = None

    @classmethod
    def version(cls) -> str:
        python = f"{platform.python_implementation()} {platform.python_version()}"
        return f"{python}, SQLite {sqlite3.sqlite_version}"

    def open(self, directory: Path) -> None:
        self._db = dbm_sqlite3.open(directory / "store.db", "c")  # noqa: SIM115

    def open_reader(self, directory: Path) -> None:
        self._db = dbm_sqlite3.open(directory / "store.db", "r")  # noqa: SIM115

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def flush(self) -> None:
        """Every change was a commit."""

    def count(self) -> int:
        return len(self._db)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        db = self._db
        yield Session(db.get, db.__setitem__, db.__delitem__, db.items, db)

    def writing(self) -> AbstractContextManager[Session]:
        return self.reading()

    def commits(self) -> Commits:
        return Commits(self._db.__setitem__)
