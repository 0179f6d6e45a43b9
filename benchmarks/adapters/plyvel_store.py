"""LevelDB through the plyvel package of PyPI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import plyvel  # type: ignore[import-untyped]

from .rival import Commits, Form, Pair, Rival, Session, Spellings, installed_version, mixes

CACHE_BYTES_MIN = 64 << 20
WRITE_BUFFER_BYTES = 64 << 20
BLOOM_BITS = 10


class PlyvelStore(Rival):
    """`plyvel.DB` with what https://plyvel.readthedocs.io/en/latest/api.html has for speed.

    - `bloom_filter_bits=10`, which LevelDB's documentation recommends
      (https://github.com/google/leveldb/blob/main/doc/index.md, "Filters").
    - `lru_cache_size` with room for all; a `write_buffer_size` of 64 MiB, for loads are faster with it.
    - `sync=True` where commits must be durable.
    - `compact_range()` after the load, so that no compaction runs beside the next workload.
    - `verify_checksums` stays off, as by default.

    Only one process can open it. It takes part in nothing with several.
    """

    name = "plyvel"
    settings = (
        "bloom_filter_bits=10, block cache for all, write_buffer_size=64 MiB; sync=True where durable; "
        "checksums not verified"
    )
    spellings: ClassVar[Spellings] = {
        "get": {Form.CALL: "db.get(k)"},
        "miss": {Form.CALL: "db.get(k)"},
        "scan": {Form.CALL: "db.iterator()"},
        "open": {Form.CALL: "plyvel.DB()"},
        "disk": {Form.CALL: "all files"},
        "reopen": {Form.CALL: "plyvel.DB()"},
        "put": {Form.CALL: "db.put(k, v)"},
        "overwrite": {Form.CALL: "db.put(k, v)"},
        "delete": {Form.CALL: "db.delete(k)"},
        "put-many": {Form.CALL: "for k, v in pairs: batch.put(k, v); batch.write()"},
        "durable": {Form.CALL: "db.put(k, v, sync=True)"},
        "commit": {Form.CALL: "for k, v in pairs: batch.put(k, v); batch.write()"},
        **mixes("db.get(k), db.put(k, v)"),
        "ycsb-e": {Form.CALL: "db.iterator(start=k), db.put(k, v)"},
    }

    def __init__(self, keys_expected: int, bytes_expected: int, *, durable: bool = False) -> None:
        super().__init__(keys_expected, bytes_expected, durable=durable)
        self._db: Any = None

    @classmethod
    def version(cls) -> str:
        return f"{installed_version('plyvel')}, LevelDB {plyvel.__leveldb_version__}"

    def open(self, directory: Path) -> None:
        self._db = plyvel.DB(
            str(directory / "db"),
            create_if_missing=True,
            bloom_filter_bits=BLOOM_BITS,
            lru_cache_size=max(CACHE_BYTES_MIN, 2 * self.bytes_expected),
            write_buffer_size=WRITE_BUFFER_BYTES,
        )

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def flush(self) -> None:
        self._db.compact_range()

    def count(self) -> int:
        return sum(1 for _ in self._db.iterator(include_value=False))

    @contextmanager
    def reading(self) -> Iterator[Session]:
        db = self._db

        def scan_from(key: bytes, count: int) -> Iterable[object]:
            return islice(db.iterator(start=key), count)

        yield Session(db.get, db.put, db.delete, db.iterator, scan_from=scan_from)

    def writing(self) -> AbstractContextManager[Session]:
        return self.reading()

    def commits(self) -> Commits:
        db, durable = self._db, self.durable

        def put(key: bytes, value: bytes) -> None:
            db.put(key, value, sync=durable)

        def put_many(pairs: Sequence[Pair]) -> None:
            batch = db.write_batch(sync=durable)
            for key, value in pairs:
                batch.put(key, value)
            batch.write()

        return Commits(put, put_many)
