"""A table of sqlite3, from the standard library."""

from __future__ import annotations

import platform
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

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

CREATE = "create table if not exists log (seq integer primary key autoincrement, data blob not null)"
INSERT = "insert into log (data) values (?)"
SELECT = "select data from log where rowid = ?"
SELECT_ALL = "select data from log order by seq"
SELECT_LAST = "select data from log order by seq desc limit 1"


class SqliteLog(LogPeer):
    """A blob and an autoincrement key, `isolation_level=None`, so that each transaction is seen in the row.

    - `journal_mode=WAL`: "significantly faster in most scenarios" (https://sqlite.org/wal.html).
    - `synchronous=OFF` where nothing waits for the device; `FULL` where it does: in WAL mode `NORMAL` "might
      roll back following a power loss" (https://sqlite.org/pragma.html#pragma_synchronous).
    - Threads share one connection and take a lock, for a write locks the whole database in any case.
    - It keeps no checksums.
    """

    name = "sqlite"
    settings = "journal_mode=WAL, synchronous=OFF, FULL where durable, isolation_level=None; no checksums"
    statements: ClassVar[Statements] = {
        "append": (
            "db.execute('begin'); [db.execute(insert, (r,)) for r in records]; db.execute('commit')",
            "for r in records: db.execute(insert, (r,))",
        ),
        "append-many": ("db.execute('begin'); db.executemany(insert, rows); db.execute('commit')",),
        "replay": ("for row in db.execute(select_all): pass",),
        "look-up": ("for n in numbers: db.execute(select, (n + 1,)).fetchone()",),
        **dict.fromkeys(ONE_DURABLE, ("db.execute(insert, (next(record),))",)),
        "group": (
            "db.execute('begin'); [db.execute(insert, (r,)) for r in next(group)]; db.execute('commit')",
        ),
        "threads": tuple(f"in_threads({count}, durably)" for count in (8, 1)),
        "reopen": ("db = connect(path); db.execute(select_last).fetchone(); opened.append(db)",),
    }

    @classmethod
    def version(cls) -> str:
        python = f"{platform.python_implementation()} {platform.python_version()}"
        return f"{python}, SQLite {sqlite3.sqlite_version}"

    @contextmanager
    def scene(self, task: Task) -> Iterator[LogStage]:
        path = task.path / "log.db"
        with closing(_connect(path)) as db:
            db.execute("pragma journal_mode=wal")
            db.execute(f"pragma synchronous={'full' if is_durable(task) else 'off'}")
            db.execute(CREATE)
            lock = threading.Lock()

            def durably(record: bytes) -> None:
                with lock:
                    db.execute(INSERT, (record,))

            names: dict[str, object] = {
                "db": db,
                "insert": INSERT,
                "select": SELECT,
                "select_all": SELECT_ALL,
                "select_last": SELECT_LAST,
                "durably": durably,
                "connect": _connect,
                "path": path,
            }
            if "records" in task.operands:
                names["rows"] = rows = [(record,) for record in records_of(task)]
                if is_filled(task):
                    db.execute("begin")
                    db.executemany(INSERT, rows)
                    db.execute("commit")
            reopens = task.workload == "reopen"
            if reopens:
                db.close()
            yield LogStage(
                names,
                read_back=lambda: (record for (record,) in db.execute(SELECT_ALL)),
                payload=_last_and_close if reopens else _first,
                crash=partial(killed, _append_and_die, path),
                note=partial(size_note, task, path),
            )


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def _first(row: tuple[bytes]) -> bytes:
    return row[0]


def _last_and_close(db: sqlite3.Connection) -> bytes:
    with closing(db):
        return _first(db.execute(SELECT_LAST).fetchone())


def _append_and_die(ready: Callable[[], None], path: Path) -> None:
    """What the process does that is killed."""
    with closing(_connect(path)) as db:
        db.execute("pragma synchronous=off")
        db.execute(INSERT, (LAST_WORDS,))
        ready()
