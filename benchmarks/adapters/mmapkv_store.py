"""The subject."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar

from mmapkv import FlushPolicy, KVStore

from .rival import Form, Rival, Session, Spellings, installed_version


class MmapkvStore(Rival):
    """A store as a user gets it who passes a path and nothing else.

    The default policy syncs the log once a second from a thread of its own. LMDB as it is set up here never
    syncs, so where they are compared the odds are on its side.
    """

    name = "mmapkv"
    settings = "the defaults: flush_policy=FlushPolicy.every_millis(1000), checksums verified"
    flush_policy = FlushPolicy.every_millis(1000)
    spellings: ClassVar[Spellings] = {
        "get": {Form.OPERATOR: "kv[k]", Form.CALL: "kv.get(k)"},
        "miss": {Form.CALL: "kv.get(k)"},
        "scan": {Form.CALL: "kv.items()"},
        "open": {Form.CALL: "KVStore.open()"},
        "disk": {Form.CALL: "all files"},
        "put": {Form.OPERATOR: "kv[k] = v"},
        "overwrite": {Form.OPERATOR: "kv[k] = v"},
        "delete": {Form.OPERATOR: "del kv[k]"},
    }

    def __init__(self, bytes_expected: int) -> None:
        super().__init__(bytes_expected)
        self._store: KVStore | None = None

    @classmethod
    def version(cls) -> str:
        return installed_version("mmapkv")

    def open(self, directory: Path) -> None:
        self._store = KVStore.open(directory, flush_policy=self.flush_policy)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def flush(self) -> None:
        self._opened().flush()

    def count(self) -> int:
        return len(self._opened())

    @contextmanager
    def reading(self) -> Iterator[Session]:
        store = self._opened()
        yield Session(store.get, store.put, store.__delitem__, store.items, store)

    def writing(self) -> AbstractContextManager[Session]:
        return self.reading()

    def _opened(self) -> KVStore:
        assert self._store is not None, "open() comes first"
        return self._store


class MmapkvManualStore(MmapkvStore):
    """The same, but nothing is synced until asked, which is all that LMDB is set up to promise here.

    Only the flusher's share of a write differs, and `put` shows it.
    """

    name = "mmapkv-manual"
    settings = "flush_policy=FlushPolicy.MANUAL, the rest by default"
    flush_policy = FlushPolicy.MANUAL
    spellings: ClassVar[Spellings] = {
        "put": {Form.OPERATOR: "kv[k] = v"},
    }
