from collections.abc import Iterable
from typing import Literal, SupportsIndex, TypeAlias, TypeVar, overload

from typing_extensions import Buffer

from mmapio.view import MappedSlice
from mmapkv.reader import StoreReader

_Bytes: TypeAlias = str | bytes | Buffer
_T = TypeVar("_T")

def keys_of(keys: Iterable[_Bytes]) -> tuple[bytes, ...]: ...
def refuse_one_key(keys: object) -> None: ...

class BulkReader(StoreReader):
    @overload
    def get_many(
        self, keys: Iterable[_Bytes], default: None = None, view: Literal[False] = False
    ) -> list[bytes | None]: ...
    @overload
    def get_many(
        self, keys: Iterable[_Bytes], default: bytes, view: Literal[False] = False
    ) -> list[bytes]: ...
    @overload
    def get_many(
        self, keys: Iterable[_Bytes], default: _T, view: Literal[False] = False
    ) -> list[bytes | _T]: ...
    @overload
    def get_many(
        self, keys: Iterable[_Bytes], default: None = None, *, view: Literal[True]
    ) -> list[MappedSlice | None]: ...
    @overload
    def get_many(
        self, keys: Iterable[_Bytes], default: _T, view: Literal[True]
    ) -> list[MappedSlice | _T]: ...
    @overload
    def get_many(self, keys: Iterable[_Bytes], default: _T, view: bool) -> list[bytes | MappedSlice | _T]: ...
    @overload
    def get_many(
        self, keys: Iterable[_Bytes], default: None = None, *, view: bool
    ) -> list[bytes | MappedSlice | None]: ...
    def get_many_into(
        self,
        keys: Iterable[_Bytes],
        buffer: Buffer,
        lengths: Buffer | None = None,
        *,
        stride: SupportsIndex = 0,
    ) -> int: ...
