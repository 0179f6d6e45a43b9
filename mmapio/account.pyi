from typing import Never

from mmapio.options import FlushPolicy

class Account:
    def __init__(self, use_a_mapped_file: Never, /) -> None: ...  # raises always
    @property
    def flush_policy(self) -> FlushPolicy: ...
    @property
    def pending_bytes(self) -> int: ...
    def needs_flush(self) -> bool: ...
