"""Tkrzw's file hash database, through its own Python binding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

try:
    import tkrzw  # type: ignore[import-not-found, unused-ignore]
except ImportError as error:
    raise ImportError(
        f"{error}; it is not on PyPI: Debian has it as python3-tkrzw, https://dbmx.net/tkrzw/ as source"
    ) from error

from .rival import Commits, Form, Pair, Rival, Session, Spellings, mixes

FILE = "store.tkh"


class TkrzwStore(Rival):
    """`HashDBM`, the one for look-ups of single keys among its file databases.

    As https://dbmx.net/tkrzw/ advises to tune it:

    - `num_buckets`: by the number of records to store, here twice that, so that few share a bucket.
    - `update_mode=UPDATE_IN_PLACE`, `file=MemoryMapParallelFile`: the defaults. Measured at 50,000 pairs,
      `UPDATE_APPENDING` overwrites slower and takes twice the space, `MemoryMapAtomicFile` is the same.
    - `record_crc_mode` stays off, as by default: it keeps no checksums.
    - Where commits must be durable, `Synchronize(True)` after each, which is down to the device.

    It has no transactions.
    """

    name = "tkrzw"
    settings = "HashDBM, num_buckets=2*keys; Synchronize(True) where durable; no checksums"
    spellings: ClassVar[Spellings] = {
        "get": {Form.CALL: "dbm.Get(k)"},
        "get-many": {Form.CALL: "dbm.GetMulti(*keys)"},
        "miss": {Form.CALL: "dbm.Get(k)"},
        "processes": {Form.TWO: "two processes: dbm.Get(k)", Form.ONE: "one process: dbm.Get(k)"},
        "scan": {Form.CALL: "iterator.Step()"},
        "open": {Form.CALL: "dbm.Open()"},
        "disk": {Form.CALL: "store.tkh"},
        "reopen": {Form.CALL: "dbm.Open()"},
        "put": {Form.CALL: "dbm.Set(k, v)"},
        "overwrite": {Form.CALL: "dbm.Set(k, v)"},
        "delete": {Form.CALL: "dbm.Remove(k)"},
        "put-many": {Form.CALL: "for k, v in pairs: dbm.Set(k, v)"},
        "durable": {Form.CALL: "dbm.Set(k, v); dbm.Synchronize(True)"},
        "commit": {Form.CALL: "for k, v in pairs: dbm.Set(k, v); dbm.Synchronize(True)"},
        **mixes("dbm.Get(k), dbm.Set(k, v)"),
    }

    def __init__(self, keys_expected: int, bytes_expected: int, *, durable: bool = False) -> None:
        super().__init__(keys_expected, bytes_expected, durable=durable)
        self._dbm: Any = None

    @classmethod
    def version(cls) -> str:
        return f"tkrzw {tkrzw.Utility.VERSION}"

    def open(self, directory: Path) -> None:
        self._open(directory, writable=True)

    def open_reader(self, directory: Path) -> None:
        self._open(directory, writable=False)

    def close(self) -> None:
        if self._dbm is not None:
            self._dbm.Close().OrDie()
            self._dbm = None

    def flush(self) -> None:
        self._dbm.Synchronize(True).OrDie()

    def count(self) -> int:
        return int(self._dbm.Count())

    @contextmanager
    def reading(self) -> Iterator[Session]:
        dbm = self._dbm

        def items() -> Iterable[Pair]:
            iterator = dbm.MakeIterator()
            iterator.First()
            return iter(iterator.Step, None)

        def get_many(keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
            found: Mapping[bytes, bytes] = dbm.GetMulti(*keys)
            return found

        yield Session(dbm.Get, dbm.Set, dbm.Remove, items, get_many=get_many)

    def writing(self) -> AbstractContextManager[Session]:
        return self.reading()

    def commits(self) -> Commits:
        dbm = self._dbm
        synchronize = dbm.Synchronize if self.durable else bool

        def put(key: bytes, value: bytes) -> None:
            dbm.Set(key, value)
            synchronize(True)

        def put_many(pairs: Sequence[Pair]) -> None:
            for key, value in pairs:
                dbm.Set(key, value)
            synchronize(True)

        return Commits(put, put_many)

    def found(self, keys: Sequence[bytes], answer: object) -> Mapping[bytes, object]:
        assert isinstance(answer, dict)
        return answer

    def _open(self, directory: Path, *, writable: bool) -> None:
        self._dbm = tkrzw.DBM()
        self._dbm.Open(str(directory / FILE), writable, num_buckets=2 * self.keys_expected).OrDie()
