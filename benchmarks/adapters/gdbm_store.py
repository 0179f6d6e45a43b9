"""GNU dbm, through `dbm.gnu` of the standard library."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

try:
    # What `dbm.gnu` is; it tells the version too.
    import _gdbm  # type: ignore[import-not-found, unused-ignore]
except ImportError as error:
    raise ImportError(
        f"{error}; Python was built without GNU dbm, Debian has it for its own as python3-gdbm"
    ) from error

from .rival import Commits, Form, Pair, Rival, Session, Spellings, mixes

FILE = "store.gdbm"


class GdbmStore(Rival):
    """`dbm.gnu.open()` as https://docs.python.org/3/library/dbm.html#module-dbm.gnu has it.

    "f" is the fast mode: "Writes to the database will not be synchronized"; `sync()` where commits must be
    durable. It has no transactions and is not said to survive a writer that is killed, so it does not take
    part in that.
    """

    name = "dbm-gnu"
    settings = "flag 'cf'; sync() where durable"
    spellings: ClassVar[Spellings] = {
        "get": {Form.CALL: "db.get(k)"},
        "miss": {Form.CALL: "db.get(k)"},
        "processes": {Form.TWO: "two processes: db.get(k)", Form.ONE: "one process: db.get(k)"},
        "scan": {Form.CALL: "k = db.nextkey(k); db[k]"},
        "open": {Form.CALL: "dbm.gnu.open()"},
        "disk": {Form.CALL: "store.gdbm"},
        "put": {Form.CALL: "db[k] = v"},
        "overwrite": {Form.CALL: "db[k] = v"},
        "delete": {Form.CALL: "del db[k]"},
        "put-many": {Form.CALL: "for k, v in pairs: db[k] = v"},
        "durable": {Form.CALL: "db[k] = v; db.sync()"},
        "commit": {Form.CALL: "for k, v in pairs: db[k] = v; db.sync()"},
        **mixes("db.get(k), db[k] = v"),
    }

    def __init__(self, keys_expected: int, bytes_expected: int, *, durable: bool = False) -> None:
        super().__init__(keys_expected, bytes_expected, durable=durable)
        self._db: Any = None

    @classmethod
    def version(cls) -> str:
        engine = ".".join(str(part) for part in getattr(_gdbm, "_GDBM_VERSION", ("unknown",)))
        return f"{platform.python_implementation()} {platform.python_version()}, GDBM {engine}"

    def open(self, directory: Path) -> None:
        self._db = _gdbm.open(str(directory / FILE), "cf")

    def open_reader(self, directory: Path) -> None:
        self._db = _gdbm.open(str(directory / FILE), "r")

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def flush(self) -> None:
        self._db.sync()

    def count(self) -> int:
        return len(self._db)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        db = self._db

        def items() -> Iterator[Pair]:
            key = db.firstkey()
            while key is not None:
                yield key, db[key]
                key = db.nextkey(key)

        yield Session(db.get, db.__setitem__, db.__delitem__, items)

    def writing(self) -> AbstractContextManager[Session]:
        return self.reading()

    def commits(self) -> Commits:
        db = self._db
        sync = db.sync if self.durable else bool

        def put(key: bytes, value: bytes) -> None:
            db[key] = value
            sync()

        def put_many(pairs: Sequence[Pair]) -> None:
            for key, value in pairs:
                db[key] = value
            sync()

        return Commits(put, put_many)
