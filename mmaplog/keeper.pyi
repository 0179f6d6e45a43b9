from collections.abc import Callable, Hashable
from typing import SupportsIndex, TypeVar

from mmaplog.appender import Appender
from mmaplog.compaction import Compaction
from mmaplog.manifest import Compacted
from mmaplog.replay import Entry
from mmaplog.segment import Segment

_Result = TypeVar("_Result")

class Keeper(Appender):
    @property
    def first_seq(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    def resume(self, epoch: int, seq: SupportsIndex) -> int: ...
    def truncate_before(self, seq: SupportsIndex) -> None: ...
    def truncate_after(self, seq: SupportsIndex) -> None: ...
    def retain(
        self,
        *,
        max_bytes: int | None = None,
        max_age: float | None = None,
        max_records: int | None = None,
        consumers: bool = False,
    ) -> int: ...
    def compact(
        self,
        keep: Callable[[Entry], object] | None = None,
        *,
        key: Callable[[Entry], Hashable | None] | None = None,
    ) -> Compaction: ...
    def spend_if_full(self, operation: Callable[[], _Result]) -> _Result: ...
    def replace_segments(self, made: Segment, listed: Compacted, replaced: list[str]) -> None: ...
