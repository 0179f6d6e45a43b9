"""LMDB through py-lmdb, its C extension."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import lmdb

from .rival import Form, Rival, Session, Spellings, installed_version

MAP_SIZE_MIN = 1 << 30
MAP_BYTES_PER_BYTE_STORED = 8


class LmdbStore(Rival):
    """One unnamed database; look-ups in one open read transaction, writes in one write transaction.

    Settings as py-lmdb documents them under `lmdb.Environment` (https://lmdb.readthedocs.io/en/release/):

    - `writemap=True`: "this is faster and uses fewer mallocs". Measured at 1,000,000 random keys in one
      transaction: 1.8 s with it, 2.2 s without.
    - `map_async=True, sync=False, metasync=False`: a commit waits for no device, the least it can do.
    - `map_size`: "on 64-bit there is no penalty for making this huge"; the file is sparse.
    - `readahead` stays on: turning it off "may improve random read performance when a database is larger
      than RAM", and this one is not.
    - `lock` stays on: without it, other processes may not use the store while it is written.
    - `meminit` says nothing with `writemap`, and the bundled LMDB 1.0 (`lib_version=1`) measured the same as
      the default 0.9 series.
    - `buffers=False`: `txn.get` returns `bytes`, as the subject does.
    - `append=True` is for keys that arrive in order. These do not.
    """

    name = "lmdb"
    settings = "writemap=True, map_async=True, sync=False, metasync=False; one transaction, buffers=False"
    spellings: ClassVar[Spellings] = {
        "get": {Form.CALL: "txn.get(k)"},
        "miss": {Form.CALL: "txn.get(k)"},
        "scan": {Form.CALL: "txn.cursor()"},
        "open": {Form.CALL: "lmdb.open()"},
        "disk": {Form.CALL: "data.mdb"},
        "put": {Form.CALL: "txn.put(k, v)"},
        "overwrite": {Form.CALL: "txn.put(k, v)"},
        "delete": {Form.CALL: "txn.delete(k)"},
    }

    def __init__(self, bytes_expected: int) -> None:
        super().__init__(bytes_expected)
        self._environment: lmdb.Environment | None = None

    @classmethod
    def version(cls) -> str:
        engine = ".".join(str(part) for part in lmdb.version())
        return f"{installed_version('lmdb')}, LMDB {engine}"

    def open(self, directory: Path) -> None:
        self._environment = lmdb.open(
            str(directory),
            map_size=max(MAP_SIZE_MIN, MAP_BYTES_PER_BYTE_STORED * self.bytes_expected),
            writemap=True,
            map_async=True,
            sync=False,
            metasync=False,
        )

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def flush(self) -> None:
        self._opened().sync(True)

    def count(self) -> int:
        return int(self._opened().stat()["entries"])

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with self._opened().begin(write=False, buffers=False) as txn:
            yield Session(txn.get, txn.put, txn.delete, txn.cursor)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with self._opened().begin(write=True, buffers=False) as txn:
            yield Session(txn.get, txn.put, txn.delete, txn.cursor)

    def _opened(self) -> lmdb.Environment:
        assert self._environment is not None, "open() comes first"
        return self._environment
