"""The subject."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from mmapkv import FlushPolicy, KVStore

from ..dataset import VALUE_SIZE
from .rival import Commits, Form, NotThere, Pair, Rival, Session, Spellings, installed_version, mixes

INDEX = "INDEX"
HINTS = "*.hint"


class MmapkvStore(Rival):
    """A store as a user gets it who passes a path and nothing else.

    The default policy syncs the log once a second from a thread of its own. LMDB as it is set up here never
    syncs, so where they are compared the odds are on its side. Durable commits are told so one by one.

    What this version of the package does not have is reported as not there.
    """

    name = "mmapkv"
    settings = "the defaults: flush_policy=FlushPolicy.every_millis(1000), checksums verified"
    flush_policy = FlushPolicy.every_millis(1000)
    options: ClassVar[dict[str, Any]] = {}
    spellings: ClassVar[Spellings] = {
        "get": {Form.OPERATOR: "kv[k]", Form.CALL: "kv.get(k)"},
        "get-many": {Form.CALL: "kv.get_many(keys)"},
        "get-many-into": {Form.CALL: "kv.get_many_into(keys, buffer)"},
        "miss": {Form.CALL: "kv.get(k)"},
        "scan": {Form.CALL: "kv.items()"},
        "processes": {Form.TWO: "two processes: kv[k]", Form.ONE: "one process: kv[k]"},
        "open": {Form.CALL: "KVStore.open()"},
        "disk": {Form.CALL: "all files"},
        "reopen": {Form.CALL: "KVStore.open()"},
        "rebuild-hints": {Form.CALL: "KVStore.open()"},
        "rebuild": {Form.CALL: "KVStore.open()"},
        "put": {Form.OPERATOR: "kv[k] = v"},
        "overwrite": {Form.OPERATOR: "kv[k] = v"},
        "delete": {Form.OPERATOR: "del kv[k]"},
        "put-many": {Form.CALL: "kv.put_many(pairs)"},
        "put-all": {Form.CALL: "kv.put_many(pairs)"},
        "put-tail": {Form.CALL: "kv.put(k, v)"},
        "durable": {Form.CALL: "kv.put(k, v, durable=True)"},
        "commit": {Form.CALL: "kv.put_many(pairs, durable=True)"},
        "space": {Form.CALL: "all files, at most"},
        "churn": {Form.CALL: "kv.put(k, v)"},
        **mixes("kv.get(k), kv.put(k, v)"),
    }

    def __init__(self, keys_expected: int, bytes_expected: int, *, durable: bool = False) -> None:
        super().__init__(keys_expected, bytes_expected, durable=durable)
        self._store: KVStore | None = None

    @classmethod
    def version(cls) -> str:
        return installed_version("mmapkv")

    def open(self, directory: Path) -> None:
        self._open(directory, flush_policy=self.flush_policy)

    def open_reader(self, directory: Path) -> None:
        self._open(directory, mode="r")

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
        # `Any`: not every version of the package has everything.
        store: Any = self._opened()

        def scan_from(key: bytes, count: int) -> Iterable[Pair]:
            return islice(store.scan(start=key), count)

        yield Session(
            store.get,
            store.put,
            store.__delitem__,
            store.items,
            store,
            get_many=getattr(store, "get_many", None),
            get_many_into=getattr(store, "get_many_into", None),
            scan_from=scan_from if hasattr(store, "scan") else None,
        )

    def writing(self) -> AbstractContextManager[Session]:
        return self.reading()

    def commits(self) -> Commits:
        store: Any = self._opened()
        put_many = getattr(store, "put_many", None)
        if not self.durable:
            return Commits(store.put, put_many)
        return Commits(partial(store.put, durable=True), put_many and partial(put_many, durable=True))

    def found_in(self, keys: Sequence[bytes], answer: object, buffer: bytearray) -> Mapping[bytes, object]:
        # One behind the other; it answers how many bytes that are.
        places = range(0, len(keys) * VALUE_SIZE, VALUE_SIZE)
        found = {key: bytes(buffer[at : at + VALUE_SIZE]) for key, at in zip(keys, places, strict=True)}
        return found if answer == len(keys) * VALUE_SIZE else {}

    @contextmanager
    def drop_index(self, directory: Path, *, hints: bool) -> Iterator[None]:
        files = list(directory.rglob(HINTS))
        if hints and not files:
            raise NotThere(f"{self.version()} keeps no hint files")
        for path in [*directory.rglob(INDEX), *([] if hints else files)]:
            path.unlink()
        # It says that it rebuilds, which here is no news.
        logger = logging.getLogger("mmapkv")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)

    def _open(self, directory: Path, **options: Any) -> None:
        for option in self.options:
            if option not in inspect.signature(KVStore.open).parameters:
                raise NotThere(f"{self.version()} has no KVStore.open({option}=)")
        self._store = KVStore.open(directory, **self.options, **options)

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


class MmapkvOrderedStore(MmapkvStore):
    """The same with the ordered view that ranges need, and what that costs a put."""

    name = "mmapkv-ordered"
    settings = "ordered=True, the rest by default"
    options: ClassVar[dict[str, Any]] = {"ordered": True}
    spellings: ClassVar[Spellings] = {
        "put": {Form.OPERATOR: "kv[k] = v"},
        "ycsb-e": {Form.CALL: "kv.scan(start=k), kv.put(k, v)"},
    }


class MmapkvUncompactedStore(MmapkvStore):
    """The same, and what was overwritten stays where it is: what compaction in the background costs a put."""

    name = "mmapkv-uncompacted"
    settings = "compaction=False, the rest by default"
    options: ClassVar[dict[str, Any]] = {"compaction": False}
    spellings: ClassVar[Spellings] = {
        "put": {Form.OPERATOR: "kv[k] = v"},
        "put-tail": {Form.CALL: "kv.put(k, v)"},
        "overwrite": {Form.OPERATOR: "kv[k] = v"},
        "delete": {Form.OPERATOR: "del kv[k]"},
        "space": {Form.CALL: "all files, at most"},
        "churn": {Form.CALL: "kv.put(k, v)"},
    }


class MmapkvHalfStore(MmapkvUncompactedStore):
    """The same, kept less small: what is dead may be half of what is not."""

    name = "mmapkv-half"
    settings = "compaction=0.5, the rest by default"
    options: ClassVar[dict[str, Any]] = {"compaction": 0.5}
