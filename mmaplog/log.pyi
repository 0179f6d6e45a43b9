from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from typing import Literal, Self, SupportsIndex, TypeAlias, TypeVar, overload

from mmapio.options import FlushPolicy
from mmapio.watch import WatchHandle
from mmaplog.backup import Backup, Progress
from mmaplog.batch import Batch
from mmaplog.consumer import Consumer, ConsumerInfo
from mmaplog.follow import Follower
from mmaplog.group import GroupMember
from mmaplog.keeper import Keeper
from mmaplog.replay import Entry, Replay
from mmaplog.reservation import Reservation
from mmaplog.segment_watch import SegmentChange
from mmaplog.verify import Verified

_Path: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes]
_Mode: TypeAlias = Literal["r", "w", "c", "n"]
_Log = TypeVar("_Log", bound=Log)

DEFAULT_SEGMENT_BYTES: int
DEFAULT_POLICY: FlushPolicy

class Log(Keeper):
    @classmethod
    def open(
        cls,
        path: _Path,
        mode: _Mode = "c",
        *,
        flush_policy: FlushPolicy = ...,
        timestamps: bool = False,
        segment_bytes: SupportsIndex = ...,
        shared: bool = False,
        reserve_bytes: SupportsIndex | None = None,
    ) -> Self: ...
    @property
    def path(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    @property
    def recovered(self) -> bool: ...
    @property
    def committed(self) -> int: ...
    @property
    def durable(self) -> int: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Entry]: ...
    def __reversed__(self) -> Iterator[Entry]: ...
    def batch(self, *, durable: bool = False) -> Batch: ...
    def reserve(self, size: SupportsIndex, *, durable: bool = False) -> Reservation: ...
    def __getitem__(self, seq: SupportsIndex, /) -> Entry: ...
    def read_many(self, seqs: Iterable[SupportsIndex]) -> list[Entry]: ...
    def seek_time(self, nanoseconds: SupportsIndex) -> int: ...
    def follow(
        self, start: SupportsIndex | None = None, *, timeout: float | None = None, verify: bool = True
    ) -> Follower: ...
    def consumer(
        self,
        name: str,
        *,
        start: SupportsIndex | None = None,
        auto_commit: bool = False,
        too_old: Literal["raise", "skip"] = "raise",
        timeout: float | None = None,
        verify: bool = True,
    ) -> Consumer: ...
    def group(
        self,
        name: str,
        *,
        batch: SupportsIndex = 64,
        start: SupportsIndex | None = None,
        auto_commit: bool = False,
        too_old: Literal["raise", "skip"] = "raise",
        timeout: float | None = None,
        verify: bool = True,
    ) -> GroupMember: ...
    def consumers(self) -> list[ConsumerInfo]: ...
    def remove_consumer(self, name: str) -> None: ...
    def verify(self, *, progress: Progress | None = None) -> Verified: ...
    def backup(self, target: _Path, *, verify: bool = True, progress: Progress | None = None) -> Backup: ...
    def watch_segments(self, callback: Callable[[SegmentChange], object]) -> WatchHandle: ...
    def stats(self) -> dict[str, int | str]: ...
    @overload
    def replay(
        self,
        start: SupportsIndex = 0,
        stop: SupportsIndex | None = None,
        *,
        verify: bool = True,
        reverse: Literal[False] = False,
    ) -> Replay: ...
    @overload
    def replay(
        self,
        start: SupportsIndex = 0,
        stop: SupportsIndex | None = None,
        *,
        verify: bool = True,
        reverse: bool,
    ) -> Iterator[Entry]: ...
    @property
    def flushes_on_close(self) -> bool: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...

    # For layers above.
    def begin_exclusive(self) -> None: ...
    def claim(self) -> None: ...
    def unclaim(self) -> None: ...
    def end_exclusive(self) -> None: ...
    def disk_usage(self) -> int: ...
    @property
    def end_of_tail(self) -> tuple[int, int]: ...

def open_log(
    cls: type[_Log],
    path: _Path,
    mode: _Mode,
    flush_policy: FlushPolicy,
    timestamps: bool,
    segment_bytes: SupportsIndex,
    derived: tuple[str, ...],
    shared: bool = False,
    reserve_bytes: SupportsIndex | None = None,
) -> _Log: ...
