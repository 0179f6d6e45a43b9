from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Protocol, TypeAlias

from typing_extensions import Buffer

from mmapkv.batch import Batch
from mmapkv.updater import StoreUpdater

_Bytes: TypeAlias = str | bytes | Buffer

class _Keyed(Protocol):
    def keys(self) -> Iterable[_Bytes]: ...
    def __getitem__(self, key: Any, /) -> _Bytes: ...

class BulkWriter(StoreUpdater):
    def put_many(
        self,
        pairs: _Keyed | Iterable[tuple[_Bytes, _Bytes]],
        /,
        *,
        ttl: float | timedelta | None = None,
        durable: bool = False,
    ) -> None: ...
    def delete_many(self, keys: Iterable[_Bytes], /, *, durable: bool = False) -> int: ...
    def batch(self, *, durable: bool = False) -> Batch: ...

    # For transactions, commands and the subclass.
    def _put_entries(self, entries: Iterable[tuple[_Bytes, _Bytes, int | None]], /) -> None: ...
    def _require_writer(self) -> None: ...
    def _tell_rolled(self) -> None: ...
    def _commit(
        self,
        batch: Batch,
        reads: list[bytes] | None = None,
        stop: int = ...,
        alone: bool = False,
        cleared: int = ...,
        clears: bool = False,
    ) -> int: ...
