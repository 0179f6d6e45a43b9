"""LMDB through py-lmdb, its C extension."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import lmdb

from .rival import Commits, Form, Pair, Rival, Session, Spellings, installed_version, mixes

UNSYNCED: dict[str, Any] = {"writemap": True, "map_async": True, "sync": False, "metasync": False}

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
    - Where commits must be durable: the defaults, with which each of them syncs.
    """

    name = "lmdb"
    settings = (
        "writemap=True, map_async=True, sync=False, metasync=False, the defaults where durable; "
        "one transaction, buffers=False"
    )
    spellings: ClassVar[Spellings] = {
        "get": {Form.CALL: "txn.get(k)"},
        "get-many": {Form.CALL: "cursor.getmulti(keys)"},
        "miss": {Form.CALL: "txn.get(k)"},
        "processes": {Form.TWO: "two processes: txn.get(k)", Form.ONE: "one process: txn.get(k)"},
        "scan": {Form.CALL: "txn.cursor()"},
        "open": {Form.CALL: "lmdb.open()"},
        "disk": {Form.CALL: "data.mdb"},
        "put": {Form.CALL: "txn.put(k, v)"},
        "overwrite": {Form.CALL: "txn.put(k, v)"},
        "delete": {Form.CALL: "txn.delete(k)"},
        "reopen": {Form.CALL: "lmdb.open()"},
        "put-many": {Form.CALL: "with begin(): cursor.putmulti(pairs)"},
        "put-all": {Form.CALL: "with begin(): cursor.putmulti(pairs)"},
        "durable": {Form.CALL: "with begin(): txn.put(k, v)"},
        "commit": {Form.CALL: "with begin(): cursor.putmulti(pairs)"},
        **mixes("txn.get(k), txn.put(k, v)"),
        "ycsb-e": {Form.CALL: "cursor.set_range(k), txn.put(k, v)"},
    }

    def __init__(self, keys_expected: int, bytes_expected: int, *, durable: bool = False) -> None:
        super().__init__(keys_expected, bytes_expected, durable=durable)
        self._environment: lmdb.Environment | None = None

    @classmethod
    def version(cls) -> str:
        engine = ".".join(str(part) for part in lmdb.version())
        return f"{installed_version('lmdb')}, LMDB {engine}"

    def open(self, directory: Path) -> None:
        size = max(MAP_SIZE_MIN, MAP_BYTES_PER_BYTE_STORED * self.bytes_expected)
        self._environment = lmdb.open(str(directory), map_size=size, **({} if self.durable else UNSYNCED))

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
            yield _session(txn)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with self._opened().begin(write=True, buffers=False) as txn:
            yield _session(txn)

    def commits(self) -> Commits:
        begin = self._opened().begin

        def put(key: bytes, value: bytes) -> None:
            with begin(write=True) as txn:
                txn.put(key, value)

        def put_many(pairs: Sequence[Pair]) -> None:
            with begin(write=True) as txn:
                txn.cursor().putmulti(pairs)

        return Commits(put, put_many)

    def found(self, keys: Sequence[bytes], answer: object) -> Mapping[bytes, object]:
        assert isinstance(answer, list)
        return dict(answer)

    def _opened(self) -> lmdb.Environment:
        assert self._environment is not None, "open() comes first"
        return self._environment


def _session(txn: lmdb.Transaction) -> Session:
    cursor = txn.cursor()

    def scan_from(key: bytes, count: int) -> Iterable[object]:
        cursor.set_range(key)
        return islice(cursor.iternext(), count)

    return Session(txn.get, txn.put, txn.delete, txn.cursor, get_many=cursor.getmulti, scan_from=scan_from)
