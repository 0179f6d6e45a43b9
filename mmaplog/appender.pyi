from collections.abc import Iterable, Sequence
from typing import Never, SupportsIndex, overload

from typing_extensions import Buffer

from mmaplog.tail import TailHolder

class Appender(TailHolder):
    def __init__(self, use_open: Never, /) -> None: ...  # raises always
    def append(self, data: Buffer, *, durable: bool = False) -> int: ...
    @overload
    def append_many(
        self, records: Iterable[Buffer], offsets: None = None, *, atomic: bool = False, durable: bool = False
    ) -> range: ...
    @overload
    def append_many(
        self,
        records: Buffer,
        offsets: Sequence[SupportsIndex] | Buffer,
        *,
        atomic: bool = False,
        durable: bool = False,
    ) -> range: ...
