"""Pairs of a diskcache.Cache or FanoutCache, without its package and without unpickling anything."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath

from mmapio import _os
from mmapkv.load_source import EXPIRES_NS_MAX, Entry, Refusals, Source, SourceError, as_bytes
from mmapkv.load_sqlite import open_database, rows_of

__all__ = ["read_diskcache"]

_DATABASE = "cache.db"
# How the cache keeps a value.
_RAW = 1
_BINARY_FILE = 2
_TEXT_FILE = 3
_COLUMNS = "key, raw, mode, filename, value, expire_time"


def read_diskcache(path: str, refused: Refusals) -> Source:
    """What the cache in the directory `path` holds, and when each expires.

    Keys and values that are bytes, text or numbers come as bytes; text as UTF-8, numbers as decimal text. All
    others are pickles, which run what they like when they are opened: they are refused. Raises SourceError.
    """
    places = [
        each for each in (Path(path), *sorted(Path(path).glob("[0-9]*"))) if (each / _DATABASE).is_file()
    ]
    if not places:
        raise SourceError(f"holds no {_DATABASE}: it is not the directory of a diskcache")
    total = 0
    for place in places:
        with closing(open_database(str(place / _DATABASE))) as database:
            try:
                total += database.execute("SELECT count(*) FROM Cache").fetchone()[0]
                database.execute(f"SELECT {_COLUMNS} FROM Cache LIMIT 1")
            except sqlite3.Error as error:
                raise SourceError(
                    f"{place / _DATABASE} is not of a diskcache that is known: {error}"
                ) from None
    return Source(total, _entries(places, refused))


def _entries(places: list[Path], refused: Refusals) -> Iterator[Entry]:
    for place in places:
        with closing(open_database(str(place / _DATABASE))) as database:
            for stored, raw, mode, filename, kept, expires in rows_of(
                database, f"SELECT {_COLUMNS} FROM Cache ORDER BY rowid"
            ):
                shown = repr(stored)[:60]
                if not isinstance(expires, int | float | None):
                    refused.add(f"key {shown} expires at {repr(expires)[:60]}, which is no time")
                    continue
                key = as_bytes(stored) if raw else None
                if not key:
                    refused.add(f"the key {shown} is a pickle, or empty")
                    continue
                if mode == _RAW:
                    value = as_bytes(kept)
                elif mode in (_BINARY_FILE, _TEXT_FILE):
                    value = _content(place, filename)
                else:
                    value = None
                if value is None:
                    refused.add(f"the value of key {shown} is a pickle, or its file is missing")
                else:
                    yield key, value, _in_ns(expires)


def _in_ns(expires: float | None) -> int | None:
    # What ends when no store can say it any more stays.
    if expires is None or expires * 1e9 >= EXPIRES_NS_MAX:
        return None
    # Minus infinity is no integer.
    return int(expires * 1e9) if expires > 0 else 0


def _content(place: Path, name: object) -> bytes | None:
    # A name that leads elsewhere is not the cache's.
    if not isinstance(name, str) or "\0" in name:
        return None
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        return None
    try:
        opened = _os.open_file(str(place.joinpath(*parts)), False, follow=False)
        return _os.read_at(opened, _os.file_size(opened), 0)
    except FileNotFoundError:
        return None
