from typing import Any, Final, Generic, Literal, Self, TypeVar, overload

from mmapkv.pins import Pin
from mmapkv.reader import StoreReader
from mmaplog.replay import Replay

_T_co = TypeVar("_T_co", covariant=True)

KEYS: Final = 0
VALUES: Final = 1
ITEMS: Final = 2
EXPIRED: Final = 3
ENTRIES: Final = 4

# Generic for type checkers only: the class cannot be subscripted.
class Walk(Generic[_T_co]):
    stop: Final[int]
    @overload
    def __new__(
        cls,
        store: StoreReader,
        replay: Replay,
        what: Literal[0, 1, 3],
        now: int = 0,
        pin: Pin | None = None,
    ) -> Walk[bytes]: ...
    @overload
    def __new__(
        cls,
        store: StoreReader,
        replay: Replay,
        what: Literal[2],
        now: int = 0,
        pin: Pin | None = None,
    ) -> Walk[tuple[bytes, bytes]]: ...
    @overload
    def __new__(
        cls,
        store: StoreReader,
        replay: Replay,
        what: Literal[4],
        now: int = 0,
        pin: Pin | None = None,
    ) -> Walk[tuple[bytes, bytes, int | None]]: ...
    @overload
    def __new__(
        cls,
        store: StoreReader,
        replay: Replay,
        what: int,
        now: int = 0,
        pin: Pin | None = None,
    ) -> Walk[Any]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> _T_co: ...
