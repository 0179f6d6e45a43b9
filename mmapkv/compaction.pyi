from collections.abc import Callable
from typing import Any, Self

from mmapkv.pins import Pins
from mmapkv.victims import Choice
from mmapkv.writer import StoreWriter
from mmaplog.compaction import Compaction
from mmaplog.draft import Draft
from mmaplog.manifest import Compacted
from mmaplog.segment import Segment

class Replaced(Exception): ...

class Pass:
    def __new__(cls, store: StoreWriter, needed: int, counts: list[int]) -> Self: ...
    def copy(self, source: Segment, offsets: Any, target: Draft) -> None: ...
    def replace(self, made: Draft, listed: Compacted, replaced: list[Segment], swept: int) -> None: ...
    def lead(self, listed: Compacted, replaced: list[Segment]) -> None: ...

def require_writer(store: StoreWriter) -> None: ...

class Halted(Exception): ...

def compact(
    store: StoreWriter,
    pins: Pins,
    halted: Callable[[], object] | None = None,
    kept_out: Callable[[], object] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Compaction: ...
def step(
    store: StoreWriter,
    pins: Pins,
    choose: Callable[[list[tuple[int, int, int, int, int]], int], Choice | None],
    halted: Callable[[], object] | None,
    kept_out: Callable[[], object] | None = None,
) -> tuple[dict[int, tuple[int, int]], int, Compaction] | None: ...
def usage(store: StoreWriter, sizes: dict[int, int]) -> tuple[int, int, int]: ...
