"""A `Cache` of the diskcache package of PyPI: SQLite with a table of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from diskcache import Cache  # type: ignore[import-untyped, unused-ignore]

from .rival import Commits, Form, Pair, Rival, Session, Spellings, installed_version, mixes

SIZE_LIMIT = 1 << 40
SYNC_FULL, SYNC_OFF = 2, 0


class DiskcacheStore(Rival):
    """Settings as https://grantjenks.com/docs/diskcache/tutorial.html explains them.

    - `eviction_policy="none"`, `cull_limit=0`, and a `size_limit` that is never reached: it keeps everything,
      and a look-up writes nothing.
    - `transact()` around many writes, which it advises for speed.
    - `sqlite_synchronous=0` where nothing waits for the device, 2 where commits must be durable.
    - Keys and values are bytes, which it stores as they are.
    """

    name = "diskcache"
    settings = (
        "eviction_policy='none', cull_limit=0, sqlite_synchronous=0, 2 where durable; "
        "one transaction; no checksums"
    )
    keys_max = 50_000
    spellings: ClassVar[Spellings] = {
        "get": {Form.CALL: "cache.get(k)"},
        "miss": {Form.CALL: "cache.get(k)"},
        "processes": {Form.TWO: "two processes: cache.get(k)", Form.ONE: "one process: cache.get(k)"},
        "scan": {Form.CALL: "for k in cache: cache[k]"},
        "open": {Form.CALL: "Cache()"},
        "disk": {Form.CALL: "all files"},
        "reopen": {Form.CALL: "Cache()"},
        "put": {Form.CALL: "cache.set(k, v)"},
        "overwrite": {Form.CALL: "cache.set(k, v)"},
        "delete": {Form.CALL: "cache.delete(k)"},
        "put-many": {Form.CALL: "with cache.transact(): cache.set(k, v)"},
        "durable": {Form.CALL: "cache.set(k, v)"},
        "commit": {Form.CALL: "with cache.transact(): cache.set(k, v)"},
        **mixes("cache.get(k), cache.set(k, v)"),
    }

    def __init__(self, keys_expected: int, bytes_expected: int, *, durable: bool = False) -> None:
        super().__init__(keys_expected, bytes_expected, durable=durable)
        self._cache: Any = None

    @classmethod
    def version(cls) -> str:
        return installed_version("diskcache")

    def open(self, directory: Path) -> None:
        self._cache = Cache(
            str(directory / "cache"),
            eviction_policy="none",
            cull_limit=0,
            size_limit=SIZE_LIMIT,
            sqlite_synchronous=SYNC_FULL if self.durable else SYNC_OFF,
        )

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def flush(self) -> None:
        """Every transaction was a commit, and nothing is written later."""

    def count(self) -> int:
        return len(self._cache)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        cache = self._cache

        def items() -> Iterator[Pair]:
            return ((key, cache[key]) for key in cache)

        yield Session(cache.get, cache.set, cache.delete, items)

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with self._cache.transact(), self.reading() as session:
            yield session

    def commits(self) -> Commits:
        cache = self._cache

        def put_many(pairs: Sequence[Pair]) -> None:
            with cache.transact():
                for key, value in pairs:
                    cache.set(key, value)

        return Commits(cache.set, put_many)
