from collections.abc import Iterable, Sequence
from typing import Never, SupportsIndex, overload

from typing_extensions import Buffer

from mmaplog.control import Control
from mmaplog.segment_set import SegmentSet

class Appender:
    def __init__(self, use_open: Never, /) -> None: ...  # raises always
    @property
    def writable(self) -> bool: ...
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
    def flush(self) -> None: ...
    def needs_flush(self) -> bool: ...

    # For layers above. `control` is None once the log is closed, which whoever uses it has to know anyway.
    @property
    def control(self) -> Control: ...
    @property
    def segments(self) -> SegmentSet: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def _nobody_heard(self) -> None: ...
