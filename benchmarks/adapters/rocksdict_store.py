"""RocksDB through the rocksdict package of PyPI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import ClassVar

from rocksdict import AccessType, BlockBasedOptions, Cache, Options, Rdict, WriteBatch, WriteOptions

from .rival import Commits, Form, Pair, Rival, Session, Spellings, installed_version, mixes

CACHE_BYTES_MIN = 64 << 20
BLOOM_BITS = 10


class RocksdictStore(Rival):
    """`Options(raw_mode=True)`, so that it pickles nothing.

    Settings as RocksDB's wiki advises (https://github.com/facebook/rocksdb/wiki/Setup-Options-and-Basic-Tuning),
    as rocksdict names them (https://rocksdict.github.io/RocksDict/rocksdict.html):

    - A Bloom filter of 10 bits a key, "full", which a miss is spared the blocks by.
    - A block cache that has room for all.
    - `set_level_compaction_dynamic_level_bytes(True)`, two background jobs for two processors.
    - The write-ahead log is on; it is synced with `WriteOptions.sync` where commits must be durable.
    - `compact_range()` after the load, so that no compaction runs beside the next workload.

    It verifies checksums of blocks as it reads them from the file, by default.
    """

    name = "rocksdict"
    settings = (
        "raw_mode=True, Bloom filter of 10 bits, block cache for all, dynamic levels; "
        "WriteOptions.sync=True where durable"
    )
    spellings: ClassVar[Spellings] = {
        "get": {Form.CALL: "db.get(k)"},
        "get-many": {Form.CALL: "db.get(keys)"},
        "miss": {Form.CALL: "db.get(k)"},
        "processes": {Form.TWO: "two processes: db.get(k)", Form.ONE: "one process: db.get(k)"},
        "scan": {Form.CALL: "db.items()"},
        "open": {Form.CALL: "Rdict()"},
        "disk": {Form.CALL: "all files"},
        "reopen": {Form.CALL: "Rdict()"},
        "put": {Form.CALL: "db.put(k, v)"},
        "overwrite": {Form.CALL: "db.put(k, v)"},
        "delete": {Form.CALL: "db.delete(k)"},
        "put-many": {Form.CALL: "for k, v in pairs: batch.put(k, v); db.write(batch)"},
        "durable": {Form.CALL: "db.put(k, v)"},
        "commit": {Form.CALL: "for k, v in pairs: batch.put(k, v); db.write(batch)"},
        **mixes("db.get(k), db.put(k, v)"),
        "ycsb-e": {Form.CALL: "db.items(from_key=k), db.put(k, v)"},
    }

    def __init__(self, keys_expected: int, bytes_expected: int, *, durable: bool = False) -> None:
        super().__init__(keys_expected, bytes_expected, durable=durable)
        self._db: Rdict | None = None

    @classmethod
    def version(cls) -> str:
        return installed_version("rocksdict")

    def open(self, directory: Path) -> None:
        self._db = Rdict(str(directory / "db"), self._options())
        options = WriteOptions()
        options.sync = self.durable
        self._db.set_write_options(options)

    def open_reader(self, directory: Path) -> None:
        self._db = Rdict(str(directory / "db"), self._options(), access_type=AccessType.read_only())

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def flush(self) -> None:
        db = self._opened()
        db.flush()
        db.compact_range(None, None)

    def count(self) -> int:
        # It knows an estimate only.
        return sum(1 for _ in self._opened().keys())  # noqa: SIM118

    @contextmanager
    def reading(self) -> Iterator[Session]:
        db = self._opened()

        def scan_from(key: bytes, count: int) -> Iterable[object]:
            return islice(db.items(from_key=key), count)

        yield Session(db.get, db.put, db.delete, db.items, get_many=db.get, scan_from=scan_from)

    def writing(self) -> AbstractContextManager[Session]:
        return self.reading()

    def commits(self) -> Commits:
        db = self._opened()

        def put_many(pairs: Sequence[Pair]) -> None:
            batch = WriteBatch(True)
            for key, value in pairs:
                batch.put(key, value)
            db.write(batch)

        return Commits(db.put, put_many)

    def _options(self) -> Options:
        table = BlockBasedOptions()
        table.set_bloom_filter(BLOOM_BITS, False)
        table.set_block_cache(Cache(max(CACHE_BYTES_MIN, 2 * self.bytes_expected)))
        options = Options(raw_mode=True)
        options.set_block_based_table_factory(table)
        options.set_level_compaction_dynamic_level_bytes(True)
        options.set_max_background_jobs(2)
        return options

    def _opened(self) -> Rdict:
        assert self._db is not None, "open() comes first"
        return self._db
