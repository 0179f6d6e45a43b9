from datetime import timedelta
from typing import SupportsIndex, TypeAlias

from typing_extensions import Buffer

from mmapkv.writer import StoreWriter

_Bytes: TypeAlias = str | bytes | Buffer
_Ttl: TypeAlias = float | timedelta | None

class StoreUpdater(StoreWriter):
    def add(self, key: _Bytes, value: _Bytes, /, *, ttl: _Ttl = None, durable: bool = False) -> bool: ...
    def replace(self, key: _Bytes, value: _Bytes, /, *, ttl: _Ttl = None, durable: bool = False) -> bool: ...
    def setdefault(self, key: _Bytes, default: _Bytes | None = None, /) -> bytes: ...
    def append(self, key: _Bytes, data: _Bytes, /, *, durable: bool = False) -> int: ...
    def incr(
        self,
        key: _Bytes,
        by: SupportsIndex = 1,
        /,
        *,
        initial: SupportsIndex = 0,
        durable: bool = False,
    ) -> int: ...
    def compare_and_set(
        self,
        key: _Bytes,
        value: _Bytes | None,
        /,
        *,
        expected: _Bytes | None = ...,
        version: SupportsIndex | None = ...,
        ttl: _Ttl = None,
        durable: bool = False,
    ) -> bool: ...
    def touch(self, key: _Bytes, /, ttl: _Ttl = None, *, durable: bool = False) -> bool: ...
    def ttl(self, key: _Bytes, /) -> float | None: ...

    # For the subclass.
    def _drop_expired(self, key: bytes, /) -> bool: ...

def increased(key: bytes, value: bytes | None, by: SupportsIndex, initial: SupportsIndex) -> int: ...
