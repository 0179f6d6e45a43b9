from dataclasses import dataclass
from typing import Final

SIZE: Final[int]
MAGIC: Final[int]
GAPS: Final[int]
KNOWN: Final[int]

@dataclass(frozen=True, slots=True)
class Page:
    is_segment: bool
    version: int
    sealed: bool
    incompatible: int
    log_uuid: bytes
    segment_id: int
    base_seq: int
    base_time: int
    capacity: int
    epoch: int
    replaces: int
    marks: tuple[tuple[int, int], ...]
    footers: tuple[tuple[int, int, int], ...]
    closed_at: tuple[int, int] | None

def read(raw: bytes, segment_id: int | None = None) -> Page: ...
def as_version(raw: bytes) -> bytes: ...
def make(
    log_uuid: bytes,
    segment_id: int,
    base_seq: int,
    base_time: int,
    capacity: int,
    epoch: int,
    replaces: int = 0,
) -> bytes: ...
def rehome(raw: bytes, log_uuid: bytes) -> bytes: ...
def mark(raw: bytes, segment_id: int, seq: int, end: int) -> bytes: ...
def seal(raw: bytes, segment_id: int, seq: int, end: int, records: int) -> bytes: ...
