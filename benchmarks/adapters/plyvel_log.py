"""LevelDB through the plyvel package of PyPI, as a log: keys in order."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import ClassVar

import plyvel  # type: ignore[import-untyped]

from .log_peer import ONE_DURABLE, LogPeer, LogStage, is_filled, records_of
from .peer import Statements, Task
from .rival import installed_version

KEY = struct.Struct(">Q")


class PlyvelLog(LogPeer):
    """`plyvel.DB` with what it has by default; big-endian keys, which sort as their numbers.

    Writes wait for the device with `sync=True`, reads verify with `verify_checksums=True`
    (https://plyvel.readthedocs.io/en/latest/api.html).
    """

    name = "plyvel"
    settings = "the defaults; sync=True where durable; verify_checksums=True"
    statements: ClassVar[Statements] = {
        "append": ("for n, r in enumerate(records): db.put(pack(n), r)",),
        "append-many": ("with db.write_batch() as b: [b.put(pack(n), r) for n, r in enumerate(records)]",),
        "replay": ("for record in db.iterator(include_key=False, verify_checksums=True): pass",),
        "look-up": ("for n in numbers: db.get(pack(n), verify_checksums=True)",),
        **dict.fromkeys(ONE_DURABLE, ("db.put(pack(next(number)), next(record), sync=True)",)),
        "group": (
            "with db.write_batch(sync=True) as b: [b.put(pack(next(number)), r) for r in next(group)]",
        ),
        "threads": tuple(f"in_threads({count}, durably)" for count in (8, 1)),
    }

    @classmethod
    def version(cls) -> str:
        return f"{installed_version('plyvel')}, LevelDB {plyvel.__leveldb_version__}"

    @contextmanager
    def scene(self, task: Task) -> Iterator[LogStage]:
        with closing(plyvel.DB(str(task.path / "db"), create_if_missing=True)) as db:
            number = itertools.count()
            if is_filled(task):
                with db.write_batch() as batch:
                    for n, record in enumerate(records_of(task)):
                        batch.put(KEY.pack(n), record)

            def durably(record: bytes) -> None:
                db.put(KEY.pack(next(number)), record, sync=True)

            names = {"db": db, "pack": KEY.pack, "number": number, "durably": durably}
            yield LogStage(names, read_back=lambda: db.iterator(include_key=False))
