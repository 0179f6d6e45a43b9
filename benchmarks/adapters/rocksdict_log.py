"""RocksDB through the rocksdict package of PyPI, as a log: keys in order."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import ClassVar

from rocksdict import Options, Rdict, WriteBatch, WriteOptions

from .log_peer import ONE_DURABLE, LogPeer, LogStage, is_durable, is_filled, records_of
from .peer import Statements, Task
from .rival import installed_version

KEY = struct.Struct(">Q")


class RocksdictLog(LogPeer):
    """`Options(raw_mode=True)`, so that it pickles nothing; big-endian keys, which sort as their numbers.

    Its write-ahead log is on, and synced with `WriteOptions.sync`
    (https://github.com/rocksdict/RocksDict). RocksDB verifies checksums by default.
    """

    name = "rocksdict"
    settings = "Options(raw_mode=True), WriteOptions.sync=True where durable; checksums verified"
    statements: ClassVar[Statements] = {
        "append": ("for n, r in enumerate(records): db.put(pack(n), r)",),
        "append-many": (
            "b = WriteBatch(True); [b.put(pack(n), r) for n, r in enumerate(records)]; db.write(b)",
        ),
        "replay": ("for record in db.values(): pass",),
        "look-up": ("for n in numbers: db.get(pack(n))",),
        **dict.fromkeys(ONE_DURABLE, ("db.put(pack(next(number)), next(record))",)),
        "group": ("b = WriteBatch(True); [b.put(pack(next(number)), r) for r in next(group)]; db.write(b)",),
        "threads": tuple(f"in_threads({count}, durably)" for count in (8, 1)),
    }

    @classmethod
    def version(cls) -> str:
        return installed_version("rocksdict")

    @contextmanager
    def scene(self, task: Task) -> Iterator[LogStage]:
        with closing(Rdict(str(task.path / "db"), Options(raw_mode=True))) as db:
            options = WriteOptions()
            options.sync = is_durable(task)
            db.set_write_options(options)
            number = itertools.count()
            if is_filled(task):
                batch = WriteBatch(True)
                for n, record in enumerate(records_of(task)):
                    batch.put(KEY.pack(n), record)
                db.write(batch)

            def durably(record: bytes) -> None:
                db.put(KEY.pack(next(number)), record)

            names = {
                "db": db,
                "pack": KEY.pack,
                "number": number,
                "durably": durably,
                "WriteBatch": WriteBatch,
            }
            yield LogStage(names, read_back=db.values)
