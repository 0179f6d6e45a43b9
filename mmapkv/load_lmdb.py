"""Pairs of an LMDB environment."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmapkv.load_source import Entry, Refusals, Source, SourceError

__all__ = ["read_lmdb"]

# What LMDB keeps of a named database: its value in the unnamed one has this size.
_NAMED_BYTES = 48
_DATABASES_MAX = 128
_SHOWN_MAX = 20


def read_lmdb(path: str, database: str | None, refused: Refusals) -> Source:
    """All pairs of a database of the environment in `path`, the unnamed one when `database` is None.

    Nothing is refused. Raises SourceError for what cannot be opened, for named databases that nobody chose,
    and for several values of a key, which a store cannot hold.
    """
    try:
        lmdb: Any = importlib.import_module("lmdb")
    except ImportError:
        raise SourceError("reading LMDB needs the package lmdb: pip install 'mmapkv[lmdb]'") from None
    if not os.access(path, os.R_OK):
        raise SourceError("is not there, or may not be read")
    try:
        environment = lmdb.Environment(
            path, readonly=True, create=False, subdir=Path(path).is_dir(), max_dbs=_DATABASES_MAX
        )
        name = None if database is None else os.fsencode(database)
        try:
            opened = environment.open_db(name, create=False)
        except (lmdb.NotFoundError, lmdb.IncompatibleError):
            there = _named(environment, environment.open_db(None, create=False))
            raise SourceError(f"the environment has no database {database!r}; {_choice(there)}") from None
        with environment.begin() as transaction:
            if opened.flags(transaction).get("dupsort"):
                raise SourceError("the database has several values for a key, which a store cannot hold")
            total = transaction.stat(opened)["entries"]
        named = [] if name is not None else _named(environment, opened)
        if named:
            raise SourceError(f"the environment has named databases; {_choice(named)}")
    except lmdb.Error as error:
        raise SourceError(str(error)) from None
    return Source(total, _entries(environment, opened))


def _entries(environment: Any, opened: Any) -> Iterator[Entry]:
    with environment, environment.begin(opened, buffers=False) as transaction:
        for key, value in transaction.cursor():
            yield key, value, None


def _choice(names: list[str]) -> str:
    if not names:
        return "it has one without a name: leave out --database"
    more = ", ..." if len(names) > _SHOWN_MAX else ""
    return f"choose one with --database: {', '.join(map(ascii, names[:_SHOWN_MAX]))}{more}"


def _named(environment: Any, opened: Any) -> list[str]:
    # Named databases stand in the unnamed one, among the pairs.
    with environment.begin(opened) as transaction:
        likely = [key for key, value in transaction.cursor() if len(value) == _NAMED_BYTES]
    found = []
    for key in likely[:_DATABASES_MAX]:
        try:
            environment.open_db(key, create=False)
        except importlib.import_module("lmdb").Error:
            continue
        found.append(os.fsdecode(key))
    return found
