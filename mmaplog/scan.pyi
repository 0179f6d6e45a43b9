from dataclasses import dataclass
from typing import Final

from typing_extensions import Buffer

HASHED_MAX: Final[int]

@dataclass(frozen=True, slots=True)
class Run:
    start: int
    stop: int
    offset: int
    end: int
    records: int

@dataclass(frozen=True, slots=True)
class Scan:
    runs: tuple[Run, ...]
    seen: int
    claimed: int
    leftover: int | None
    unknown: int | None
    complete: bool

def scan(
    data: Buffer, segment_id: int, base_seq: int, first: int, boundary: int, sparse: bool = False
) -> Scan: ...
def place(data: Buffer, run: Run, base_before: int, segment_id: int, base_seq: int) -> int: ...
