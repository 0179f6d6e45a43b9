from datetime import timedelta
from typing import TypeAlias, TypeVar, overload

from typing_extensions import Buffer

from mmapkv.sharer import Sharer

_Bytes: TypeAlias = str | bytes | Buffer
_T = TypeVar("_T")

TTL_SECONDS_MAX: float

class StoreWriter(Sharer):
    def __setitem__(self, key: _Bytes, value: _Bytes, /) -> None: ...
    def put(
        self, key: _Bytes, value: _Bytes, /, *, ttl: float | timedelta | None = None, durable: bool = False
    ) -> None: ...
    def __delitem__(self, key: _Bytes, /) -> None: ...
    @overload
    def pop(self, key: _Bytes, /) -> bytes: ...
    @overload
    def pop(self, key: _Bytes, default: bytes, /) -> bytes: ...
    @overload
    def pop(self, key: _Bytes, default: _T, /) -> bytes | _T: ...

    # For the subclass.
    def _bind(self, bound: int) -> None: ...

class Content: ...
