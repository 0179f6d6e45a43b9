"""Pairs from two columns of an SQLite table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from mmapkv.load_source import Entry, Refusals, Source, SourceError, as_bytes

__all__ = ["open_database", "read_sqlite", "rows_of"]


def read_sqlite(
    path: str, table: str | None, key_column: str | None, value_column: str | None, refused: Refusals
) -> Source:
    """Two columns of a table of the database `path`.

    By default of the only table there is, and its first two columns. BLOB comes as it is, TEXT as UTF-8,
    INTEGER and REAL as decimal text; a row with NULL is refused. Raises SourceError, naming what there is to
    choose from.
    """
    database = open_database(path)
    try:
        table = table or _only_table(database)
        columns = [row[1] for row in database.execute(f"PRAGMA table_info({_quoted(table)})")]
        if not columns:
            raise SourceError(f"there is no table {table!r}; there are {_tables(database)}")
        if len(columns) < 2 and None in (key_column, value_column):
            raise SourceError(f"table {table!r} has one column, {columns}; a pair needs two")
        chosen = (key_column or columns[0], value_column or columns[1])
        for each in chosen:
            if each not in columns:
                raise SourceError(f"table {table!r} has no column {each!r}; it has {columns}")
        (total,) = database.execute(f"SELECT count(*) FROM {_quoted(table)}").fetchone()
    except sqlite3.Error as error:
        database.close()
        raise SourceError(str(error)) from None
    except SourceError:
        database.close()
        raise
    return Source(total, _entries(database, table, chosen, refused))


def open_database(path: str) -> sqlite3.Connection:
    """An SQLite database for reading, which is not made when there is none. Raises SourceError."""
    if Path(path).is_dir():
        raise SourceError("is a directory, and no SQLite database; name its file")
    with ExitStack() as opened:
        try:
            database = sqlite3.connect(Path(path).absolute().as_uri() + "?mode=ro", uri=True)
            opened.callback(database.close)
            # What is no text is looked at as the bytes that it is.
            database.text_factory = lambda raw: raw.decode(errors="surrogateescape")
            database.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            raise SourceError(f"cannot be read as an SQLite database: {error}") from None
        opened.pop_all()
    return database


def rows_of(database: sqlite3.Connection, query: str) -> Iterator[tuple[Any, ...]]:
    """What a query finds. Raises SourceError where the database is damaged, or others lock it for long."""
    try:
        yield from database.execute(query)
    except sqlite3.Error as error:
        raise SourceError(f"cannot be read any further: {error}") from None


def _entries(
    database: sqlite3.Connection, table: str, chosen: tuple[str, str], refused: Refusals
) -> Iterator[Entry]:
    columns = ", ".join(_quoted(each) for each in chosen)
    with closing(database):
        for row in rows_of(database, f"SELECT {columns} FROM {_quoted(table)}"):
            key, value = map(as_bytes, row)
            if key and value is not None:
                yield key, value, None
            else:
                refused.add(f"a row with key {row[0]!r:.60} and a value of type {type(row[1]).__name__}")


def _only_table(database: sqlite3.Connection) -> str:
    tables = _tables(database)
    if len(tables) != 1:
        raise SourceError(f"choose a table with --table; there are {tables}")
    return tables[0]


def _tables(database: sqlite3.Connection) -> list[str]:
    found = database.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'"
    )
    return [name for (name,) in found]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
